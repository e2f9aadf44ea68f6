"""The training losses that the report draws."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

History = list[tuple[int, float]]
"""(train_step, loss)."""


def read(slow: Path, fast: Path, controls: Path) -> dict[str, History]:
    """The losses of every adapter from the history.csv of its stage; a stage without this file gives no losses."""
    found: dict[str, History] = {}
    for name, folder in (("slow", slow), ("fast", fast), ("", controls)):
        file = folder / "history.csv"
        frame = pd.read_csv(file, encoding="utf-8") if file.is_file() else pd.DataFrame()
        if frame.empty:
            continue
        groups = frame.groupby("arm", sort=False) if "arm" in frame else [(name, frame)]
        for arm, rows in groups:
            found[str(arm)] = list(zip(rows["train_step"].tolist(), rows["loss"].tolist(), strict=True))
    return found
