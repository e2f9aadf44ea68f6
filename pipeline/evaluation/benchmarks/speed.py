"""The columns from latency.json, which every benchmark shows."""

from __future__ import annotations

from pipeline.evaluation.benchmarks import Column

SPEED = (
    Column(
        "speedup_batch1",
        "speed-up, batch 1",
        1,
        "×",
        better="higher",
        headline=True,
        note="Speed-up is end to end, the teacher's time over the arm's.",
    ),
    Column("speedup_batch16", "speed-up, batch 16", 1, "×", better="higher"),
)
