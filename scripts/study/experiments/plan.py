"""Turn an experiment into jobs: the commands of every run at every seed, in an order that can be run."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.recipes import load_recipe
from models.user_networks import is_user_network
from scripts.study.experiments.definition import Arm, Experiment
from scripts.study.experiments.jobs import Job
from utils.errors import UserError, require_known


@dataclass(frozen=True)
class Places:
    """Hold the folders of data, weights and output.

    data: the root folder of the only data set. data_root: a folder that holds one for each data set, by its name.
    bases: a folder of ImageNet weights, ``<backbone>.pth``; "" leaves the choice to the settings.
    """

    output: Path
    data: str = ""
    data_root: str = ""
    bases: str = ""

    def get_data_folder(self, arm: Arm) -> str:
        """Return the root folder of a run's data set."""
        return str(Path(self.data_root) / arm.dataset) if self.data_root else self.data


@dataclass(frozen=True)
class Machine:
    """Settings of the training scripts that do not change what is computed.

    workers: how many loader workers each process has; None leaves it to the scripts. processes: how many each run has.
    """

    workers: int | None = None
    cache_gb: float = 0.0
    processes: int = 1


class Plan:
    """Collect the jobs of an experiment by name. Each comes after the jobs that it needs."""

    def __init__(self, experiment: Experiment, places: Places, machine: Machine) -> None:
        self.experiment = experiment
        self.places = places
        self.machine = machine
        self.jobs: dict[str, Job] = {}

    def add_job(self, arm: Arm, seed: int) -> Job:
        """Add the job of an arm at a seed, after the jobs that it needs. Return it. A job is added only once."""
        name = f"{arm.name}-{seed}"
        if name in self.jobs:
            return self.jobs[name]
        folder = self.places.output / name
        settings = dict(arm.settings)
        needs: dict[str, None] = {}  # a dict: two settings may name the same run
        for key, origin in arm.origins.items():
            source_arm = self.experiment.arms[origin.run]
            source = self.add_job(source_arm, self.experiment.shift_seed(seed, origin.shift))
            needs[source.name] = None
            settings[key] = str(source.folder / f"{origin.checkpoint}.pth")
        if self.places.bases and "pretrained_base" not in settings:
            settings["pretrained_base"] = str(Path(self.places.bases) / f"{arm.backbone}.pth")
        commands = [self._make_training_command(arm, settings, seed, folder)]
        for checkpoint in ("last", "best"):
            commands.append(self._make_scoring_command(arm, folder, checkpoint))
        if arm.role == "teacher":
            commands.append(self._make_probe_command(arm, folder))
        self.jobs[name] = Job(name, folder, tuple(commands), tuple(needs), self.machine.processes)
        return self.jobs[name]

    def _make_training_command(self, arm: Arm, settings: dict[str, Any], seed: int, folder: Path) -> tuple[str, ...]:
        """Make the command that trains an arm at a seed, or continues its training."""
        words = [f"train_{arm.role}.py", "--recipe", arm.recipe, "--data", self.places.get_data_folder(arm)]
        for key, value in settings.items():
            words += _format_flag(key, value)
        words += ["--seed", str(seed), "--save-dir", str(folder), "--resume", "auto"]
        if self.machine.workers is not None:
            words += ["--workers", str(self.machine.workers)]
        words += ["--cache-gb", f"{self.machine.cache_gb:g}"]
        return tuple(words)

    def _make_scoring_command(self, arm: Arm, folder: Path, checkpoint: str) -> tuple[str, ...]:
        """Make the command that scores the last or the best checkpoint, with its counts for each image."""
        words = ["eval.py", "--pretrained", str(folder / f"{checkpoint}.pth")]
        words += ["--data", self.places.get_data_folder(arm)]
        words += [*_make_network_flag(arm), *_make_view_flags(arm)]
        words += ["--json", str(folder / f"{checkpoint}.json")]
        words += ["--per-image", str(folder / f"per_image_{checkpoint}.npz")]
        return tuple(words)

    def _make_probe_command(self, arm: Arm, folder: Path) -> tuple[str, ...]:
        """Make the command that measures how a teacher depends on its label."""
        words = ["scripts/study/teacher_robustness.py", "--teacher", str(folder / "last.pth")]
        words += ["--data", self.places.get_data_folder(arm), "--limit", str(self.experiment.robustness_images)]
        words += [*_make_network_flag(arm), "--output", str(folder)]
        return tuple(words)


def _make_network_flag(arm: Arm) -> list[str]:
    """Return the flag that names a user's network to a script which reads its checkpoint."""
    model = arm.settings.get("model", "")
    return ["--model", model] if is_user_network(model) else []


def _make_view_flags(arm: Arm) -> list[str]:
    """Return the flags of eval.py that the recipe asks for, by its keys ``eval.<name>``."""
    words = []
    for key, value in load_recipe(arm.recipe, "eval").items():
        if key != "dataset":
            words += _format_flag(key, value)
    return words


def list_arms(experiment: Experiment, jobs: Iterable[str]) -> list[Arm]:
    """Return the arms that jobs belong to. jobs: names, ``<run>-<seed>``."""
    names = dict.fromkeys(job.rpartition("-")[0] for job in jobs)
    return [experiment.arms[name] for name in names]


def plan_jobs(
    experiment: Experiment,
    places: Places,
    machine: Machine,
    only: tuple[str, ...] = (),
    seeds: tuple[int, ...] = (),
) -> dict[str, Job]:
    """Return the jobs of an experiment by name, ``<run>-<seed>``. Each comes after the jobs that it starts from.

    only: names of the runs to train; where it is empty, those that the experiment asks for. seeds: the seeds to train
    them at; where it is empty, the experiment's. The runs that they start from are added, some at another seed.

    Raises:
        UserError: ``only`` names an unknown run, or ``places.data`` is one folder for several data sets.
    """
    for name in only:
        require_known(name, experiment.arms, "run in --only")
    wanted = only or experiment.trained_runs
    plan = Plan(experiment, places, machine)
    for seed in seeds or experiment.seeds:
        for name, arm in experiment.arms.items():
            if name in wanted:
                plan.add_job(arm, seed)
    datasets = {arm.dataset for arm in list_arms(experiment, plan.jobs)}
    if places.data and len(datasets) > 1:
        raise UserError(f"--data {places.data}: {experiment.name} has {len(datasets)} data sets: give --data-root DIR")
    return plan.jobs


def _format_flag(key: str, value: Any) -> list[str]:
    """Return a setting as words of a command line."""
    name = key.replace("_", "-")
    if isinstance(value, bool):
        return [f"--{name}" if value else f"--no-{name}"]
    values = value if isinstance(value, (list, tuple)) else [value]
    return [f"--{name}", *map(str, values)]
