"""Every official benchmark, by its name."""

from __future__ import annotations

from pipeline import names
from pipeline.evaluation.benchmarks.coco import COCO
from pipeline.evaluation.benchmarks.dpg import DPG
from pipeline.evaluation.benchmarks.geneval import GENEVAL
from pipeline.evaluation.benchmarks.hpsv2 import HPSV2
from pipeline.evaluation.benchmarks.longtext import LONGTEXT, LONGTEXT_ZH
from pipeline.evaluation.benchmarks.official import OfficialBenchmark
from pipeline.evaluation.benchmarks.oneig import ONEIG, ONEIG_ZH
from pipeline.evaluation.benchmarks.selftest import SELFTEST

BENCHMARKS: dict[str, OfficialBenchmark] = {
    "coco": COCO,
    "dpg": DPG,
    "geneval": GENEVAL,
    "hpsv2": HPSV2,
    "longtext": LONGTEXT,
    "longtext_zh": LONGTEXT_ZH,
    "oneig": ONEIG,
    "oneig_zh": ONEIG_ZH,
    "selftest": SELFTEST,
}


def find(name: str) -> OfficialBenchmark:
    """A benchmark by its name. Raises ValueError with the nearest name where there is none."""
    names.check("the benchmark", name, list(BENCHMARKS))
    return BENCHMARKS[name]
