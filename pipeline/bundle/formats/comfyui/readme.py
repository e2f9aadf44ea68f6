"""The README of an exported folder: which file goes where, and how the workflow is opened."""

from pathlib import Path

from pipeline.bundle.formats.comfyui.graph import Run
from pipeline.bundle.manifest import Bundle
from pipeline.flow.guidance import forwards


def text(bundle: Bundle, run: Run, latent_channels: int) -> str:
    """The README as Markdown; `latent_channels` are those of the base, which ComfyUI may not know."""
    models, base = run.models, Path(bundle.base_model).name
    rows = [(f"loras/{part.file}", "loras", f"phase {part.name}, {part.steps} steps, here") for part in run.parts]
    rows += [(file, "loras", f"a LoRA of the base, strength {weight:g}") for file, weight in run.styles]
    note = "" if models.published(bundle.base_model) else ", a name to choose: ComfyUI publishes no file of this base"
    rows += [(run.transformer, "diffusion_models", f"the transformer of {base}{note}")]
    rows += [(file, "text_encoders", "a text encoder") for file in models.text_encoders]
    rows += [(models.vae, "vae", "the autoencoder")]
    table = "\n".join(f"| `{file}` | `models/{folder}` | {what} |" for file, folder, what in rows)
    second = " twice, for the prompt and for the negative prompt," if forwards(run.true_cfg_scale) == 2 else ""
    other = "" if bundle.dtype == "fp32" or models.float32_noise else OTHER_NOISE
    strange = ""
    if latent_channels != models.latent_channels:
        strange = STRANGE.format(base=base, channels=latent_channels, known=models.latent_channels)
    return f"""# {base} in {sum(part.steps for part in run.parts)} steps with ComfyUI
{strange}
1. Copy the LoRA files of this folder into ComfyUI's `models/loras`.
2. Put the other files of the table where it says. A file of the same model in another precision works too: choose it in
   the workflow's loader.
3. Open `workflow.json` in ComfyUI, or drop `workflow_api.json` or `sample.png` (if it is here) on its page. Write a
   prompt and run it.

| file | folder of ComfyUI | what it is |
| --- | --- | --- |
{table}

The workflow is for images of {run.width} x {run.height} pixels: the noise levels depend on the size. For another size,
export again with `--width` and `--height`. Keep the list of levels, the sampler `euler` and the strength 1 of the
phases' LoRAs.

In each step the model runs{second} with the LoRA of the step's phase. A later phase goes on from the first output of
the sampler before it, and no noise is added.

It needs a ComfyUI of December 2025 or later, and no custom nodes.
{other}
The licence of the base model ({bundle.base_license}) holds for the LoRA files.
"""


STRANGE = """
ComfyUI cannot run this workflow. The latents of {base} have {channels} channels, and ComfyUI's text encoders and
autoencoders are those of models with {known}. The folder only shows what the export of such a model looks like.
"""
OTHER_NOISE = """
ComfyUI draws its noise in float32, and this pair's own pipeline in another precision: the same seed gives another
image.
"""
