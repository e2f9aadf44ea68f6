"""Measures the cost of a full-size teacher on this machine, with random weights in the published configurations.

    python -m measurements.gpu --model qwen-image --kind none --kind int8
    python -m measurements.gpu --small --pixels 256          # a few layers and heads: a minute on a CPU

All timed code is the pipeline's own: the backbone's velocity, the training loop on a random cache, the adapters fused
and unfused. The table goes to docs/measured/gpu.md and the figures to docs/measured/gpu.json, beside the results of
other machines.
"""

import gc
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import click
import diffusers
import torch
from torch import Tensor

from pipeline import adapters, artifacts, backbones, params
from pipeline.adapters import switching
from pipeline.backbones import base
from pipeline.backbones.base import Backbone, Conditioning
from pipeline.backbones.teacher import Teacher
from pipeline.flow.guidance import forwards
from pipeline.flow.sampling import fixed_plan, sample_plan
from pipeline.flow.schedule import base_levels
from pipeline.partition import Partition, compute, two_phase_plan
from pipeline.recording.record import publish
from pipeline.recording.trajectories import NEGATIVE, Recording, Trajectories, shard_name
from pipeline.training import loop
from pipeline.training.jobs import Job, TrainingSettings

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs" / "measured"
TEXT_TOKENS = 512
RANK = 16
STEPS = 50


@dataclass(frozen=True)
class Model:
    """A published transformer, by its configuration files."""

    pipeline: str
    transformer: str
    config: dict
    small: dict
    """Overrides for a small model."""
    vae: dict
    scheduler: dict
    conditioning: dict[str, tuple[int, ...]]
    """Shape of each tensor of one prompt's conditioning."""
    true_cfg_scale: float


MODELS = {
    "flux-dev": Model(
        pipeline="FluxPipeline",
        transformer="FluxTransformer2DModel",
        config={"guidance_embeds": True},  # the class's other defaults are FLUX.1-dev
        small={"num_layers": 1, "num_single_layers": 2, "num_attention_heads": 4},
        vae={"block_out_channels": [128, 256, 512, 512]},
        scheduler={
            "use_dynamic_shifting": True,
            "base_shift": 0.5,
            "max_shift": 1.15,
            "base_image_seq_len": 256,
            "max_image_seq_len": 4096,
        },
        conditioning={"prompt_embeds": (TEXT_TOKENS, 4096), "pooled_prompt_embeds": (768,)},
        true_cfg_scale=1.0,
    ),
    "qwen-image": Model(
        pipeline="QwenImagePipeline",
        transformer="QwenImageTransformer2DModel",
        config={},  # the class's defaults are Qwen-Image
        small={"num_layers": 2, "num_attention_heads": 4},
        vae={"temperal_downsample": [False, True, True]},
        scheduler={
            "use_dynamic_shifting": True,
            "base_shift": 0.5,
            "max_shift": 0.9,
            "base_image_seq_len": 256,
            "max_image_seq_len": 8192,
            "shift_terminal": 0.02,
        },
        conditioning={"prompt_embeds": (TEXT_TOKENS, 3584), "prompt_embeds_mask": (TEXT_TOKENS,)},
        true_cfg_scale=4.0,
    ),
}


def write_teacher(model: Model, folder: Path, small: bool, device: torch.device) -> None:
    """Writes a pipeline directory whose transformer has random bfloat16 weights."""
    config = model.config | (model.small if small else {})
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with device:
            transformer = getattr(diffusers, model.transformer)(**config)
    finally:
        torch.set_default_dtype(default)
    transformer.save_pretrained(folder / "transformer")
    write_configs(model, folder)


def write_configs(model: Model, folder: Path) -> None:
    """Writes a pipeline directory's configuration files, without text encoders and without weights of a VAE."""
    scheduler = {"_class_name": "FlowMatchEulerDiscreteScheduler"} | model.scheduler
    artifacts.write_json(folder / "scheduler" / "scheduler_config.json", scheduler)
    artifacts.write_json(folder / "vae" / "config.json", model.vae)
    index = {"_class_name": model.pipeline, "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"]}
    pair = ("_2",) if model.pipeline == "FluxPipeline" else ()
    for name in ("vae", *(f"{part}{end}" for part in ("text_encoder", "tokenizer") for end in ("", *pair))):
        index[name] = [None, None]
    index["transformer"] = ["diffusers", model.transformer]
    artifacts.write_json(folder / "model_index.json", index)


def conditioning(model: Model, rows: int) -> Conditioning:
    """Random conditioning of `rows` prompts that fill all text tokens."""
    return {
        name: torch.ones(rows, *shape, dtype=torch.bool)
        if name.endswith("mask")
        else torch.randn(rows, *shape).bfloat16()
        for name, shape in model.conditioning.items()
    }


