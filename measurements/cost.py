"""Times recording, training and evaluation on this machine, and predicts the cost for larger models.

    python -m measurements.cost              # the shipped teacher: about three minutes on two quiet cores
    python -m measurements.cost --quick      # seconds for each part, to see that the script runs

All timed code is the pipeline's own. The figures go to docs/measured/cost.json. The page cost.md and its plot cost.png
are made from cost.json alone.
"""

import resource
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import click
import torch

from measurements import cost_page
from measurements.cost_model import GUIDANCE, Flops, count, published_work, work
from measurements.gpu import DOCS, MODELS, ROOT, machine_name, random_adapter, seconds
from pipeline import artifacts, backbones, params
from pipeline.backbones.base import Backbone
from pipeline.evaluation import arms, latency, recipes
from pipeline.evaluation.sampler import Sampler
from pipeline.evaluation.scores import appearance, exam, frechet, metrics
from pipeline.evaluation.weights import ArmWeights
from pipeline.flow.schedule import base_levels
from pipeline.params import Params
from pipeline.partition import compute, two_phase_plan
from pipeline.recording.record import encode, publish, record
from pipeline.recording.trajectories import Recording, Trajectories
from pipeline.scenes import captions
from pipeline.training import loop
from pipeline.training.jobs import Job, TrainingSettings

PIXELS = (32, 64, 96, 128)
SHORT_STEPS = 10
TIMED = ("teacher", "base_guided", "student")


