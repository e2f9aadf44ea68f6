"""A bundle for ComfyUI: one workflow that runs all phases over one list of noise levels, and the LoRA files for it."""
