"""Groups of runs that differ in nothing but the seed."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engine.run_inputs import add_defaults
from engine.settings import SAME_EXPERIMENT, StudentConfig, TeacherConfig
from scripts.study.analysis.record_files import Folder, list_runs, open_folder
from scripts.study.analysis.runs import CHECKPOINT_SETTINGS, Run, read_config, read_run
from utils.errors import UserError


def read_groups(folders: Sequence[str]) -> dict[str, list[Run]]:
    """Group runs by their settings. A group is called what the names of its runs have in common.

    folders: run folders, record files, or runs in one: ``results/camvid_lite.zip/lad-0``.

    Raises:
        UserError: no runs are given, or one is given twice.
    """
    paths: list[Folder] = []
    for folder in folders:
        path = open_folder(Path(folder).expanduser().resolve())
        paths += [path] if (path / "config.yaml").is_file() else list_runs(path) or [path]
    if not paths:
        raise UserError("no runs given: compare.py RUN..")
    places = [str(path) for path in paths]
    twice = [place for place in places if places.count(place) > 1]
    if twice:
        raise UserError(f"{twice[0]} is given twice")
    names = [path.name for path in paths]
    alike: dict[str, list[Run]] = {}
    for path in paths:
        run = read_run(path, path.name if names.count(path.name) == 1 else f"{path.parent.name}/{path.name}")
        alike.setdefault(json.dumps(describe_experiment(run.config, path.parent), sort_keys=True), []).append(run)
    groups: dict[str, list[Run]] = {}
    for members in alike.values():
        name = _common_name(members)
        groups[name if name not in groups else members[0].name] = members
        for run in members:
            if sum(run.seed == other.seed for other in members) > 1:
                run.notes.append(f"shares seed {run.seed} with another run of its group: they are not independent")
    return groups


def describe_experiment(
    config: dict[str, Any], beside: Folder | None = None, seen: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Return the settings that tell experiments apart. Two runs are of one group where these are equal.

    A checkpoint that the run started from is described by the settings of the run that wrote it, if that run's folder
    is there. So students belong together if their teachers differ in the seed only.

    beside: where to look for that folder by its name, if it is not where the settings say. seen: the runs on the way
    here, so that a run that started from its own checkpoint does not describe itself for ever.
    """
    whole = add_defaults(config, TeacherConfig if "consistency" in config else StudentConfig)
    settings = {key: value for key, value in whole.items() if key not in SAME_EXPERIMENT}
    for key in ("data", "pretrained_base"):  # the same folder or file lies elsewhere on another machine
        settings[key] = Path(settings[key]).name
    for key in CHECKPOINT_SETTINGS:
        origin = Path(settings.get(key) or "").expanduser()
        places: list[Folder] = [origin.parent]
        if beside is not None:
            places.append(beside / origin.parent.name)
        source = next((place / "config.yaml" for place in places if (place / "config.yaml").is_file()), None)
        if source is not None and origin.name:
            settings[key] = [origin.name]
            if _place(source) not in seen:
                above = (*seen, _place(source))
                settings[key].append(describe_experiment(read_config(source), source.parent.parent, above))
    return settings


def _place(file: Folder) -> str:
    return str(file.resolve() if isinstance(file, Path) else file)


def _common_name(runs: Sequence[Run]) -> str:
    """Return what the names of runs have in common: "student" for student-0 and student-1."""
    if len(runs) == 1:
        return runs[0].name
    prefix = os.path.commonprefix([run.name for run in runs])  # noqa: RUF071 of letters
    prefix = prefix.rstrip("0123456789")
    return prefix.rstrip("-_. ").removesuffix("seed").rstrip("-_. ") or runs[0].name
