"""What an experiment consists of: a yaml file in this folder, as records."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

from engine.settings import ROLES, load_recipe
from scripts.study.analysis.runs import CHECKPOINT_SETTINGS
from scripts.study.experiments.files import find, merged
from train_student import RECIPES
from utils.errors import UserError, lookup
from utils.options import convert

REQUIRED = ("recipe", "seeds", "baseline", "runs")
RUNNER_SETTINGS = {"recipe", "data", "seed", "save_dir", "resume", "overwrite", "workers", "cache_gb"}


class Origin(NamedTuple):
    """The run of the experiment whose last checkpoint a run starts from, and whose seed: so many further on."""

    arm: str
    shift: int


@dataclass(frozen=True)
class Arm:
    """A row of the experiment: which script trains it, with which flags, starting from which others."""

    name: str
    title: str
    train: str  # "teacher" or "student"
    settings: Mapping[str, Any]
    origins: Mapping[str, Origin]  # by flag: pretrained, teacher_pretrained


@dataclass(frozen=True)
class Experiment:
    """arms: in the order of the file, each after those it starts from. asked: those trained at every seed; the others
    are only what these start from. baseline: the arm without distillation.
    equal_time: the arm without distillation that had the teacher's time too; "" where there is none.
    compare: pairs of arms whose difference is reported, besides every student's over the baseline.
    """

    path: Path
    title: str
    recipe: str
    seeds: tuple[int, ...]
    baseline: str
    equal_time: str
    compare: tuple[tuple[str, str], ...]
    robustness_images: int
    arms: Mapping[str, Arm]
    asked: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.path.stem

    @property
    def students(self) -> dict[str, Arm]:
        """The baseline, and the arms without label that no other starts from or learns from."""
        sources = {origin.arm for arm in self.arms.values() for origin in arm.origins.values()} - {self.baseline}
        return {name: arm for name, arm in self.arms.items() if arm.train == "student" and name not in sources}

    def next_seed(self, seed: int, shift: int) -> int:
        """So many further in the circle of the experiment's seeds; of a seed beyond them, the sum."""
        if seed not in self.seeds:
            return seed + shift
        return self.seeds[(self.seeds.index(seed) + shift) % len(self.seeds)]


def read_experiment(name: str) -> Experiment:
    """By the name of a file in this folder, or by the path of one.

    ``include`` names a file whose values come first; ``settings`` and ``runs`` are merged key by key, ``only`` picks
    runs. Settings are flags of the training scripts; ``pretrained`` and ``teacher_pretrained`` may name a run of the
    same seed, ``NAME+1`` one of the next seed (so that a teacher is no twin of its student).

    Raises UserError: no such file, unknown keys or flags, bad values, a run that starts from itself, an unknown one, or
    its own seed where another is asked for.
    """
    path = find(name)
    content = merged(path)
    for key in REQUIRED:
        if not content.get(key):
            raise UserError(f"{path}: {key!r} is missing")
    seeds = content["seeds"]
    if not all(type(seed) is int and seed >= 0 for seed in seeds) or len(set(seeds)) < len(seeds):
        raise UserError(f"{path}: seeds: {seeds!r} is no list of different numbers")
    if content.get("robustness_images", 1) < 1:
        raise UserError(f"{path}: robustness_images: at least 1")
    for role in ROLES:
        load_recipe(content["recipe"], role, RECIPES)
    shared = content.get("settings", {})
    arms = {key: _arm(path, key, value, shared, content["runs"]) for key, value in content["runs"].items()}
    ordered: dict[str, Arm] = {}
    asked = tuple(content.get("only", arms))
    for key in asked:
        lookup(arms, str(key), f"run in {path}: only:")
        _add(path, arms, key, ordered, ())
    titles = [arm.title for arm in ordered.values()]
    for title in titles:
        if titles.count(title) > 1:
            raise UserError(f"{path}: two runs are called {title!r}")
    equal_time = content.get("equal_time", "")
    bases = {"baseline": lookup(ordered, content["baseline"], f"baseline among the runs of {path}")}
    if equal_time:
        bases["equal_time"] = lookup(arms, equal_time, f"run in {path}: equal_time:")
    for key, arm in bases.items():
        if arm.train != "student":
            raise UserError(f"{path}: {key}: {arm.name} reads the label: gains over it mean nothing")
    for arm in ordered.values():
        for key, origin in arm.origins.items():
            if origin.shift and origin.shift % len(seeds) == 0:
                raise UserError(f"{path}: {arm.name}: {key}: {origin.arm}+{origin.shift} needs more seeds than {seeds}")
    return Experiment(
        path,
        content.get("title", path.stem),
        content["recipe"],
        tuple(seeds),
        content["baseline"],
        equal_time if equal_time in ordered else "",
        _pairs(path, content.get("compare", []), ordered, arms),
        content.get("robustness_images", 30),
        ordered,
        asked,
    )


