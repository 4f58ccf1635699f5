"""Run an experiment: train and score all its runs, continue it at any point, show its table.

    python scripts/study/experiment.py camvid --data data/camvid --dry-run               # print the commands
    python scripts/study/experiment.py camvid --data data/camvid --gpus 0 1 2 3          # a run on each GPU at a time
    python scripts/study/experiment.py lad_voc --data-root data --bases bases --gpus 0 1 --processes 2   # each on both
    python scripts/study/experiment.py camvid_lite --data data/camvid_half --jobs 2 --max-minutes 60
    python scripts/study/experiment.py camvid --data data/camvid --slurm --slurm-args "--gpus-per-node 1"
    python scripts/study/experiment.py camvid --data data/camvid --status                # where each run stands

A file of scripts/study/experiments, or a path to a yaml file, names the runs, their settings, and which run starts
from which. Every run is trained by train_teacher.py or train_student.py, and eval.py scores its last and its best
checkpoint, in --output/<run>-<seed>. Started again, it skips what is finished and continues what was interrupted.
--records adds what is small (settings, training log, scores; no weights) to a record file, which compare.py and
results_table.py read.
Exit status 3: stopped by --max-minutes or a signal; 1: a run failed.
"""

import os
import shlex
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
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
from scripts.study.analysis.record_files import open_folder, pack_runs
from scripts.study.experiments.definition import Arm, Experiment, read_experiment
from scripts.study.experiments.jobs import ROOT, Job, Outcome, execute_jobs, find_outcome, make_launch_words
from scripts.study.experiments.plan import Machine, Places, list_arms, plan_jobs
from scripts.study.experiments.slurm import SUBMISSION, Standing, read_standings, submit_jobs
from scripts.study.experiments.stop import StopCondition
from scripts.study.pack_records import check_record_file
from scripts.study.results_table import format_tables
from utils.entry import run_main
from utils.errors import UserError
from utils.files import require_writable
from utils.options import option, parse_flags


@dataclass(frozen=True)
class RunnerConfig:
    """Hold the settings of experiment.py."""

    experiment: str = option("", "name of a file in scripts/study/experiments, or a path", positional=True)
    data: str = option("", "root folder of the data set")
    data_root: str = option("", "folder with a root folder for each data set, by its name; in place of --data")
    bases: str = option("", "folder of ImageNet weights, <backbone>.pth (default: what the settings say)")
    only: tuple[str, ...] = option((), "runs to do, with those they start from (default: all)")
    seeds: tuple[int, ...] = option((), "seeds (default: the experiment's)", minimum=0)
    output: str = option("", "folder of the runs (default: runs/<experiment>)")
    records: str = option("", "record file that the small files of every finished run are added to, NAME.zip")
    gpus: tuple[str, ...] = option((), "GPUs to use (default: the first, or the CPU)")
    processes: int | None = option(None, "processes of each run (default: 1; under --slurm one a GPU)", minimum=1)
    jobs: int = option(1, "runs at a time on the CPU, which share its cores", minimum=1)
    max_minutes: float | None = option(None, "stop after so long; what was begun is saved", minimum=0)
    workers: int | None = option(
        None, "loader workers of each process of a run (default: 4, or fewer where cores are few)", minimum=0
    )
    cache_gb: float = option(0.0, "keep decoded images in memory, up to so many GB a process", minimum=0)
    dry_run: bool = option(False, "print the commands only")
    slurm: bool = option(False, "submit every run as a job to SLURM")
    slurm_args: str = option("", 'arguments of sbatch, in quotes, such as "--gpus-per-node 4 --time 24:00:00"')
    status: bool = option(False, "print where each run stands")


def main(argv: Sequence[str] | None = None) -> None:
    config = RunnerConfig(**parse_flags(RunnerConfig, __doc__, argv))
    check_flags(config)
    experiment = read_experiment(config.experiment)
    output = Path(config.output or f"runs/{experiment.name}").expanduser()
    places = Places(output, config.data, config.data_root, config.bases)
    machine = Machine(config.workers, config.cache_gb, config.processes or 1)
    jobs = plan_jobs(experiment, places, machine, config.only, config.seeds)
    if config.dry_run:
        print_commands(jobs)
    elif config.status:
        print_status(jobs)
    elif config.slurm:
        check_data(list_arms(experiment, jobs), places)
        submit_to_slurm(config, jobs)
    else:
        run_here(config, experiment, places, jobs)


def check_flags(config: RunnerConfig) -> None:
    """Refuse flags that contradict each other.

    Raises:
        UserError: two flags contradict each other.
    """
    if config.gpus and config.jobs > 1:
        raise UserError("--jobs is for the CPU; --gpus and --processes say how many runs go on at a time")
    if config.gpus and len(config.gpus) % (config.processes or 1):
        count = f"{len(config.gpus)} GPUs cannot be shared by runs of {config.processes} processes"
        raise UserError(f"--gpus, --processes: {count}: give a multiple")
    if config.data and config.data_root:
        raise UserError("--data is the folder of one data set, --data-root that of several: give one of them")
    if config.slurm and config.records:
        raise UserError("--records is for runs of this machine: pack_records.py adds those of SLURM when they are done")
    if config.slurm_args and not config.slurm:
        raise UserError("--slurm-args is for --slurm")
    if config.records:
        check_record_file(config.records)


def print_commands(jobs: Mapping[str, Job]) -> None:
    """Print the commands in order. Their paths lead from the current folder."""
    root = os.path.relpath(ROOT)
    if root == ".":
        root = ""
    for job in jobs.values():
        for command in job.commands:
            print(f"python {shlex.join(make_launch_words(command, job.processes, root))}")


