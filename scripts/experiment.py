"""Run a table of arms and seeds with the training scripts; continue it at any point; keep its records.

    python scripts/experiment.py camvid --data data/camvid --dry-run               # the commands
    python scripts/experiment.py camvid --data data/camvid --gpus 0 1 2 3          # a run on each GPU at a time
    python scripts/experiment.py camvid_reduced --data data/camvid_half --jobs 2 --max-minutes 60

A file of scripts/experiments (or a path to a yaml file) names the runs, their settings and which run starts from which.
Every run is trained by train_teacher.py or train_student.py and scored by eval.py, its last and its best checkpoint,
in --output/<run>-<seed>. Started again, it skips what is finished and continues what was interrupted. --records copies
what is small (settings, training log, scores; no weights) from there: compare.py reads such folders, and
results_table.py makes the README's tables from them. Status 3: stopped by --max-minutes or a signal; 1: a run failed.
"""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from scripts.analysis.experiment import Arm, Experiment, read_experiment
from utils.config import option, parse_flags
from utils.errors import UserError, lookup, run_main
from utils.guards import STOPPED_STATUS

ROOT = Path(__file__).resolve().parent.parent
RECORDS = ("config.yaml", "metrics.jsonl", "last.json", "best.json", "per_image_*.npz", "robustness.json")


@dataclass(frozen=True)
class RunnerConfig:
    experiment: tuple[str, ...] = option((), "name of a file in scripts/experiments, or a path", positional=True)
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


@dataclass(frozen=True)
class Job:
    """A run of one seed: what to execute, one after another, and the jobs it has to wait for."""

    name: str
    folder: Path
    commands: tuple[tuple[str, ...], ...]
    needs: tuple[str, ...]

    @property
    def mark(self) -> Path:
        """The file that is written when everything has been done."""
        return self.folder / "done.json"

    @property
    def done(self) -> bool:
        """By these very commands; others are given to the scripts again, which know what may change."""
        try:
            return json.loads(self.mark.read_text(encoding="utf-8"))["commands"] == [list(c) for c in self.commands]
        except (OSError, ValueError, KeyError, TypeError):
            return False


def plan(experiment: Experiment, config: RunnerConfig, output: Path) -> dict[str, Job]:
    """All jobs by name, seed by seed, each after those it needs.

    Raises:
        UserError: an unknown run in --only.
    """
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
            probe = ["scripts/teacher_robustness.py", "--teacher", str(folder / "last.pth"), "--data", config.data]
            commands.append([*probe, "--limit", str(experiment.robustness_images), "--output", str(folder)])
        jobs[name] = Job(name, folder, tuple(map(tuple, commands)), tuple(needs))
        return name

    for seed in seeds:
        for arm in experiment.arms.values():
            if not config.only or arm.name in config.only:
                add(arm, seed)
    return jobs


class Outcome(NamedTuple):
    """How a job ended; one that is neither done nor failed is continued when the runner is started again."""

    done: bool
    failed: bool
    text: str


class Worker:
    """A job in execution. Its output goes to log.txt in its folder."""

    def __init__(self, job: Job, environment: dict[str, str]) -> None:
        """Raises UserError when the job's folder cannot be written."""
        self.job, self.environment = job, environment
        self.left = list(job.commands)
        self.stopping = False
        try:
            job.folder.mkdir(parents=True, exist_ok=True)
            job.mark.unlink(missing_ok=True)
            self.log = (job.folder / "log.txt").open("a", encoding="utf-8")
        except OSError as error:
            raise UserError(f"--output: {job.folder} cannot be written: {error.strerror}") from error
        self._next()

    def _next(self) -> None:
        command = [sys.executable, *self.left.pop(0)]
        print(f"$ {shlex.join(command[1:])}", file=self.log, flush=True)
        # a session of its own: the signals of our terminal reach it through stop() alone
        self.process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | self.environment,
            stdin=subprocess.DEVNULL,
            stdout=self.log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def poll(self) -> Outcome | None:
        """Go on to the next command where one has ended. None: the job is not over."""
        status = self.process.poll()
        if status is None:
            return None
        if status == 0 and self.left and not self.stopping:
            self._next()
            return None
        self.log.close()
        if status == 0 and not self.left:
            commands = [list(command) for command in self.job.commands]
            self.job.mark.write_text(json.dumps({"commands": commands}, indent=1) + "\n", encoding="utf-8")
            return Outcome(True, False, "done")
        if self.stopping or status == STOPPED_STATUS:
            return Outcome(False, False, "stopped, to be continued")
        return Outcome(False, True, f"failed with status {status}: {self._last_line()} ({self.job.folder / 'log.txt'})")

    def _last_line(self) -> str:
        lines = (self.job.folder / "log.txt").read_text(encoding="utf-8", errors="replace").splitlines()
        return next((line for line in reversed(lines) if line.strip()), "")

    def stop(self) -> None:
        """The training scripts save what they have and end."""
        if not self.stopping:
            self.stopping = True
            self.process.terminate()


