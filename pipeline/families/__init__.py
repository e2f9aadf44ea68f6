"""The model families: one file each, found by the pipeline class that a teacher's model_index.json names.

A family's file defines BACKBONE, its backbone class. `backbones.family` imports the one file that a teacher needs, so
that the stages depend on that file alone, and a new family makes no recording stale.
"""

CLASSES = {"FluxPipeline": "flux", "QwenImagePipeline": "qwen_image", "ZImagePipeline": "z_image"}
"""The module of this folder, by pipeline class."""
