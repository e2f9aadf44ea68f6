"""One of each kind of growth, as docs/extending.md tells: the files and the entries that its section asks for."""

from dataclasses import dataclass, field
from pathlib import Path

FAMILY = '''"""A toy: FLUX.1 under another name."""

import torch
from diffusers import FluxPipeline

from pipeline.backbones.stock import StockBackbone


class NewPipeline(FluxPipeline):
    """What a teacher's model_index.json names."""


class NewBackbone(StockBackbone):
    """The new family."""

    family = "new"
    pipeline_class = NewPipeline
    part_modules = {
        "text": ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"),
        "transformer": ("transformer",),
        "vae": ("vae",),
    }
    lora_targets = {"attention": ["to_q"], "all": ["to_q", "to_k"]}
    tokenizer = "tokenizer_2"

    @property
    def pixels_per_token(self):
        return 2 ** len(self.vae_config["block_out_channels"])

    @property
    def latent_channels(self):
        return self.transformer_config["in_channels"]

    @torch.no_grad()
    def encode(self, prompts, max_sequence_length):
        embeds, pooled, _ = self.part("text").encode_prompt(
            prompt=list(prompts), prompt_2=None, device=self.device, max_sequence_length=max_sequence_length
        )
        return {"prompt_embeds": embeds.cpu(), "pooled_prompt_embeds": pooled.cpu()}

    def stock_guidance(self, true_cfg_scale, guidance_scale, negative_prompt):
        return {"guidance_scale": guidance_scale}

    def _forward(self, inputs):
        x, embeds = inputs.x, inputs.conditioning["prompt_embeds"]
        return self.transformer(
            hidden_states=x,
            timestep=inputs.timestep.to(x.dtype) / 1000,
            pooled_projections=inputs.conditioning["pooled_prompt_embeds"],
            encoder_hidden_states=embeds,
            txt_ids=x.new_zeros(embeds.shape[1], 3),
            img_ids=FluxPipeline._prepare_latent_image_ids(len(x), *inputs.grid, x.device, x.dtype),
            return_dict=False,
        )[0]

    def _encode(self, pixels, generators):
        vae = self._pipe.vae
        found = vae.encode(pixels).latent_dist
        latents = torch.cat([found.sample(generator) for generator in generators])
        return (latents - vae.config.shift_factor) * vae.config.scaling_factor

    def _decode(self, latents):
        vae = self._pipe.vae
        return vae.decode(latents / vae.config.scaling_factor + vae.config.shift_factor, return_dict=False)[0]


BACKBONE = NewBackbone
'''
PRESET = """teacher:
  path: artifacts/new           # a reason
  family: new                   # a reason
training:
  targets: attention            # a reason
"""
OBJECTIVE = '''"""A toy: how far an Euler step lands from the teacher's next state."""

from pipeline.objectives.base import Objective, constant, error


def landing(sample, student, teacher):
    """|x_i + (sigma_j - sigma_i) v(x_i, sigma_i) - x_j|^2."""
    d_sigma = (sample.sigma_next - sample.sigma)[:, None, None]
    return error(sample.x + d_sigma * student(sample.x, sample.sigma), sample.x_next)


LANDING = Objective(loss=landing, rate=constant, guided=True)
'''
RULE = '''def new(settings: PartitionParams, num_steps: int) -> tuple[list[int], list[int]]:
    """A toy: the first steps are slow, the last ones fast."""
    return list(range(settings.slow_steps)), list(range(num_steps - settings.fast_steps, num_steps))


RULES: dict'''
RIVAL = '''def late(params: Params, data: TrainingData) -> list[Job]:
    """A toy: the fast adapter, for every step."""
    from pipeline.training.jobs import of_phase

    return [replace(of_phase(params, data, "fast"), name="late")]


RIVALS: dict[str, Rival] = {
    "new_rival": Rival(title="New rival", question="A toy?", jobs=late, adapter=always("late")),
'''
BASE = """BASES = (
    Recipe(
        name="new_base",
        title="New base",
        question="A toy?",
        levels=_even(lambda conditions: 2),
        scale=_teacher_scale,
    ),
"""
SWAP = """SWAPS = (
    Recipe(name="new_swap", title="New swap", question="A toy?", scale=_student_scale, adapter=always("fast")),
"""
COLUMN = """        RETENTION,
        Column("worst_psnr", "worst PSNR", 1, "dB", better="higher"),
"""
NUMBER = """            "ssim": float(own.ssim.mean()),
            "worst_psnr": None if arm.name == REFERENCE else float(own.psnr.min()),
"""
FORMAT = '''"""A toy: the fast adapter alone."""

import shutil
from pathlib import Path

from pipeline.bundle.formats.base import Format


def write(bundle, folder):
    """Writes the file of the fast adapter."""
    shutil.copy(bundle.folder / "fast.safetensors", folder / "one.safetensors")
    return [Path("one.safetensors")]


NEW = Format(name="new", description="The fast adapter alone.", write=write)
'''
SCORER = '''"""A toy: the height of an image."""

from pipeline.benchmarking.scorers import Entry


class Height:
    """The loaded scorer."""

    def fields(self, images, items):
        """The height of each image."""
        return [{"height": image.height} for image in images]


HEIGHT = Entry(
    name="height", version=1, about="The height.", weights=(), packages=(), load=lambda places, device: Height()
)
'''
BENCHMARK = '''"""A toy: two prompts, scored by the height of their images."""

from dataclasses import replace

from pipeline.evaluation.benchmarks import Column
from pipeline.evaluation.benchmarks.official import Item, Metric
from pipeline.evaluation.benchmarks.selftest import SELFTEST

NEW = replace(
    SELFTEST,
    name="new",
    title="New benchmark",
    parse=lambda files: [Item(id=name, prompt=f"a {name} star") for name in ("red", "blue")],
    counts={"": 2},
    seeds=1,
    metrics=(Metric(column=Column("height", "height", 0, better="higher"), scorer="height", fields=("height",)),),
    external=(),
)
'''
MEASUREMENT = '''"""A toy: how many stages there are."""

from pathlib import Path

from pipeline import artifacts

DOCS = Path(__file__).parents[1] / "docs" / "measured"


def main():
    """Writes the figure, and the page from the figure."""
    artifacts.write_json(DOCS / "new.json", {"stages": len(list(Path("stages").glob("[a-z]*.py")))})
    figures = artifacts.read_json(DOCS / "new.json")
    (DOCS / "new.md").write_text(f"There are {figures['stages']} stages.\\n")


if __name__ == "__main__":
    main()
'''


