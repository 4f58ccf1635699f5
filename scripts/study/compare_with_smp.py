"""Compare the recipe `light` with a plain loop around segmentation_models_pytorch, at equal processor time.

    python scripts/study/compare_with_smp.py --dataset camvid --data data/camvid_half --crop-size 160 192
    python scripts/study/compare_with_smp.py --dataset folder --data data/labelmefacade --crop-size 160 160

Seed by seed, the recipe is trained for --iterations; then plain_smp.py trains each decoder of the library for the
processor time that the recipe's training took. Every run uses one thread. Started again, what is finished in --output
is not done again. The table at the end is printed, and --output/record.json holds its numbers.
"""

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from utils.environment import require_packages

require_packages()

from scripts.study.analysis.text import format_markdown_table, format_mean_std
from scripts.study.experiments.tables import Table
from utils.entry import run_main
from utils.errors import UserError
from utils.files import write_text
from utils.options import option, parse_flags


@dataclass(frozen=True)
class SmpComparisonConfig:
    """Hold the settings of compare_with_smp.py."""

    dataset: str = option("camvid", "data set")
    data: str = option("", "root folder of the data set")
    crop_size: tuple[int, int] = option((160, 192), "height and width of a training crop", minimum=32)
    iterations: int = option(600, "iterations of the recipe", minimum=1)
    decoders: tuple[str, ...] = option(("fpn", "deeplabv3plus", "unet"), "the library's names of decoders")
    seeds: tuple[int, ...] = option((0, 1, 2), "seeds", minimum=0)
    output: str = option("", "folder of the runs (default: runs/smp_<dataset>)")


class Trained(NamedTuple):
    """A training: its score, 0 to 1, and the processor time that it took."""

    miou: float
    iterations: int
    seconds: float


def run_script(script: str, *flags: object) -> None:
    """Run a script of this project on one thread.

    Raises:
        UserError: the script failed. Its own message is above.
    """
    command = [sys.executable, str(ROOT / script), *map(str, flags)]
    done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"})
    if done.returncode:
        raise UserError(f"{script} failed: {' '.join(command[1:])}")


def train_recipe(config: SmpComparisonConfig, seed: int, folder: Path) -> Trained:
    """Train the recipe, if that is not done."""
    flags = ["--recipe", "light", "--dataset", config.dataset, "--data", config.data, "--kd", "none"]
    flags += ["--crop-size", *config.crop_size, "--max-iterations", config.iterations, "--skip-val"]
    flags += ["--device", "cpu"]  # as the plain loop
    run_script("train_student.py", *flags, "--seed", seed, "--workers", 0, "--save-dir", folder, "--resume", "auto")
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    seconds = sum(record.get("cpu_seconds", 0) for record in records if record["event"] == "train")
    scores = [record["miou"] for record in records if record["event"] == "val"]
    return Trained(scores[-1], config.iterations, seconds)


def train_plain(config: SmpComparisonConfig, decoder: str, seed: int, seconds: float, file: Path) -> Trained:
    """Train the plain loop, if that is not done."""
    if not file.is_file():
        flags = ["--dataset", config.dataset, "--data", config.data, "--crop-size", *config.crop_size]
        flags += ["--decoder", decoder, "--seed", seed, "--seconds", seconds, "--json", file]
        run_script("scripts/study/plain_smp.py", *flags)
    result = json.loads(file.read_text(encoding="utf-8"))
    return Trained(result["miou"], result["iterations"], result["seconds"])


def make_table(ways: Mapping[str, Sequence[Trained]]) -> Table:
    """Return head and rows: each way's mIoU over the seeds, and by how much the first way is ahead of it.

    ways: name -> its trainings, one for each seed. The first is the recipe.
    """
    recipe, *_ = ways
    rows = []
    for name, trained in ways.items():
        gains = [100 * (own.miou - other.miou) for own, other in zip(ways[recipe], trained, strict=True)]
        by_seed = ", ".join(f"{gain:+.2f}" for gain in gains)
        ahead = "" if name == recipe else f"{statistics.mean(gains):+.2f} ({by_seed})"
        iterations = statistics.mean(one.iterations for one in trained)
        minutes = statistics.mean(one.seconds for one in trained) / 60
        score = f"{format_mean_std([one.miou for one in trained])} ({len(trained)})"
        rows.append([name, score, f"{iterations:.0f}", f"{minutes:.1f}", ahead])
    head = ["training", "mIoU % (seeds)", "iterations", "minutes of one core", "the recipe is ahead by (each seed)"]
    return head, rows


def make_table_of_record(file: Path) -> Table:
    """Make the table of a finished comparison from its record.

    Raises:
        UserError: the file is no record of this script.
    """
    try:
        ways = json.loads(file.read_text(encoding="utf-8"))["ways"]
        trained = {name: [Trained(**one) for one in several] for name, several in ways.items()}
        return make_table(trained)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, statistics.StatisticsError) as error:
        raise UserError(f"{file} is no record of compare_with_smp.py: {error}") from error


def main(argv: Sequence[str] | None = None) -> None:
    config = SmpComparisonConfig(**parse_flags(SmpComparisonConfig, __doc__, argv))
    output = Path(config.output or f"runs/smp_{config.dataset}").expanduser()
    ways: dict[str, list[Trained]] = {}
    for seed in config.seeds:
        own = train_recipe(config, seed, output / f"light-{seed}")
        ways.setdefault("this project, recipe `light`", []).append(own)
        for decoder in config.decoders:
            other = train_plain(config, decoder, seed, own.seconds, output / f"{decoder}-{seed}.json")
            ways.setdefault(f"plain loop, {decoder}", []).append(other)
    print(format_markdown_table(*make_table(ways)), end="")
    trained = {name: [one._asdict() for one in several] for name, several in ways.items()}
    record = {"config": asdict(config), "ways": trained}
    write_text(output / "record.json", json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    run_main(main)
