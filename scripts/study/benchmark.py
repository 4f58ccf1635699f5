"""Comparisons in time, each against a plain way of doing the same work and with a check that it is the same.

    python scripts/study/benchmark.py teacher student metric noising
    python scripts/study/benchmark.py memory --json memory.json
    python scripts/study/benchmark.py teacher-150 --device cuda --amp bf16

On a CPU one thread's processor time (the clock that neighbours on a shared machine disturb least), on a GPU the time of
day; in alternation, and the median of the rounds counts. A new comparison is a function that returns a Comparison, and
a line in COMPARISONS.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from utils.environment import require_packages

require_packages()

import torch

from engine.logger import describe_environment
from engine.runtime import start_runtime
from scripts.study.analysis.style import save_json
from scripts.study.benchmarks.memory import memory
from scripts.study.benchmarks.parts import metric, noising
from scripts.study.benchmarks.samples import loader
from scripts.study.benchmarks.scaling import scaling
from scripts.study.benchmarks.steps import student, teacher
from scripts.study.benchmarks.timing import BenchmarkConfig, Comparison
from utils.errors import lookup, run_main
from utils.options import parse_flags

LIGHT = ("tf_efficientnet_lite0", "mobilenetv2_100")
COMPARISONS: dict[str, Callable[[BenchmarkConfig, torch.device], Comparison]] = {
    "loader": loader,
    **{f"noising-{k}": partial(noising, k) for k in (21, 171)},
    **{f"metric-{k}": partial(metric, k) for k in (21, 171)},
    **{f"teacher-{k}": partial(teacher, k) for k in (21, 150)},
    **{f"student-{k}": partial(student, k) for k in (21, 150)},
    **{f"light-{backbone}": partial(teacher, 21, backbone=backbone) for backbone in LIGHT},
    **{f"memory-{k}": partial(memory, k) for k in (21, 150)},
    "scaling": scaling,
}


def main(argv: Sequence[str] | None = None) -> None:
    config = BenchmarkConfig(**parse_flags(BenchmarkConfig, __doc__, argv))
    torch.set_num_threads(1)
    known = dict.fromkeys(name.partition("-")[0] for name in COMPARISONS) | COMPARISONS  # "teacher" is all of them
    for item in config.only:
        lookup(known, item, "comparison")
    wanted, results = set(config.only or COMPARISONS), {}
    with start_runtime(config) as runtime:
        for name in (name for name in COMPARISONS if wanted & {name, name.partition("-")[0]}):
            results[name] = COMPARISONS[name](config, runtime.device)
            print("\n".join(results[name].lines()), flush=True)
        header = {"environment": describe_environment(runtime.device)}
    if config.json:
        save_json(header | {name: asdict(result) for name, result in results.items()}, Path(config.json))


if __name__ == "__main__":
    run_main(main)
