"""What an experiment consists of: a yaml file in scripts/experiments, as records."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from scripts.analysis.runs import CHECKPOINT_SETTINGS
from utils.config import ROLES, convert
from utils.errors import UserError, lookup

EXPERIMENTS = Path(__file__).resolve().parent.parent / "experiments"
KEYS = {"include", "title", "recipe", "settings", "seeds", "baseline", "robustness_images", "only", "runs"}
RUN_KEYS = {"title", "train", "settings"}
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
    """``arms`` are in the order of the file, each after those it starts from; ``baseline``: what gains are against."""

    name: str
    title: str
    recipe: str
    seeds: tuple[int, ...]
    baseline: str
    robustness_images: int
    arms: Mapping[str, Arm]

    def next_seed(self, seed: int, shift: int) -> int:
        """So many further in the circle of the experiment's seeds; of a seed beyond them, the sum."""
        if seed not in self.seeds:
            return seed + shift
        return self.seeds[(self.seeds.index(seed) + shift) % len(self.seeds)]


def read_experiment(name: str) -> Experiment:
    """By the name of a file in scripts/experiments, or by the path of one.

    ``include`` names a file whose values come first; ``settings`` and ``runs`` are merged key by key, ``only`` picks
    runs. Settings are flags of the training scripts; ``pretrained`` and ``teacher_pretrained`` may name a run of the
    same seed, ``NAME+1`` one of the next seed (so that a plain teacher is no twin of its student).

    Raises:
        UserError: no such file, unknown keys or flags, bad values, a run that starts from itself or an unknown one.
    """
    path = _path(name)
    content = _merged(path, ())
    unknown = sorted(content.keys() - KEYS)
    if unknown:
        raise UserError(f"{path}: unknown key {unknown[0]!r} (keys: {', '.join(sorted(KEYS))})")
    for key in ("recipe", "seeds", "baseline", "runs"):
        if not content.get(key):
            raise UserError(f"{path}: {key!r} is missing")
    seeds = content["seeds"]
    if not isinstance(seeds, list) or not all(type(seed) is int and seed >= 0 for seed in seeds):
        raise UserError(f"{path}: seeds: a list of numbers, not {seeds!r}")
    if len(set(seeds)) < len(seeds):
        raise UserError(f"{path}: seeds: {seeds} holds one twice")
    shared = content.get("settings") or {}
    arms = {key: _arm(path, key, value or {}, shared, content["runs"]) for key, value in content["runs"].items()}
    wanted = content.get("only") or list(arms)
    for key in (*wanted, content["baseline"]):
        lookup(arms, key, f"run in {path}")
    ordered: dict[str, Arm] = {}
    for key in wanted:
        _add(path, arms, key, ordered, ())
    lookup(ordered, content["baseline"], f"baseline among the runs of {path}")
    return Experiment(
        path.stem,
        str(content.get("title", path.stem)),
        str(content["recipe"]),
        tuple(seeds),
        content["baseline"],
        int(content.get("robustness_images", 30)),
        ordered,
    )


def _path(name: str) -> Path:
    path = Path(name).expanduser() if name.endswith((".yaml", ".yml")) else EXPERIMENTS / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in EXPERIMENTS.glob("*.yaml")))
        raise UserError(f"experiment not found: {path} (experiments: {known})")
    return path


def _merged(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    """The file's mapping on top of what it includes."""
    if path.resolve() in seen:
        raise UserError(f"{path} includes itself")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is no plain yaml: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: an experiment is a mapping")
    include = content.pop("include", None)
    if include is None:
        return content
    local = path.parent / f"{include}.yaml"
    base = _merged(local if local.is_file() else _path(str(include)), (*seen, path.resolve()))
    return _over(base, content)


def _over(base: Any, top: Any) -> Any:
    """``top``'s values win; mappings are merged."""
    if not (isinstance(base, dict) and isinstance(top, dict)):
        return top
    return base | {key: _over(base[key], value) if key in base else value for key, value in top.items()}


def _arm(path: Path, name: str, content: Any, shared: Any, runs: Mapping[str, Any]) -> Arm:
    where = f"{path}: {name}"
    if not re.fullmatch(r"[A-Za-z]\w*", str(name)):
        raise UserError(f"{where}: a run's name is made of letters, digits and _")
    if (
        not isinstance(content, dict)
        or not isinstance(shared, dict)
        or not isinstance(content.get("settings", {}), dict)
    ):
        raise UserError(f"{where}: settings are 'flag: value' lines")
    for key in content.keys() - RUN_KEYS:
        raise UserError(f"{where}: unknown key {key!r} (keys: {', '.join(sorted(RUN_KEYS))})")
    train = content.get("train", "student")
    config_class = lookup({role: ROLES[role] for role in ("teacher", "student")}, train, f"script in {where}: train:")
    own = content.get("settings") or {}
    known = {field.name: field for field in fields(config_class) if field.name not in RUNNER_SETTINGS}
    elsewhere = {field.name for role in ROLES.values() for field in fields(role)} - RUNNER_SETTINGS
    settings, origins = {}, {}
    for key, value in {**shared, **own}.items():
        if key not in known and key in shared and key not in own and key in elsewhere:
            continue  # a shared setting of the other script
        lookup(known, key, f"setting in {where}:")
        origin = _origin(value, runs) if key in CHECKPOINT_SETTINGS else None
        if origin is not None:
            origins[key] = origin
        else:
            settings[key] = convert(config_class, key, value, f"{where}: {key}")
            if key in CHECKPOINT_SETTINGS and value and not Path(settings[key]).suffix:
                lookup(runs, settings[key], f"run in {where}: {key}:")
    return Arm(name, str(content.get("title", name)), train, settings, origins)


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
