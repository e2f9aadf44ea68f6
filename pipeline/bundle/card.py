"""The model card of a bundle: a description of the adapters, and the code to use the bundle."""

import json
from collections.abc import Mapping
from pathlib import Path
from string import Template
from typing import Any

from pipeline.artifacts import read_text
from pipeline.backbones.teacher import DTYPES
from pipeline.styles import Lora


def text(manifest: Mapping[str, Any], guided: Mapping[str, Any], *, imported: bool) -> str:
    """The model card, with the code to use the bundle; `guided` holds the guidance arguments for plain diffusers."""
    guidance, phases = manifest["guidance"], manifest["phases"]
    values = dict(
        base=manifest["base_model"],
        license=manifest["base_license"],
        digest=manifest["base_digest"],
        adapters="One LoRA adapter" if len(phases) == 1 else f"{len(phases)} LoRA adapters",
        phases="".join(map(_row, phases)),
        starts=json.dumps({phase["name"]: phase["u"][0] for phase in phases}),
        steps=len(manifest["steps"]),
        solver=manifest["solver"],
        teacher_steps=manifest["teacher_steps"],
        teacher_scale=guidance["teacher_true_cfg_scale"],
        rank=manifest["rank"],
        u=list(manifest["u"]),
        height=manifest["height"],
        width=manifest["width"],
        tokens=manifest["max_sequence_length"],
        dtype=DTYPES[manifest["dtype"]],
        styles="".join(map(_fused, manifest["loras"])),
        fused=" with the LoRAs that are fused into it above" if manifest["loras"] else "",
        guided="".join(f"\n    {name}={value!r}," for name, value in guided.items()),
    )
    origin = (IMPORTED_TEXT if imported else TRAINED_TEXT).substitute(values)
    return CARD_TEXT.substitute(values, origin=origin, use=_use(manifest).substitute(values))


def _use(manifest: Mapping[str, Any]) -> Template:
    """How the bundle is used: a stock pipeline takes Euler's steps from level to level, and no others."""
    if manifest["path"] == "official":
        return OFFICIAL_USE
    return STOCK_USE if manifest["solver"] == "euler" else SOLVER_USE


def license_of(card: Path) -> str:
    """The `license:` of a model card's front matter; "unknown" without one."""
    lines = read_text(card).splitlines() if card.is_file() else []
    head = lines[1 : lines.index("---", 1)] if lines[:1] == ["---"] and "---" in lines[1:] else []
    found = [line.partition(":")[2].strip() for line in head if line.startswith("license:")]
    return found[0] if found else "unknown"


def _row(phase: Mapping[str, Any]) -> str:
    """The row of a phase in the card's table."""
    return f"\n| `{phase['name']}` | {len(phase['steps'])} | {phase['sigmas'][0]:.4f} |"


def _fused(lora: Mapping[str, Any]) -> str:
    """The lines of plain diffusers that fuse a LoRA of the manifest into the base."""
    found = Lora(**lora)
    if found.hub:
        repository, revision, file = map(json.dumps, found.hub.group("repository", "revision", "filename"))
        source = f"{repository}, revision={revision}, weight_name={file}"
    else:
        source = f"{json.dumps(found.path.parent.as_posix())}, weight_name={json.dumps(found.path.name)}"
    return f"""
pipe.load_lora_weights({source})  # sha256 {found.sha256}
pipe.fuse_lora(components=["transformer"], lora_scale={found.weight})
pipe.unload_lora_weights()"""


CARD_TEXT = Template("""---
base_model: $base
library_name: diffusers
license: $license
pipeline_tag: text-to-image
tags: [lora, flow-matching, distillation]
---

# $adapters: $steps steps instead of $teacher_steps

$adapters of rank $rank for `$base`, each active in its own steps:

| adapter | steps | from sigma |
| --- | --- | --- |$phases

$origin

$use
`glance.json` lists the noise levels, the phases and the guidance. The adapters belong to the base model whose
transformer$fused has the digest `$digest`, and its licence ($license) holds for them.
""")

TRAINED_TEXT = Template(
    """Trained on the path of the base model with $teacher_steps steps and a true CFG scale of
$teacher_scale. The method follows "Glance: Accelerating Diffusion Models with 1 Sample", arXiv 2512.02899."""
)
IMPORTED_TEXT = Template("Trained elsewhere and imported for this base; the source may say how.")

STOCK_USE = Template("""With plain diffusers:

```python
import torch
from diffusers import DiffusionPipeline

folder = "."  # of this card
pipe = DiffusionPipeline.from_pretrained("$base", dtype=$dtype)$styles
u = $u  # the base level at which each step starts
starts = $starts  # the base level at which each adapter takes over
for name in starts:
    pipe.load_lora_weights(folder, weight_name=f"{name}.safetensors", adapter_name=name)


def activate(pipe, level):
    pipe.set_adapters([name for name, start in starts.items() if level <= start][-1])


def hand_over(pipe, step, timestep, tensors):
    following = pipe.scheduler.step_index  # in the whole list of levels, also if the run started within it
    if following < len(u):
        activate(pipe, u[following])
    return tensors


options = dict(
    sigmas=u,$guided
    height=$height,
    width=$width,
    max_sequence_length=$tokens,
    callback_on_step_end=hand_over,
)
activate(pipe, u[0])
image = pipe("a red star", generator=torch.Generator().manual_seed(0), **options).images[0]
```

After these lines, the same parts make an image from another one. The strength is the share of the steps that run. Such
a run starts within the list of levels, and the level of each step chooses its adapter:

```python
from diffusers import AutoPipelineForImage2Image
from diffusers.utils import load_image
from PIL import Image, ImageOps

strength = 0.6
source = ImageOps.fit(load_image("source.png"), ($width, $height), Image.Resampling.LANCZOS)
activate(pipe, u[int(len(u) - len(u) * strength)])
pipe = AutoPipelineForImage2Image.from_pipe(pipe)
options |= dict(image=source, strength=strength)
image = pipe("a red star", generator=torch.Generator().manual_seed(0), **options).images[0]
```
""")

OFFICIAL_USE = Template("""With this project's command, in this folder, where `$base` is the base model's folder:

```sh
glance generate "a red star" --bundle . --teacher $base
```

The pair runs on the path of the official Glance code: in each step the model is told one noise level while the latents
move along another grid. A stock pipeline does not do that; with `sigmas=` it gives other images.
""")

SOLVER_USE = Template("""With this project's command, in this folder, where `$base` is the base model's folder:

```sh
glance generate "a red star" --bundle . --teacher $base
```

The adapters were trained for steps of the solver `$solver`. A stock pipeline takes Euler's steps; with `sigmas=` it
gives other images.
""")
