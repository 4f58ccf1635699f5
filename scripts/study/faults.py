"""Break runs and see what is lost: a table of faults, how often each was tried, and how often nothing was lost.

    python scripts/study/faults.py                                   # all of them: hours on a CPU
    python scripts/study/faults.py --only sigkill_teacher --tries 20
    python scripts/study/faults.py --tries 1 --iterations 2000

Small networks on the built-in data, on the CPU. "Nothing is lost": the run ends as the fault demands, no process is
left behind, and what continues it reaches the weights, the optimizer state and the losses of a run without a fault, to
the last bit.
"""

import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from utils.environment import require_packages

require_packages()

from scripts.study.breaking.bench import Bench, Lost
from scripts.study.breaking.faults import FAULTS, soak
from utils.errors import UserError, lookup, run_main
from utils.options import option, parse_flags


@dataclass(frozen=True)
class FaultsConfig:
    only: tuple[str, ...] = option((), "names of faults", positional=True)
    tries: int = option(20, "of each fault", minimum=1)
    iterations: int = option(40000, "of the long run that is watched for growth", minimum=1000)
    seed: int = option(0, "of the moments and places", minimum=0)


def main(argv: Sequence[str] | None = None) -> None:
    config = FaultsConfig(**parse_flags(FaultsConfig, __doc__, argv))
    known = {**FAULTS, "soak": ("a long run", partial(soak, iterations=config.iterations))}
    chosen = {name: lookup(known, name, "fault") for name in config.only} or known
    failed = 0
    print("| fault | tries | survived |\n|---|---|---|")
    with tempfile.TemporaryDirectory(prefix="faults") as folder:
        bench = Bench(Path(folder), config.seed)
        for name, (text, fault) in chosen.items():
            tries, survived, figures = 1 if name == "soak" else config.tries, 0, ""
            for number in range(tries):
                try:
                    figures = fault(bench) or ""
                    survived += 1
                except (Lost, TimeoutError, UserError) as error:
                    print(f"{name}, try {number + 1}: {error}", file=sys.stderr, flush=True)
            failed += tries - survived
            print(f"| {text}{figures and f' ({figures})'} | {tries} | {survived} |", flush=True)
    if failed:
        raise SystemExit(1)


if __name__ == "__main__":
    run_main(main)
