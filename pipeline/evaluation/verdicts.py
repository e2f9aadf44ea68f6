"""Where the student stands against the free ways to use its teacher, in sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pipeline.evaluation.arms import PRODUCT, Arm

RIVALS = ("base_unguided", "base_guided_equal_cost", "base_guided")
PAIRED = {"score": "score", "psnr": "PSNR", "ssim": "SSIM"}


def verdicts(metrics: Mapping, arms: Sequence[Arm]) -> list[tuple[str, str]]:
    """One sentence per rival with "won", "lost" or "open" before it.

    A paired metric is ahead or behind where its 95 % interval excludes 0; `fd_scenes`, which has no interval, where it
    is lower or higher.

    Args:
        metrics: The content of metrics.json.
        arms: Their titles.
    """
    titles = {arm.name: arm.title for arm in arms}
    found = []
    for name in RIVALS:
        places: dict[str, list[str]] = {"ahead": [], "no clear difference": [], "behind": []}
        for metric, label in PAIRED.items():
            gap = metrics["comparisons"][name].get(metric)
            if gap is not None:
                place = "ahead" if gap["low"] > 0 else "behind" if gap["high"] < 0 else "no clear difference"
                places[place].append(label)
        distances = metrics["arms"][name]["fd_scenes"], metrics["arms"][PRODUCT]["fd_scenes"]
        if None not in distances:
            places["ahead" if distances[1] < distances[0] else "behind"].append("fd_scenes")
        used = [place for place, labels in places.items() if labels]
        outcomes: dict[tuple[str, ...], str] = {("ahead",): "won", ("behind",): "lost"}
        outcome = outcomes.get(tuple(used), "open")
        words = "; ".join(f"{place} in {', '.join(places[place])}" for place in used)
        found.append((outcome, f"Against “{titles[name]}” ({metrics['arms'][name]['nfe']} forwards): {words}."))
    return found