def _arm(path: Path, name: str, content: dict, shared: dict, runs: Mapping[str, Any]) -> Arm:
    where = f"{path}: {name}"
    train = content.get("train", "student")
    config_class = lookup({role: ROLES[role] for role in ("teacher", "student")}, train, f"script in {where}: train:")
    own = content.get("settings", {})
    known = {field.name: field for field in fields(config_class) if field.name not in RUNNER_SETTINGS}
    elsewhere = {field.name for role in ROLES.values() for field in fields(role)} - RUNNER_SETTINGS
    settings, origins = {}, {}
    for key, value in {**shared, **own}.items():
        if key not in known and key not in own and key in elsewhere:
            continue  # a shared setting of the other script
        lookup(known, str(key), f"setting in {where}:")
        origin = _origin(value, runs) if key in CHECKPOINT_SETTINGS else None
        if origin is not None:
            origins[key] = origin
            continue
        if value is None or (isinstance(value, (list, dict)) and not isinstance(known[key].default, tuple)):
            raise UserError(f"{where}: {key}: one value, not {value!r}")
        settings[key] = convert(config_class, key, value, f"{where}: {key}")
        if key in CHECKPOINT_SETTINGS and value and not Path(settings[key]).suffix:
            lookup(runs, settings[key], f"run in {where}: {key}:")
    start = origins.get("pretrained")
    if train == "student" and start and runs[start.arm].get("train") == "teacher":
        raise UserError(f"{where}: pretrained: {start.arm} reads the label, a student does not")
    return Arm(name, content.get("title", name), train, settings, origins)


def _origin(value: Any, runs: Mapping[str, Any]) -> Origin | None:
    match = re.fullmatch(r"(\w+?)(?:\+(\d+))?", str(value))
    return Origin(match[1], int(match[2] or 0)) if match and match[1] in runs else None


def _add(path: Path, arms: Mapping[str, Arm], name: str, ordered: dict[str, Arm], above: tuple[str, ...]) -> None:
    """``name`` after what it starts from."""
    if name in above:
        raise UserError(f"{path}: {' -> '.join((*above, name))}: a run cannot start from itself")
    for origin in arms[name].origins.values():
        _add(path, arms, origin.arm, ordered, (*above, name))
    ordered.setdefault(name, arms[name])


def _pairs(path: Path, pairs: list, ordered: Mapping[str, Arm], arms: Mapping[str, Arm]) -> tuple[tuple[str, str], ...]:
    """Those of which both are among the runs that were picked."""
    found = []
    for pair in pairs:
        if not isinstance(pair, list) or len(pair) != 2:
            raise UserError(f"{path}: compare: {pair!r} is no pair of runs")
        for name in pair:
            if lookup(arms, str(name), f"run in {path}: compare:").train != "student":
                raise UserError(f"{path}: compare: {name} reads the label: its score is no segmentation result")
        if set(pair) <= ordered.keys():
            found.append(tuple(pair))
    return tuple(found)
