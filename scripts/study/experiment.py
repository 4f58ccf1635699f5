"""Run a table of arms and seeds with the training scripts; continue it at any point; keep its records.

    python scripts/study/experiment.py camvid --data data/camvid --dry-run               # the commands
    python scripts/study/experiment.py camvid --data data/camvid --gpus 0 1 2 3          # a run on each GPU at a time
    python scripts/study/experiment.py camvid_lite --data data/camvid_half --jobs 2 --max-minutes 60

A file of scripts/study/experiments (or a path to a yaml file) names the runs, their settings and which run starts from
which.
Every run is trained by train_teacher.py or train_student.py and scored by eval.py, its last and its best checkpoint,
in --output/<run>-<seed>. Started again, it skips what is finished and continues what was interrupted. --records copies
what is small (settings, training log, scores; no weights) from there: compare.py reads such folders, and
results_table.py makes the README's tables from them. Status 3: stopped by --max-minutes or a signal; 1: a run failed.
"""

import os
import shlex
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from utils.environment import require_packages

require_packages()

from datasets import DATASETS
from datasets.base import DatasetSpec
from engine.folder_lock import FolderLock
from engine.lockstep import STOPPED_STATUS
from engine.settings import load_recipe
from scripts.study.experiments.definition import Arm, Experiment, read_experiment
from scripts.study.experiments.jobs import Job, Stop, execute
from train_student import RECIPES
from utils.errors import UserError, lookup, run_main
from utils.files import write
from utils.options import option, parse_flags

RECORDS = ("config.yaml", "metrics.jsonl", "last.json", "best.json", "per_image_*.npz", "robustness.json")


@dataclass(frozen=True)
class RunnerConfig:
    experiment: str = option("", "name of a file in scripts/study/experiments, or a path", positional=True)
    data: str = option("", "root folder of the data set")
    only: tuple[str, ...] = option((), "runs to do, with those they start from (default: all)")
    seeds: tuple[int, ...] = option((), "seeds (default: the experiment's)", minimum=0)
    output: str = option("", "folder of the runs (default: runs/<experiment>)")
    records: str = option("", "folder for copies of the small files of every finished run")
    gpus: tuple[str, ...] = option((), "GPUs, one run on each at a time (default: the first, or the CPU)")
    jobs: int = option(1, "runs at a time on the CPU, which share its cores", minimum=1)
    max_minutes: float | None = option(None, "stop after so long; what was begun is saved", minimum=0)
    workers: int = option(4, "loader processes of each run", minimum=0)
    cache_gb: float = option(0.0, "keep decoded images in memory, up to so many GB a run", minimum=0)
    dry_run: bool = option(False, "print the commands only")


def plan(experiment: Experiment, config: RunnerConfig, output: Path) -> dict[str, Job]:
    """All jobs by name, seed by seed, each after those it needs. Raises UserError: an unknown run in --only."""
    for name in config.only:
        lookup(experiment.arms, name, "run in --only")
    seeds = config.seeds or experiment.seeds
    jobs: dict[str, Job] = {}

    def add(arm: Arm, seed: int) -> str:
        name = f"{arm.name}-{seed}"
        if name in jobs:
            return name
        folder, settings, needs = output / name, dict(arm.settings), []
        for key, origin in arm.origins.items():
            source = add(experiment.arms[origin.arm], experiment.next_seed(seed, origin.shift))
            needs.append(source)
            settings[key] = str(output / source / "last.pth")
        training = [f"train_{arm.train}.py", "--recipe", experiment.recipe, "--data", config.data]
        for key, value in settings.items():
            flag = "--" + key.replace("_", "-")
            if isinstance(value, bool):
                training.append(flag if value else flag.replace("--", "--no-", 1))
            else:
                training += [flag, *map(str, value if isinstance(value, (list, tuple)) else [value])]
        training += ["--seed", str(seed), "--save-dir", str(folder), "--resume", "auto"]
        training += ["--workers", str(config.workers), "--cache-gb", f"{config.cache_gb:g}"]
        commands = [training]
        for which in ("last", "best"):
            scoring = ["eval.py", "--pretrained", str(folder / f"{which}.pth"), "--data", config.data]
            scoring += ["--json", str(folder / f"{which}.json")]
            commands.append([*scoring, "--per-image", str(folder / f"per_image_{which}.npz")])
        if arm.train == "teacher":
            probe = ["scripts/study/teacher_robustness.py", "--teacher", str(folder / "last.pth")]
            probe += ["--data", config.data, "--limit", str(experiment.robustness_images)]
            commands.append([*probe, "--output", str(folder)])
        jobs[name] = Job(name, folder, tuple(map(tuple, commands)), tuple(needs))
        return name

    for seed in seeds:
        for name, arm in experiment.arms.items():
            if name in (config.only or experiment.asked):
                add(arm, seed)
    return jobs