def write_cache(model: Model, backbone: Backbone, folder: Path, pixels: int) -> Trajectories:
    """A cache of one random trajectory."""
    recording = Recording(
        prompts=("random",),
        seeds_per_prompt=1,
        seed=0,
        shard_size=1,
        levels=tuple(base_levels(STEPS).tolist()),
        height=pixels,
        width=pixels,
        max_sequence_length=TEXT_TOKENS,
        true_cfg_scale=model.true_cfg_scale,
        guidance_scale=3.5,
        negative_prompt="",
        dtype="bf16",
        quantization="none",
        precision="fp32",
    )
    states = torch.randn(1, STEPS + 1, *backbone.latent_shape(pixels, pixels)).bfloat16()
    tensors = {"states": states, "seed": torch.zeros(1, dtype=torch.long), "prompt_index": torch.zeros(1, dtype=int)}
    tensors |= {f"cond.{name}": tensor for name, tensor in conditioning(model, 1).items()}
    scratch = folder / "scratch"
    artifacts.save_safetensors(scratch / shard_name(0), tensors)
    artifacts.save_safetensors(scratch / NEGATIVE, conditioning(model, 1))
    publish(recording, backbone.schedule(pixels, pixels), "none", scratch, folder / "trajectories")
    return Trajectories(folder / "trajectories", verify=False)


