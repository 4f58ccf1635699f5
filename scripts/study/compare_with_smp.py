"""Compare the recipe `light` with a plain loop around segmentation_models_pytorch, at equal processor time.

    python scripts/study/compare_with_smp.py --dataset camvid --data data/camvid_half --crop-size 160 192
    python scripts/study/compare_with_smp.py --dataset folder --data data/labelmefacade --crop-size 160 160

Seed by seed, the recipe is trained for --iterations; then plain_smp.py trains each decoder of the library for the
processor time that the recipe's training took. Every run uses one thread. Started again, what is finished in --output
is not done again. The table at the end goes to --output too.
"""

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from utils.environment import require_packages

require_packages()

from scripts.study.analysis import style
from utils.errors import UserError, run_main
from utils.files import write_text
from utils.options import option, parse_flags


@dataclass(frozen=True)
class CompareConfig:
    dataset: str = option("camvid", "data set")
    data: str = option("", "root folder of the data set")
    crop_size: tuple[int, int] = option((160, 192), "height and width of a training crop", minimum=32)
    iterations: int = option(600, "iterations of the recipe", minimum=1)
    decoders: tuple[str, ...] = option(("fpn", "deeplabv3plus", "unet"), "the library's names of decoders")
    seeds: tuple[int, ...] = option((0, 1, 2), "seeds", minimum=0)
    output: str = option("", "folder of the runs (default: runs/smp_<dataset>)")


def run(script: str, *flags: object) -> None:
    """Run a script of this project on one thread.

    Raises:
        UserError: it failed; its own message is above.
    """
    command = [sys.executable, str(ROOT / script), *map(str, flags)]
    if subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}).returncode:
        raise UserError(f"{script} failed: {' '.join(command[1:])}")


def train_recipe(config: CompareConfig, seed: int, folder: Path) -> tuple[float, float]:
    """Train the recipe, if that is not done. Return its mIoU and the processor seconds of its training."""
    flags = ["--recipe", "light", "--dataset", config.dataset, "--data", config.data, "--kd", "none"]
    flags += ["--crop-size", *config.crop_size, "--max-iterations", config.iterations, "--skip-val"]
    run("train_student.py", *flags, "--seed", seed, "--workers", 0, "--save-dir", folder, "--resume", "auto")
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    seconds = sum(record.get("cpu_seconds", 0) for record in records if record["event"] == "train")
    scores = [record["miou"] for record in records if record["event"] == "val"]
    return scores[-1], seconds


def train_plain(config: CompareConfig, decoder: str, seed: int, seconds: float, file: Path) -> float:
    """Train the plain loop, if that is not done. Return its mIoU."""
    if not file.is_file():
        flags = ["--dataset", config.dataset, "--data", config.data, "--crop-size", *config.crop_size]
        run(
            "scripts/study/plain_smp.py",
            *flags,
            "--decoder",
            decoder,
            "--seed",
            seed,
            "--seconds",
            seconds,
            "--json",
            file,
        )
    return json.loads(file.read_text(encoding="utf-8"))["miou"]


def make_table(scores: dict[str, list[float]]) -> tuple[list[str], list[list[str]]]:
    """Return head and rows: each way's mIoU over the seeds, and by how much the recipe is ahead of it."""
    ours = next(iter(scores.values()))
    rows = []
    for name, values in scores.items():
        gains = [100 * (own - value) for own, value in zip(ours, values, strict=True)]
        ahead = "" if values is ours else f"{statistics.mean(gains):+.2f} ({', '.join(f'{g:+.2f}' for g in gains)})"
        rows.append([name, str(len(values)), style.spread(values), ahead])
    return ["training", "seeds", "mIoU %", "the recipe is ahead by (each seed)"], rows


def main(argv: Sequence[str] | None = None) -> None:
    config = CompareConfig(**parse_flags(CompareConfig, __doc__, argv))
    output = Path(config.output or f"runs/smp_{config.dataset}").expanduser()
    scores: dict[str, list[float]] = {}
    for seed in config.seeds:
        own, seconds = train_recipe(config, seed, output / f"light-{seed}")
        scores.setdefault("this project, recipe light", []).append(own)
        for decoder in config.decoders:
            file = output / f"{decoder}-{seed}.json"
            miou = train_plain(config, decoder, seed, seconds, file)
            scores.setdefault(f"plain loop, {decoder}", []).append(miou)
    text = style.markdown(*make_table(scores))
    print(text, end="")
    write_text(output / "table.md", text)


if __name__ == "__main__":
    run_main(main)