def print_status(jobs: Mapping[str, Job]) -> None:
    """Print a line for each run: done, queued, running, failed, begun or not begun."""
    standings: Mapping[str, Standing] = {}
    if any((job.folder / SUBMISSION).is_file() for job in jobs.values()):
        standings = read_standings(jobs)
    width = max(map(len, jobs))
    for name, job in jobs.items():
        text = standings[name].text if name in standings else describe_folder(job)
        print(f"{name:{width}}  {text}")


def describe_folder(job: Job) -> str:
    """Return in words where a job of this machine stands."""
    outcome = find_outcome(job)
    if outcome:
        return "done" if outcome.done else outcome.text
    return "begun, to be continued" if job.mark.is_file() else "not begun"


def submit_to_slurm(config: RunnerConfig, jobs: Mapping[str, Job]) -> None:
    """Submit the jobs to SLURM, and say how to see where they stand."""
    standings: Mapping[str, Standing] = submit_jobs(jobs, shlex.split(config.slurm_args), config.processes)
    active = sum(standing.active for standing in standings.values())
    done = sum(standing.done for standing in standings.values())
    print(f"{active} runs queued or running, {done} done, {len(jobs) - active - done} cannot go on")
    print("next: the same command with --status in place of --slurm; without both, it shows the table when all is done")


def run_here(config: RunnerConfig, experiment: Experiment, places: Places, jobs: Mapping[str, Job]) -> None:
    """Run the jobs on this machine, then print the table and the next command.

    Raises:
        SystemExit: a run failed, or is left to be continued.
        UserError: a data folder is missing, a folder cannot be written, or another runner is in the output folder.
    """

    def keep_records(job: Job) -> None:
        if config.records:
            pack_runs(check_record_file(config.records), [job.folder])

    arms = list_arms(experiment, jobs)
    check_data(arms, places)
    with closing(lock_output(config, places.output)), StopCondition(config.max_minutes) as stop:
        ended = execute_jobs(jobs, make_slots(config), stop, keep_records, say)
    left = {name: outcome for name, outcome in ended.items() if not outcome.done}
    say(f"{len(ended) - len(left)} of {len(ended)} runs done")
    for name, outcome in left.items():
        print(f"  {name}: {outcome.text}")
    if len(left) < len(ended):
        print("\n" + format_tables(experiment, places.output))
    baseline = experiment.baseline if experiment.baseline in {arm.name for arm in arms} else ""
    print(describe_next_step(config, baseline, places.output, left))
    if any(outcome.failed for outcome in left.values()):
        raise SystemExit(1)
    if left:
        raise SystemExit(STOPPED_STATUS)


def describe_next_step(config: RunnerConfig, baseline: str, output: Path, left: Mapping[str, Outcome]) -> str:
    """Return the command that comes after this one. baseline: the run that others are compared with, if it was run."""
    if any(outcome.failed for outcome in left.values()):
        return "next: remove the cause of the failure; then the same command does what is left"
    if left:
        return "next: the same command does what is left"
    script = os.path.relpath(ROOT / "scripts/study/compare.py")
    gains = ["--baseline", baseline] if baseline else []
    words = ["python", script, *gains, config.records or str(output), "--html", f"{output}.html"]
    return f"next: {shlex.join(words)}"


def check_data(arms: Iterable[Arm], places: Places) -> None:
    """Refuse data folders of runs that are missing.

    Raises:
        UserError: the folder of a data set is not given, or does not exist.
    """
    for arm in arms:
        spec = DATASETS.get(arm.dataset)
        folder = places.get_data_folder(arm)
        if folder and not Path(folder).expanduser().is_dir():
            flag = "--data-root" if places.data_root else "--data"
            raise UserError(f"{flag} {places.data_root or places.data}: no such folder: {folder}")
        is_built_in = isinstance(spec, DatasetSpec) and not spec.needs_root
        if not folder and not is_built_in:
            raise UserError(f"--data is missing: the root folder of {arm.dataset}")


def lock_output(config: RunnerConfig, output: Path) -> FolderLock:
    """Make the folder of the runs and lock it. Try whether it and that of the records can be written.

    Raises:
        UserError: a folder cannot be written, the record file is damaged, or another runner is in ``output``.
    """
    folders = {"--output": output}
    if config.records:
        archive = check_record_file(config.records)
        open_folder(archive)  # a damaged file is an error now, not after the first run
        folders["--records"] = archive.parent
    for flag, folder in folders.items():
        require_writable(folder, f"{flag} {folder}")
    return FolderLock(output, "--output")


def make_slots(config: RunnerConfig) -> list[dict[str, str]]:
    """Return a slot for each run that goes on at a time: its environment, with its GPUs or its share of the cores."""
    processes = config.processes or 1
    if config.gpus:
        groups = [config.gpus[i : i + processes] for i in range(0, len(config.gpus), processes)]
        return [{"CUDA_VISIBLE_DEVICES": ",".join(group)} for group in groups]
    if config.jobs == 1:
        return [{}]
    cores_each = len(os.sched_getaffinity(0)) // (config.jobs * processes)
    threads = os.environ.get("OMP_NUM_THREADS") or max(1, cores_each)
    return [{"OMP_NUM_THREADS": str(threads), "CUDA_VISIBLE_DEVICES": ""}] * config.jobs


def say(text: str) -> None:
    """Print a line with the time of day."""
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


if __name__ == "__main__":
    run_main(main)
