"""Read the yaml file of an experiment into records: its runs, their settings, and what each starts from."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

from engine.recipes import load_recipe
from engine.settings import ROLES, is_baseline
from models.checkpoints.reading import list_checkpoint_files
from scripts.study.analysis.runs import CHECKPOINT_SETTINGS
from scripts.study.experiments.files import find_experiment, read_with_include
from utils.errors import UserError, lookup, require_known
from utils.options import convert

SCRIPTS = {role: ROLES[role] for role in ("teacher", "student")}
# settings of the training scripts that a run of an experiment file may not hold -> what to do instead
SET_ELSEWHERE = {
    "recipe": "write recipe: beside settings:",
    "data": "give --data or --data-root to experiment.py",
    "cache_gb": "give --cache-gb to experiment.py",
    "workers": "give --workers to experiment.py",
    "save_dir": "give --output to experiment.py",
    "resume": "experiment.py continues what it finds",
    "overwrite": "remove the run's folder to do it again",
    "seed": "write it into the list seeds: of the file",
}


class Origin(NamedTuple):
    """The arm whose checkpoint another arm starts from, or has as its teacher.

    run: the name of that arm. shift: how many seeds further on its seed is, in the list of seeds. checkpoint: "last" or
    "best".
    """

    run: str
    shift: int = 0
    checkpoint: str = "last"


@dataclass(frozen=True)
class Arm:
    """An entry under ``runs:`` of an experiment file: one way of training, with all settings but the seed.

    It is trained once at every seed: an arm at one seed is a ``Job`` (jobs.py), and what that leaves is a ``Run``.

    row, published: its cells in the table of the publication and the mIoU printed there, in percent.
    """

    name: str
    title: str
    role: str  # "teacher" or "student"
    recipe: str
    dataset: str
    backbone: str
    settings: Mapping[str, Any]
    origins: Mapping[str, Origin]  # by flag: pretrained, teacher_pretrained
    row: tuple[str, ...] = ()
    published: float | None = None


@dataclass(frozen=True)
class Experiment:
    """The content of an experiment file: its arms, and the seeds that each of them is trained at.

    arms: in the order of the file, each after those it starts from. trained_runs: the names of the arms trained at
    every seed; the others are trained only where one of these starts from them.
    baseline: the arm without distillation that gains are counted from. equal_time: the arm without distillation that
    trained for a teacher's time too. Both are "" where there is none.
    compare: pairs of arms whose difference is reported, besides every student's gain over the baseline.
    columns, source: the headings of a published table's rows, and where its numbers come from.
    """

    path: Path
    title: str
    seeds: tuple[int, ...]
    arms: Mapping[str, Arm]
    trained_runs: tuple[str, ...]
    baseline: str = ""
    equal_time: str = ""
    compare: tuple[tuple[str, str], ...] = ()
    robustness_images: int = 30
    columns: tuple[str, ...] = ()
    source: str = ""

    @property
    def name(self) -> str:
        """Return the name of the file without its suffix."""
        return self.path.stem

    def shift_seed(self, seed: int, shift: int) -> int:
        """Return the seed ``shift`` places further on in the circle of seeds; the sum for a seed outside of them."""
        if seed not in self.seeds:
            return seed + shift
        return self.seeds[(self.seeds.index(seed) + shift) % len(self.seeds)]


def read_experiment(name: str) -> Experiment:
    """Read an experiment, given by the name of a file in this folder or by a path.

    ``include`` names a file whose values come first. Settings are flags of the training scripts; ``networks`` gives
    names to sets of them, of which a run takes one as its ``network``. ``pretrained`` and
    ``teacher_pretrained`` may name a run: ``NAME`` is its last checkpoint of the same seed, ``NAME/best`` its best one,
    ``NAME+1`` that of the next seed (so that a teacher is no twin of its student).

    Raises:
        UserError: the file does not exist, a key, flag or run is unknown, a value is bad, or a run starts from itself.
    """
    path = find_experiment(name)
    content = read_with_include(path)
    _require_entries(path, content)
    seeds = _read_seeds(path, content["seeds"])
    all_arms = {key: _read_arm(path, key, content) for key in content["runs"]}
    trained_runs = tuple(content.get("only", all_arms))
    arms = _choose_arms(path, all_arms, trained_runs)
    _check_shifts(path, arms, seeds)
    baseline = content.get("baseline", "")
    if baseline:
        _check_student(path, "baseline", lookup(arms, baseline, f"baseline among the runs of {path}"))
    equal_time = content.get("equal_time", "")
    if equal_time:
        _check_student(path, "equal_time", lookup(all_arms, equal_time, f"run in {path}: equal_time:"))
    return Experiment(
        path=path,
        title=content.get("title", path.stem),
        seeds=seeds,
        arms=arms,
        trained_runs=trained_runs,
        baseline=baseline,
        equal_time=equal_time if equal_time in arms else "",
        compare=_read_pairs(path, content.get("compare", []), arms, all_arms),
        robustness_images=content.get("robustness_images", Experiment.robustness_images),
        columns=tuple(map(str, content.get("columns", ()))),
        source=content.get("source", ""),
    )


def _require_entries(path: Path, content: Mapping[str, Any]) -> None:
    """Check that an experiment has seeds and runs, and at least one image to measure a teacher's robustness on.

    Raises:
        UserError: seeds or runs are missing, or the number of images is below 1.
    """
    for key in ("seeds", "runs"):
        if not content.get(key):
            raise UserError(f"{path}: {key!r} is missing")
    if content.get("robustness_images", 1) < 1:
        raise UserError(f"{path}: robustness_images: at least 1")


def _read_seeds(path: Path, seeds: list) -> tuple[int, ...]:
    """Check the list of seeds.

    Raises:
        UserError: a seed is no number, is negative, or is there twice.
    """
    are_numbers = all(type(seed) is int and seed >= 0 for seed in seeds)
    if not are_numbers or len(set(seeds)) < len(seeds):
        raise UserError(f"{path}: seeds: {seeds!r} is no list of different numbers")
    return tuple(seeds)


def _read_arm(path: Path, name: str, content: Mapping[str, Any]) -> Arm:
    """Read one entry of ``runs``, with the settings that all runs share below its own."""
    run = content["runs"][name]
    where = f"{path}: {name}"
    role = run.get("train", "student")
    config_class = lookup(SCRIPTS, role, f"script in {where}: train:")
    recipe = run.get("recipe", content.get("recipe", ""))
    if not recipe:
        raise UserError(f"{where}: 'recipe' is missing, here and at the top of the file")
    own = run.get("settings", {})
    if "network" in run:
        own = {**_read_network(path, where, run["network"], content), **own}
    settings, origins = _read_settings(where, config_class, own, content)
    start = origins.get("pretrained")
    if role == "student" and start and content["runs"][start.run].get("train") == "teacher":
        raise UserError(f"{where}: pretrained: {start.run} reads the label, a student does not")
    row = _read_row(where, run, content)
    with_recipe = {**load_recipe(recipe, role), **settings}
    if role == "student":
        _require_teacher(where, with_recipe.get("kd", config_class.kd), {**with_recipe, **origins})
    return Arm(
        name=name,
        title=run.get("title", ", ".join(row) or name),
        role=role,
        recipe=recipe,
        dataset=with_recipe.get("dataset", config_class.dataset),
        backbone=with_recipe.get("backbone", config_class.backbone),
        settings=settings,
        origins=origins,
        row=row,
        published=run.get("published"),
    )


def _read_row(where: str, run: Mapping[str, Any], content: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the cells of a run in a published table, none where it is in no such table.

    Raises:
        UserError: there are not as many cells as columns.
    """
    row = tuple(map(str, run.get("row", ())))
    columns = content.get("columns", ())
    if row and len(row) != len(columns):
        raise UserError(f"{where}: row: {len(row)} cells, but columns: has {len(columns)}")
    return row


