"""The model families: one file each, found by the pipeline class that a teacher's model_index.json names.

A family's file defines BACKBONE, its backbone class. `backbones.family` imports only the file that a teacher needs. So
the stages depend on this file alone, and a new family makes no recording stale.
"""

CLASSES = {"FluxPipeline": "flux", "QwenImagePipeline": "qwen_image", "ZImagePipeline": "z_image"}
"""The module of this folder, by pipeline class."""