def record(job: Job, keep: Path) -> None:
    """Copy the small files of a finished run. Raises UserError: the folder cannot be written."""
    for path in (path for pattern in RECORDS for path in job.folder.glob(pattern)):
        write(keep / job.name / path.name, lambda file, path=path: file.write(path.read_bytes()))


def prepare(config: RunnerConfig, experiment: Experiment, output: Path) -> FolderLock:
    """What would go wrong after hours is tried now. The lock on ``output``.

    Raises UserError: no data, folders that cannot be written or are the same, or another runner in ``output``.
    """
    settings = load_recipe(experiment.recipe, "student", RECIPES) | experiment.arms[experiment.baseline].settings
    spec = DATASETS.get(settings.get("dataset", "toy"))
    if not config.data and not (isinstance(spec, DatasetSpec) and not spec.needs_root):
        raise UserError(f"--data is missing: the root folder of {settings['dataset']}")
    if config.data and not Path(config.data).expanduser().is_dir():
        raise UserError(f"--data {config.data}: no such folder")
    folders = {"--output": output}
    if config.records:
        folders["--records"] = Path(config.records).expanduser()
        if folders["--records"].resolve() == output.resolve():
            raise UserError(f"--records {config.records} is the folder of the runs: their records are there already")
    for flag, folder in folders.items():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / ".probe").touch()
            (folder / ".probe").unlink()
        except OSError as error:
            raise UserError(f"{flag} {folder} cannot be written: {error.strerror}") from error
    return FolderLock(output, "--output")


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def slots_of(config: RunnerConfig) -> list[dict[str, str]]:
    """The environment of each run that goes on at a time."""
    if config.gpus:
        return [{"CUDA_VISIBLE_DEVICES": gpu} for gpu in config.gpus]
    if config.jobs == 1:
        return [{}]
    threads = os.environ.get("OMP_NUM_THREADS") or max(1, len(os.sched_getaffinity(0)) // config.jobs)
    return [{"OMP_NUM_THREADS": str(threads), "CUDA_VISIBLE_DEVICES": ""}] * config.jobs


def main(argv: Sequence[str] | None = None) -> None:
    config = RunnerConfig(**parse_flags(RunnerConfig, __doc__, argv))
    if config.gpus and config.jobs > 1:
        raise UserError("--jobs is for the CPU; --gpus says how many runs go on at a time")
    experiment = read_experiment(config.experiment)
    output = Path(config.output or f"runs/{experiment.name}").expanduser()
    jobs = plan(experiment, config, output)
    if config.dry_run:
        print("\n".join(f"python {shlex.join(command)}" for job in jobs.values() for command in job.commands))
        return
    with closing(prepare(config, experiment, output)), Stop(config.max_minutes) as stop:
        keep = Path(config.records).expanduser() if config.records else None
        ended = execute(jobs, slots_of(config), stop, lambda job: keep and record(job, keep), say)
    left = {name: outcome for name, outcome in ended.items() if not outcome.done}
    say(f"{len(ended) - len(left)} of {len(ended)} runs done")
    for name, outcome in left.items():
        print(f"  {name}: {outcome.text}")
    if any(outcome.failed for outcome in left.values()):
        raise SystemExit(1)
    if left:
        raise SystemExit(STOPPED_STATUS)


if __name__ == "__main__":
    run_main(main)