class Stop:
    """True from the deadline or a signal on."""

    def __init__(self, max_minutes: float | None) -> None:
        self.deadline = None if max_minutes is None else time.monotonic() + 60 * max_minutes
        self.signalled = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._signal)

    def _signal(self, number: int, frame: object) -> None:
        self.signalled = True

    def __bool__(self) -> bool:
        return self.signalled or (self.deadline is not None and time.monotonic() >= self.deadline)


def execute(jobs: dict[str, Job], slots: list[dict[str, str]], stop: Stop, keep: Path | None) -> dict[str, Outcome]:
    """Every job that is not done, as soon as what it needs is; how each ended, by name."""
    ended = {name: Outcome(True, False, "done before") for name, job in jobs.items() if job.done}
    for name in ended:
        record(jobs[name], keep)
    running: dict[int, Worker] = {}
    waiting = [name for name in jobs if name not in ended]
    while running or waiting:
        for name in list(waiting):
            lost = [need for need in jobs[name].needs if need in ended and not ended[need].done]
            if lost or stop:
                waiting.remove(name)
                failed = any(ended[need].failed for need in lost)
                ended[name] = Outcome(False, failed, f"not begun: {lost[0]} is not done" if lost else "not begun")
        ready = [name for name in waiting if all(need in ended for need in jobs[name].needs)]
        for slot, name in zip((slot for slot in range(len(slots)) if slot not in running), ready, strict=False):
            waiting.remove(name)
            say(f"{name} begins")
            running[slot] = Worker(jobs[name], slots[slot])
        for slot, worker in list(running.items()):
            if stop:
                worker.stop()
            if outcome := worker.poll():
                del running[slot]
                ended[worker.job.name] = outcome
                say(f"{worker.job.name}: {outcome.text}")
                if outcome.done:
                    record(worker.job, keep)
        time.sleep(0.2)
    return {name: ended[name] for name in jobs}


def record(job: Job, keep: Path | None) -> None:
    """Copy the small files of a finished run."""
    if keep is None:
        return
    target = keep / job.name
    target.mkdir(parents=True, exist_ok=True)
    for pattern in RECORDS:
        for path in job.folder.glob(pattern):
            shutil.copyfile(path, target / path.name)


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def slots_of(config: RunnerConfig) -> list[dict[str, str]]:
    """The environment of each run that goes on at a time."""
    if config.gpus:
        return [{"CUDA_VISIBLE_DEVICES": gpu} for gpu in config.gpus]
    if config.jobs == 1:
        return [{}]
    threads = max(1, len(os.sched_getaffinity(0)) // config.jobs)
    return [{"OMP_NUM_THREADS": str(threads)}] * config.jobs


def main(argv: Sequence[str] | None = None) -> None:
    config = RunnerConfig(**parse_flags(RunnerConfig, __doc__, argv))
    if len(config.experiment) != 1:
        raise UserError("name one experiment: a file of scripts/experiments, without .yaml, or a path to one")
    if config.gpus and config.jobs > 1:
        raise UserError("--jobs is for the CPU; --gpus says how many runs go on at a time")
    experiment = read_experiment(config.experiment[0])
    output = Path(config.output or f"runs/{experiment.name}").expanduser()
    jobs = plan(experiment, config, output)
    if config.dry_run:
        for job in jobs.values():
            for command in job.commands:
                print("python", shlex.join(command))
        return
    keep = Path(config.records).expanduser() if config.records else None
    ended = execute(jobs, slots_of(config), Stop(config.max_minutes), keep)
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