class Bench:
    """The shipped teacher and parameters, and the FLOPs of a forward at each resolution."""

    def __init__(self, shipped: Params, folder: Path, device: torch.device, quick: bool):
        self.shipped, self.folder, self.device, self.quick = shipped, folder, device, quick
        self.backbone: Backbone = backbones.load(
            replace(shipped.teacher.base, path=ROOT / shipped.teacher.path), device
        )
        prompted = self.backbone.encode(["a red star on black"], shipped.teacher.max_sequence_length)
        self.flops: dict[int, Flops] = {size: count(self.backbone, prompted, size, size) for size in self.sizes}

    @property
    def sizes(self) -> tuple[int, ...]:
        """Heights and widths in pixels."""
        return PIXELS[: 2 if self.quick else None]

    @property
    def shard(self) -> int:
        """Trajectories per call."""
        return 16 if self.quick else self.shipped.trajectories.shard_size

    def clock(self) -> float:
        """Seconds, after the device has finished its queued work."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def tokens(self, pixels: int) -> int:
        """Image tokens."""
        return self.backbone.latent_shape(pixels, pixels)[0]

    def recorded(self, texts: int, seeds: int, steps: int, pixels: int) -> tuple[dict, Path]:
        """Records as `cache_trajectories` does; returns the row and the cache."""
        asked = Recording.from_params(self.shipped, captions.sample("train", texts, 0))
        levels = tuple(base_levels(steps).tolist())
        asked = replace(asked, seeds_per_prompt=seeds, shard_size=self.shard, levels=levels)
        asked = replace(asked, height=pixels, width=pixels)
        name = f"{texts}-{seeds}-{steps}-{pixels}"
        scratch, cache = self.folder / f"scratch-{name}", self.folder / name
        start = self.clock()
        encode(self.backbone, asked, scratch)
        encoded = self.clock()
        for _ in record(self.backbone, asked, scratch):
            pass
        publish(asked, self.backbone.schedule(pixels, pixels), "none", scratch, cache)
        row = {"prompts": texts, "seeds": seeds, "steps": steps, "pixels": pixels, "tokens": self.tokens(pixels)}
        forwards = len(asked) * asked.nfe
        row |= {"trajectories": len(asked), "forwards": forwards, "calls": len(asked.ranges) * asked.nfe}
        row |= {"flops": forwards * self.flops[pixels].forward, "encode_s": encoded - start}
        return row | {"seconds": self.clock() - encoded, "peak_mib": peak_mib()}, cache

    def recording(self) -> tuple[list[dict], dict[int, Path]]:
        """The rows and a cache of each resolution. Rows are in order of memory, since a process's peak never falls."""
        rows, caches, some = [], {}, self.shard
        full = 2 * SHORT_STEPS if self.quick else Recording.from_params(self.shipped, ()).steps
        self.recorded(8, 1, 2, self.shipped.teacher.height)  # a warm-up
        settings = [(some * many, seeds, SHORT_STEPS) for many, seeds in ((1, 1), (4, 1), (2, 1), (1, 2), (1, 4))]
        for texts, seeds, steps in [*settings, (some, 1, full // 2), (some, 1, full)]:
            row, _ = self.recorded(texts, seeds, steps, self.shipped.teacher.height)
            rows.append(row)
        for pixels in self.sizes:
            row, caches[pixels] = self.recorded(some, 1, SHORT_STEPS // 2, pixels)
            rows.append(row)
        return rows, caches

    def trained(self, cache: Path, batch: int, steps: int, pixels: int) -> list[dict]:
        """Trains as `train_slow` does; returns rows of all steps after the first, and of the first half of them."""
        settings = TrainingSettings.of(self.shipped.training, self.shipped.train_slow)
        job = Job(
            name="slow",
            steps=((0, 1), (1, 2), (2, 3)),
            settings=replace(settings, batch=batch, train_steps=steps + 1),
            guidance_scale=GUIDANCE,
            true_cfg_scale=self.shipped.student.true_cfg_scale,
        )
        times = []
        for _ in loop.train(self.backbone, Trajectories(cache, verify=False), job):
            times.append(self.clock())
        self.backbone.transformer.unload_lora()
        row = {"batch": batch, "pixels": pixels, "tokens": self.tokens(pixels)}
        return [
            {**row, "train_steps": n, "calls": n, "flops": n * batch * self.flops[pixels].merged_step}
            | {"seconds": times[n] - times[0]}
            for n in sorted({max(1, steps // 2), steps})
        ]

    def training(self, caches: dict[int, Path]) -> list[dict]:
        """Rows for every resolution and batch; the shipped resolution and batch train more steps."""
        shipped, rows = self.shipped.training.batch, []
        for pixels, cache in caches.items():
            for batch in (shipped // 4, shipped):
                own = pixels == self.shipped.teacher.height and batch == shipped
                rows += self.trained(cache, batch, 2 if self.quick else 20 if own else 4, pixels)
        return rows

    def images(self) -> list[dict]:
        """Seconds of a batch of images of an arm, timed as in the evaluation."""
        teacher, backbone, rows = self.shipped.teacher, self.backbone, []
        lora = self.shipped.training
        states = {name: random_adapter(backbone, i, lora.rank, lora.targets) for i, name in enumerate(("slow", "fast"))}
        weights = ArmWeights(backbone.transformer, states)
        texts = captions.sample("evaluation", 16, 0)
        for pixels in self.sizes[1::2]:
            schedule = backbone.schedule(pixels, pixels)
            student = two_phase_plan(compute(self.shipped, schedule))
            conditions = recipes.Conditions(
                schedule=schedule,
                teacher_steps=teacher.steps,
                student=student,
                teacher_scale=teacher.true_cfg_scale,
                student_scale=self.shipped.student.true_cfg_scale,
                rivals=(),
                free=(),
                swaps=(),
            )
            every = arms.build(conditions)
            chosen = [arm for arm in every if arm.name in TIMED]
            how = pixels, pixels, teacher.max_sequence_length, teacher.guidance_scale, teacher.negative_prompt
            sampler = Sampler(backbone, weights, *how)
            for batch in (1, 16):
                seeds = range(batch)

                def timed(arm: arms.Arm, sampler=sampler, seeds=seeds) -> latency.Work:
                    return latency.Work(
                        prepare=lambda: weights.hold(arm.plan.adapters),
                        encode=lambda n: sampler.encode(arm, texts[: len(seeds)]),
                        loop=lambda prompted: sampler.denoise(arm, prompted, seeds),
                        decode=sampler.decode,
                    )

                repeats = 3 if pixels == teacher.height and not self.quick else 1
                took = latency.measure({arm.name: timed(arm) for arm in chosen}, repeats, self.clock)
                rows += [
                    {"arm": arm.name, "nfe": arm.nfe, "batch": batch, "pixels": pixels, "tokens": self.tokens(pixels)}
                    | {"calls": arm.nfe, "flops": arm.nfe * batch * self.flops[pixels].forward}
                    | {"seconds": took[arm.name].loop_ms / 1e3, "total_s": took[arm.name].total_ms / 1e3}
                    for arm in chosen
                ]
        weights.hold(())
        return rows

    def around(self) -> dict[str, float]:
        """Seconds per image for the parts of an evaluation around the forwards, at the evaluation's batch."""
        teacher, batch = self.shipped.teacher, self.shipped.evaluation.batch
        asked = exam.of(captions.sample("evaluation", batch, 0), 0, teacher.height, teacher.width)
        x, made = self.backbone.noise(range(batch), teacher.height, teacher.width), None

        def decode() -> None:
            nonlocal made
            made = self.backbone.decode(x, teacher.height, teacher.width).numpy()

        def compare() -> None:
            metrics.psnr(made, made), metrics.ssim(made, made), frechet.features(made), appearance.appearance(made)

        parts: dict[str, Callable[[], object]] = {
            "encode": lambda: self.backbone.encode(asked.prompts, teacher.max_sequence_length),
            "decode": decode,
            "check": lambda: asked.judge(made, asked.prompts),
            "compare": compare,
        }
        return {name: seconds(part, self.device, 3) / batch for name, part in parts.items()}


def peak_mib() -> float:
    """Peak of this process's main memory so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(device: torch.device, quick: bool) -> dict:
    """Every figure of the page."""
    start, shipped = time.perf_counter(), params.load(ROOT / "params.yaml")
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(shipped, Path(folder), device, quick)
        recording, caches = bench.recording()
        measured = {"recording": recording, "training": bench.training(caches), "images": bench.images()}
        around = bench.around()
    trajectories = shipped.trajectories.prompts * shipped.trajectories.seeds_per_prompt
    return {
        "machine": machine_name(device),
        "quick": quick,
        "text_tokens": shipped.teacher.max_sequence_length,
        **measured,
        "around": around,
        "shipped": {
            "trajectories": trajectories,
            "batch": shipped.training.batch,
            "pixels": shipped.teacher.height,
            **work(bench.backbone, shipped),
        },
        "published": {name: published_work(name) for name in MODELS},
        "seconds": time.perf_counter() - start,
    }


@click.command()
@click.option("--quick", is_flag=True, help="Fewer and smaller measurements.")
@click.option("--device", default="auto", show_default=True)
@click.option("--docs", type=click.Path(path_type=Path), default=DOCS, show_default=True)
def main(quick: bool, device: str, docs: Path) -> None:
    """Measures the pipeline and writes the page."""
    figures = measure(backbones.resolve_device(device), quick)
    artifacts.write_json(docs / "cost.json", figures)
    (docs / "cost.md").write_text(cost_page.page(figures), encoding="utf-8")
    cost_page.draw(figures, docs / "cost.png")
    click.echo(f"{docs / 'cost.md'}, after {figures['seconds']:.0f} s")


if __name__ == "__main__":
    main()
