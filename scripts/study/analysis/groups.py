"""Groups of runs that differ in nothing but the seed."""

import json
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

from scripts.study.analysis.runs import CHECKPOINT_SETTINGS, Run, read_run
from utils.errors import UserError
from utils.files import read_yaml

# settings that do not make two runs different experiments: the seed, and what changes nothing that is computed
SAME_EXPERIMENT = {
    "seed", "recipe", "save_dir", "resume", "overwrite", "workers", "cache_gb", "device", "log_iter", "skip_val",
    "val_per_iters", "save_per_iters",
}  # fmt: skip


def read_groups(folders: Sequence[str], named: Sequence[str]) -> dict[str, list[Run]]:
    """Groups by name: those written out as ``name=RUN,RUN``, then the other folders by their settings.

    Raises:
        UserError: no runs, a run given twice, or a group that is not ``name=RUN,RUN``.
    """
    explicit: dict[str, list[Path]] = {}
    for text in named:
        name, equals, members = text.partition("=")
        if not (name and equals and all(members.split(","))) or name in explicit:
            raise UserError(f"--group {text}: write name=RUN,RUN, each name once")
        explicit[name] = [Path(member).expanduser() for member in members.split(",")]
    loose = [Path(folder).expanduser() for folder in folders]
    every = [path for paths in explicit.values() for path in paths] + loose
    if not every:
        raise UserError("no runs given: compare.py RUN.. or --group name=RUN,RUN")
    resolved = [path.resolve() for path in every]
    twice = [str(path) for path, full in zip(every, resolved, strict=True) if resolved.count(full) > 1]
    if twice:
        raise UserError(f"{twice[0]} is given twice")
    bases = [path.name for path in resolved]
    names = [full.name if bases.count(full.name) == 1 else f"{full.parent.name}/{full.name}" for full in resolved]
    runs = {path: read_run(path, name) for path, name in zip(every, names, strict=True)}
    groups = {name: [runs[path] for path in paths] for name, paths in explicit.items()}
    alike: dict[str, list[Run]] = {}
    for path in loose:
        settings = experiment(runs[path].config, path.resolve().parent)
        alike.setdefault(json.dumps(settings, sort_keys=True), []).append(runs[path])
    for members in alike.values():
        name = _common_name(members)
        groups[name if name not in groups else members[0].name] = members
    for members in groups.values():
        for run in members:
            if sum(run.seed == other.seed for other in members) > 1:
                run.notes.append(f"shares seed {run.seed} with another run of its group: they are not independent")
    return groups


def experiment(config: dict[str, Any], beside: Path | None = None) -> dict[str, Any]:
    """The settings that tell experiments apart. A checkpoint counts by the experiment it comes from, where its run
    folder is at hand, or one of that name in ``beside``, so that students of teachers that differ in the seed alone
    belong together.
    """
    settings = {key: value for key, value in config.items() if key not in SAME_EXPERIMENT}
    for key in CHECKPOINT_SETTINGS:
        origin = Path(settings.get(key) or "").expanduser()
        places = (origin.parent, beside / origin.parent.name) if beside else (origin.parent,)
        source = next((place / "config.yaml" for place in places if (place / "config.yaml").is_file()), None)
        if source is not None and origin.name:
            content = read_yaml(source)
            settings[key] = [origin.name, experiment(content, source.parent.parent)]
    return settings


def _common_name(runs: Sequence[Run]) -> str:
    """What the names of seeds have in common: student-0, student-1 -> student."""
    if len(runs) == 1:
        return runs[0].name
    alike = takewhile(lambda letters: len(set(letters)) == 1, zip(*(run.name for run in runs), strict=False))
    prefix = "".join(letters[0] for letters in alike).rstrip("0123456789")
    return prefix.rstrip("-_. ").removesuffix("seed").rstrip("-_. ") or runs[0].name