def seconds(function: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Median wall-clock seconds of a call, after one uncounted call."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        function()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def peak_gib(device: torch.device) -> float | None:
    """Peak of GPU memory since the last call of this function, in GiB; None on a CPU."""
    if device.type != "cuda":
        return None
    peak = torch.cuda.max_memory_allocated(device) / 2**30
    torch.cuda.reset_peak_memory_stats(device)
    return peak


def partitions(backbone: Backbone, pixels: int) -> dict[int, Partition]:
    """The student's paths of 8 and 4 steps."""
    shipped = params.load(ROOT / "params.yaml")
    split = {8: (3, 5), 4: (1, 3)}
    return {
        steps: compute(
            replace(shipped, partition=replace(shipped.partition, slow_steps=slow, fast_steps=fast)),
            backbone.schedule(pixels, pixels),
        )
        for steps, (slow, fast) in split.items()
    }


def train_seconds(backbone: Backbone, trajectories: Trajectories, partition: Partition, steps: int) -> float:
    """Median seconds of a train step of the slow adapter with gradient checkpointing; removes the adapter again."""
    settings = TrainingSettings(
        objective="trajectory",
        rank=RANK,
        alpha=RANK,
        targets="attention",
        batch=1,
        anchor_batch=1,
        precision="bf16",
        learning_rate=1e-4,
        train_steps=steps + 1,
        seed=0,
    )
    job = Job(
        name="slow",
        steps=trajectories.pairs(partition.u)[: len(partition.slow.steps)],
        settings=settings,
        guidance_scale=3.5,
        true_cfg_scale=1.0,
    )
    backbone.transformer.enable_gradient_checkpointing()
    times, start = [], time.perf_counter()
    for _ in loop.train(backbone, trajectories, job):
        times.append(time.perf_counter() - start)
        start = time.perf_counter()
    backbone.transformer.disable_gradient_checkpointing()
    backbone.transformer.unload_lora()
    return statistics.median(times[1:])


def measure(name: str, kind: str, small: bool, pixels: int, repeats: int, device: torch.device) -> dict:
    """All figures of one model at one quantisation."""
    model = MODELS[name]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_teacher(model, folder / "teacher", small, device)
        gc.collect()
        teacher = Teacher(path=folder / "teacher", dtype="bf16", quantization=kind)
        backbone = backbones.load(teacher, device, ("transformer",))
        peak_gib(device)
        grid = backbone.grid(pixels, pixels)
        prompts = conditioning(model, 1), conditioning(model, 1)
        positive, velocity = (
            base.guided(backbone, *prompts, guidance_scale=3.5, true_cfg_scale=scale, grid=grid)
            for scale in (1.0, model.true_cfg_scale)
        )
        noise, paths = backbone.noise([0], pixels, pixels), partitions(backbone, pixels)
        ids = next(iter(paths.values()))

        def run(field: Callable[[Tensor, Tensor], Tensor], plan, select=lambda name: None) -> Callable[[], object]:
            def call() -> Tensor:
                with torch.inference_mode():
                    return sample_plan(field, noise, plan, select)

            return call

        teacher_plan = fixed_plan(backbone.schedule(pixels, pixels).sigmas(base_levels(STEPS)))
        row = {
            "model": name,
            "quantization": kind,
            "small": small,
            "pixels": pixels,
            "parameters": sum(weight.numel() for weight in backbone.skeleton().parameters()),
            "nfe": STEPS * forwards(model.true_cfg_scale),
            "teacher_s": seconds(run(velocity, teacher_plan), device, max(1, repeats // 3)),
            "sampling_peak_gib": peak_gib(device),
        }
        row["train_step_s"] = train_seconds(backbone, write_cache(model, backbone, folder, pixels), ids, 2 * repeats)
        row["training_peak_gib"] = peak_gib(device)
        for steps, path in paths.items():
            bare = fixed_plan(two_phase_plan(path).sigmas)
            row[f"base_{steps}_s"] = seconds(run(positive, bare), device, repeats)
            states = {phase: random_adapter(backbone, seed) for seed, phase in enumerate(("slow", "fast"))}
            for how, fused in (("fused", True), ("unfused", False)):
                if fused and not switching.fusable(backbone.transformer):
                    row[f"student_{steps}_{how}_s"] = None
                    continue
                with switching.acting(backbone.transformer, states, fused) as select:
                    row[f"student_{steps}_{how}_s"] = seconds(
                        run(positive, two_phase_plan(path), select), device, repeats
                    )
        student = row["student_8_fused_s"] or row["student_8_unfused_s"]
        trained = row["teacher_s"] + 2 * 240 * row["train_step_s"]
        row["break_even_images"] = trained / (row["teacher_s"] - student)
        return row


def random_adapter(backbone: Backbone, seed: int, rank: int = RANK, targets: str = "attention") -> adapters.State:
    """An adapter with random A and B."""
    adapters.add(backbone, "random", rank, rank, targets, seed)
    state = adapters.state(backbone.transformer, "random")
    backbone.transformer.unload_lora()
    return {key: torch.randn_like(tensor) * 1e-3 for key, tensor in state.items()}


def machine_name(device: torch.device) -> str:
    """The name of the device, in words."""
    cpu = f"CPU {platform.machine()}, {torch.get_num_threads()} threads"
    return torch.cuda.get_device_name(device) if device.type == "cuda" else cpu


KEY = ("model", "quantization", "pixels", "small")
COLUMNS = {
    "model": "model",
    "quantization": "weights",
    "pixels": "pixels",
    "teacher_s": "teacher, 50 steps: s an image",
    "train_step_s": "s a train step",
    "training_peak_gib": "peak of training, GiB",
    "sampling_peak_gib": "peak of sampling, GiB",
    "base_8_s": "base, 8 forwards: s",
    "student_8_fused_s": "8 steps fused: s",
    "student_8_unfused_s": "8 steps unfused: s",
    "student_4_fused_s": "4 steps fused: s",
    "break_even_images": "images to break even",
}


def table(results: dict[str, list[dict]]) -> str:
    """docs/measured/gpu.md."""
    lines = [
        "# What a full-size teacher costs",
        "",
        "Generated by `python -m measurements.gpu` from gpu.json: random weights in the published configurations,",
        "batch 1, bfloat16, rank 16, gradient checkpointing in training. Breaking even compares the cost of one",
        "recorded prompt and 2 x 240 train steps with the seconds that a student image saves. Rows marked *small* have",
        "a few layers and heads: they show that the script runs, not what a model costs.",
    ]
    return "\n".join([*lines, *machine_tables(results, COLUMNS, _cell)]) + "\n"


def machine_tables(
    results: dict[str, list[dict]], columns: dict[str, str], cell: Callable[[dict, str], str]
) -> list[str]:
    """The lines of a table per machine; `columns` maps keys of a row to table heads, `cell` formats a value."""
    lines = []
    for machine, rows in sorted(results.items()):
        lines += ["", f"## {machine}", "", f"| {' | '.join(columns.values())} |", f"|{' --- |' * len(columns)}"]
        lines += [f"| {' | '.join(cell(row, key) for key in columns)} |" for row in rows]
    return lines


def keep(file: Path, machine: str, row: dict, key: tuple[str, ...]) -> dict[str, list[dict]]:
    """Writes a row into a file, replacing the machine's row with the same values of `key`; returns all rows."""
    results = json.loads(file.read_text()) if file.exists() else {}
    others = [other for other in results.get(machine, []) if any(other[name] != row[name] for name in key)]
    results[machine] = [*others, row]
    artifacts.write_json(file, results)
    return results


def _cell(row: dict, key: str) -> str:
    value = row[key]
    if key == "model" and row["small"]:
        return f"{value} (*small*)"
    if value is None:
        return "-"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


@click.command()
@click.option(
    "--model", "names", multiple=True, type=click.Choice(list(MODELS)), default=tuple(MODELS), show_default=True
)
@click.option("--kind", "kinds", multiple=True, type=click.Choice(["none", "int8", "fp8", "nf4"]), default=("none",))
@click.option("--small", is_flag=True, help="A few layers and heads only.")
@click.option("--pixels", default=1024, show_default=True)
@click.option("--repeats", default=5, show_default=True)
@click.option("--device", default="auto", show_default=True)
@click.option("--docs", type=click.Path(path_type=Path), default=DOCS, show_default=True)
def main(
    names: tuple[str, ...], kinds: tuple[str, ...], small: bool, pixels: int, repeats: int, device: str, docs: Path
) -> None:
    """Measures models and writes the table."""
    place = backbones.resolve_device(device)
    for name in names:
        for kind in kinds:
            row = measure(name, kind, small, pixels, repeats, place)
            click.echo(json.dumps(row))
            results = keep(docs / "gpu.json", machine_name(place), row, KEY)
    (docs / "gpu.md").write_text(table(results), encoding="utf-8")


if __name__ == "__main__":
    main()