@dataclass(frozen=True)
class Growth:
    """What is added to a project.

    Attributes:
        files: New files, with their text.
        entries: (file, old, new): where a table, a list or a function gets an entry.
    """

    files: dict[str, str] = field(default_factory=dict)
    entries: tuple[tuple[str, str, str], ...] = ()

    def add(self, folder: Path) -> None:
        """Adds it to the project in a folder."""
        for name, text in self.files.items():
            (folder / name).write_text(text)
        for name, old, new in self.entries:
            text = (folder / name).read_text()
            assert text.count(old) == 1, f"{name} has {old!r} {text.count(old)} times"
            (folder / name).write_text(text.replace(old, new))


GROWTH = {  # by the heading of docs/extending.md
    "A model family": Growth(
        {"pipeline/families/new.py": FAMILY, "pipeline/presets/new.yaml": PRESET},
        (("pipeline/families/__init__.py", '"FluxPipeline": "flux"', '"FluxPipeline": "flux", "NewPipeline": "new"'),),
    ),
    "An objective": Growth(
        {"pipeline/objectives/new.py": OBJECTIVE},
        (
            (
                "pipeline/objectives/__init__.py",
                "from pipeline.objectives.base import Objective\n",
                "from pipeline.objectives.base import Objective\nfrom pipeline.objectives.new import LANDING\n",
            ),
            ("pipeline/objectives/__init__.py", '"flow": FLOW', '"flow": FLOW, "new": LANDING'),
        ),
    ),
    "A partition rule": Growth(
        entries=(
            ("pipeline/partition.py", "RULES: dict", RULE),
            ("pipeline/partition.py", '"official": official}', '"official": official, "new": new}'),
        )
    ),
    "A rival": Growth(
        entries=(
            ("pipeline/training/rivals.py", "RIVALS: dict[str, Rival] = {\n", RIVAL),
            ("pipeline/evaluation/recipes.py", "BASES = (\n", BASE),
            ("pipeline/evaluation/recipes.py", "SWAPS = (\n", SWAP),
        )
    ),
    "A column of the comparison": Growth(
        entries=(
            ("pipeline/evaluation/benchmarks/scenes.py", "        RETENTION,\n", COLUMN),
            ("pipeline/evaluation/scores/results.py", '            "ssim": float(own.ssim.mean()),\n', NUMBER),
        )
    ),
    "A scorer of the official benchmarks": Growth(
        {"pipeline/benchmarking/scorers/height.py": SCORER},
        (
            (
                "pipeline/benchmarking/scorers/table.py",
                "from pipeline.benchmarking.scorers.hps import",
                "from pipeline.benchmarking.scorers.height import HEIGHT\n"
                "from pipeline.benchmarking.scorers.hps import",
            ),
            (
                "pipeline/benchmarking/scorers/table.py",
                '    "brightness": BRIGHTNESS,\n',
                '    "brightness": BRIGHTNESS,\n    "height": HEIGHT,\n',
            ),
        ),
    ),
    "An official benchmark": Growth(
        {"pipeline/evaluation/benchmarks/new.py": BENCHMARK},
        (
            (
                "pipeline/evaluation/benchmarks/table.py",
                "from pipeline.evaluation.benchmarks.selftest import",
                "from pipeline.evaluation.benchmarks.new import NEW\n"
                "from pipeline.evaluation.benchmarks.selftest import",
            ),
            (
                "pipeline/evaluation/benchmarks/table.py",
                '    "selftest": SELFTEST,\n',
                '    "selftest": SELFTEST,\n    "new": NEW,\n',
            ),
        ),
    ),
    "A layout of LoRA files": Growth(
        entries=(
            ("pipeline/families/flux.py", "LORA_NAMES = {\n", 'LORA_NAMES = {\n    "new": Target(("x_embedder",)),\n'),
        )
    ),
    "A format": Growth(
        {"pipeline/bundle/formats/new.py": FORMAT},
        (
            (
                "pipeline/bundle/formats/__init__.py",
                "from pipeline.bundle.formats.fused import FUSED\n",
                "from pipeline.bundle.formats.fused import FUSED\nfrom pipeline.bundle.formats.new import NEW\n",
            ),
            ("pipeline/bundle/formats/__init__.py", "in (FUSED, ", "in (FUSED, NEW, "),
        ),
    ),
    "A parameter": Growth(
        entries=(
            (
                "pipeline/params.py",
                "    negative_prompt: str\n",
                "    negative_prompt: str\n    new: int = number(at_least=2)\n",
            ),
            ("params.yaml", "teacher:\n", "teacher:\n  new: 3\n"),
        )
    ),
    "A sign of full memory": Growth(
        entries=(("pipeline/out_of_memory.py", '("out of memory",', '("out of memory", "no memory",'),)
    ),
    "A measurement of the project itself": Growth({"measurements/new.py": MEASUREMENT}),
}
