"""Time this project's way of training and evaluation against the LAD release's, after checking that both agree.

    python scripts/study/benchmark.py teacher student metric noising
    python scripts/study/benchmark.py teacher-150 --device cuda --amp bf16 --compile

On a CPU, the processor time of one thread is measured, which other programs disturb least; on a GPU, the time of day.
The ways take turns, and the median of the rounds counts. A step has 2 images of 256x256 on a CPU, and 16 images of
512x512 on a GPU. A new comparison is a function that returns a Comparison, and a line in COMPARISONS.
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

from engine.machine import describe_environment
from engine.runtime import start_runtime
from scripts.study.analysis.output import save_json
from scripts.study.benchmarks.comparison import BenchmarkConfig, Comparison
from scripts.study.benchmarks.data import compare_loaders, compare_noising, compare_scores
from scripts.study.benchmarks.steps import compare_students, compare_teachers
from utils.entry import run_main
from utils.errors import require_known
from utils.options import parse_flags

LIGHT = ("tf_efficientnet_lite0", "mobilenetv2_100")
COMPARISONS: dict[str, Callable[[BenchmarkConfig, torch.device], Comparison]] = {
    "loader": compare_loaders,
    **{f"noising-{k}": partial(compare_noising, k) for k in (21, 171)},
    **{f"metric-{k}": partial(compare_scores, k) for k in (21, 171)},
    **{f"teacher-{k}": partial(compare_teachers, k) for k in (21, 150)},
    **{f"student-{k}": partial(compare_students, k) for k in (21, 150)},
    **{f"light-{backbone}": partial(compare_teachers, 21, backbone=backbone) for backbone in LIGHT},
}


def main(argv: Sequence[str] | None = None) -> None:
    config = BenchmarkConfig(**parse_flags(BenchmarkConfig, __doc__, argv))
    torch.set_num_threads(1)
    known = dict.fromkeys(name.partition("-")[0] for name in COMPARISONS) | COMPARISONS  # "teacher" is all of them
    for item in config.only:
        require_known(item, known, "comparison")
    wanted = set(config.only or COMPARISONS)
    results = {}
    with start_runtime(config) as runtime:
        for name, compare in COMPARISONS.items():
            kind = name.partition("-")[0]
            if name in wanted or kind in wanted:
                results[name] = compare(config, runtime.device)
                print("\n".join(results[name].format_lines()), flush=True)
        header = {"environment": describe_environment(runtime.device)}
    if config.json:
        save_json(header | {name: asdict(result) for name, result in results.items()}, Path(config.json).expanduser())


if __name__ == "__main__":
    run_main(main)