def _require_teacher(where: str, kd: str, settings: Mapping[str, Any]) -> None:
    """Check that a student has a teacher, and a baseline none.

    Raises:
        UserError: a teacher is missing, or nothing is learnt from it.
    """
    has_teacher = bool(settings.get("teacher_pretrained"))
    if not is_baseline(kd) and not has_teacher:
        raise UserError(f"{where}: kd: {kd} needs teacher_pretrained: the run that is the teacher, or a file")
    if is_baseline(kd) and has_teacher:
        raise UserError(f"{where}: teacher_pretrained: kd: {kd} trains without a teacher")


def _read_network(path: Path, where: str, name: str, content: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the settings that ``networks`` gives a name to."""
    settings = lookup(content.get("networks", {}), name, f"network in {where}:")
    if not isinstance(settings, dict):
        raise UserError(f"{path}: networks: {name}: 'key: value' lines, not {settings!r}")
    return settings


def _read_settings(
    where: str, config_class: type, own: Mapping[str, Any], content: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Origin]]:
    """Return the flags of a run by name, and those of them that name another run."""
    runs = content["runs"]
    shared = content.get("settings", {})
    known = {field.name: field for field in fields(config_class) if field.name not in SET_ELSEWHERE}
    of_any_script = {field.name for script in SCRIPTS.values() for field in fields(script)}
    settings = {}
    origins = {}
    for key, value in {**shared, **own}.items():
        if key in SET_ELSEWHERE:
            raise UserError(f"{where}: {key!r} is no setting of a run: {SET_ELSEWHERE[key]}")
        if key not in known and key not in own and key in of_any_script:
            continue  # a shared setting of the other script
        require_known(str(key), known, f"setting in {where}:")
        origin = _read_origin(value, runs) if key in CHECKPOINT_SETTINGS else None
        if origin is not None:
            origins[key] = origin
            continue
        takes_list = isinstance(known[key].default, tuple)
        if value is None or (isinstance(value, (list, dict)) and not takes_list):
            raise UserError(f"{where}: {key}: one value, not {value!r}")
        settings[key] = convert(config_class, key, value, f"{where}: {key}")
        if key in CHECKPOINT_SETTINGS and value and not _is_file(settings[key]):
            require_known(settings[key], runs, f"run in {where}: {key}:")
    return settings, origins


def _is_file(checkpoint: str) -> bool:
    """Return whether a setting names a checkpoint outside the experiment, and not a run of it."""
    return bool(Path(checkpoint).suffix or list_checkpoint_files(checkpoint))


def _read_origin(value: Any, runs: Mapping[str, Any]) -> Origin | None:
    """Return the run that ``NAME``, ``NAME+1`` or ``NAME+1/best`` names; None where it names none."""
    match = re.fullmatch(r"(\w+?)(?:\+(\d+))?(?:/(last|best))?", str(value))
    if match is None or match[1] not in runs:
        return None
    return Origin(match[1], int(match[2] or 0), match[3] or "last")


def _choose_arms(path: Path, all_arms: Mapping[str, Arm], trained_runs: tuple[str, ...]) -> dict[str, Arm]:
    """Return the runs that are asked for, each after those that it starts from.

    Raises:
        UserError: a run is unknown or starts from itself, or two have the same title.
    """
    arms: dict[str, Arm] = {}
    for name in trained_runs:
        require_known(str(name), all_arms, f"run in {path}: only:")
        _add_after_origins(path, all_arms, name, arms, ())
    _check_titles(path, arms)
    return arms


def _add_after_origins(
    path: Path, all_arms: Mapping[str, Arm], name: str, arms: dict[str, Arm], above: tuple[str, ...]
) -> None:
    """Add a run to ``arms`` after all that it starts from."""
    if name in above:
        raise UserError(f"{path}: {' -> '.join((*above, name))}: a run cannot start from itself")
    for origin in all_arms[name].origins.values():
        _add_after_origins(path, all_arms, origin.run, arms, (*above, name))
    arms.setdefault(name, all_arms[name])


def _check_titles(path: Path, arms: Mapping[str, Arm]) -> None:
    """Refuse two arms of one title: a table could not tell them apart."""
    titles = [arm.title for arm in arms.values()]
    for title in titles:
        if titles.count(title) > 1:
            raise UserError(f"{path}: two runs are called {title!r}")


def _check_shifts(path: Path, arms: Mapping[str, Arm], seeds: tuple[int, ...]) -> None:
    """Refuse an origin of "another seed" that would be the same one, because there are too few seeds."""
    for arm in arms.values():
        for key, origin in arm.origins.items():
            if origin.shift and origin.shift % len(seeds) == 0:
                needed = f"{origin.run}+{origin.shift} needs more seeds than {list(seeds)}"
                raise UserError(f"{path}: {arm.name}: {key}: {needed}")


def _check_student(path: Path, key: str, arm: Arm) -> None:
    """Refuse an arm that reads the label where one to compare with is asked for."""
    if arm.role != "student":
        raise UserError(f"{path}: {key}: {arm.name} reads the label: gains over it mean nothing")


def _read_pairs(
    path: Path, pairs: list, arms: Mapping[str, Arm], all_arms: Mapping[str, Arm]
) -> tuple[tuple[str, str], ...]:
    """Return the pairs of ``compare`` of which both are among the runs that were picked."""
    found = []
    for pair in pairs:
        if not isinstance(pair, list) or len(pair) != 2:
            raise UserError(f"{path}: compare: {pair!r} is no pair of runs")
        for name in pair:
            if lookup(all_arms, str(name), f"run in {path}: compare:").role != "student":
                raise UserError(f"{path}: compare: {name} reads the label: its score is no segmentation result")
        if set(pair) <= arms.keys():
            found.append(tuple(pair))
    return tuple(found)
