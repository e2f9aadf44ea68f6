"""The benchmark of the shipped world: held-out captions of scenes, and a checker that reads the images back."""

from __future__ import annotations

from pipeline.evaluation.benchmarks import PAIRED, PLAIN, Benchmark, Column

RETENTION = Column(
    "retention",
    "retention",
    1,
    "%",
    better="higher",
    interval=True,
    headline=True,
    note="Retention is an arm's checker score over the teacher's, with 95 % intervals from a paired bootstrap over"
    " prompts; the line in the bars is the teacher.",
)
SCENES = Benchmark(
    "scenes",
    (
        Column("nfe", "forwards", 0, better="lower", headline=True),
        RETENTION,
        Column("score", "score", 1, "%", better="higher", interval=True, compared=PAIRED, headline=True, ablated=False),
        Column("psnr", "PSNR", 1, "dB", better="higher", compared=PAIRED),
        Column(
            "ssim",
            "SSIM",
            3,
            better="higher",
            compared=PAIRED,
            note="PSNR and SSIM compare with the teacher's image of the same prompt and noise.",
        ),
        Column(
            "fd_scenes",
            "fd_scenes",
            3,
            better="lower",
            compared=PLAIN,
            note="fd_scenes is a Fréchet distance to the teacher's images over colour, outline and sharpness"
            " statistics: not FID, and lower is better.",
        ),
        Column(
            "diversity",
            "diversity",
            2,
            note="Diversity is the spread over seeds of one prompt as a ratio to the teacher's.",
        ),
    ),
    RETENTION,
)
