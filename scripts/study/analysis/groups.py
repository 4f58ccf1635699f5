"""Groups of runs that differ in nothing but the seed."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engine.run_inputs import add_defaults
from engine.settings import IGNORED_WHEN_GROUPING, StudentConfig, TeacherConfig
from scripts.study.analysis.record_files import Folder, list_runs, open_folder
from scripts.study.analysis.runs import CHECKPOINT_SETTINGS, Run, read_config, read_run
from utils.errors import UserError


def read_groups(folders: Sequence[str]) -> dict[str, list[Run]]:
    """Group runs by their settings. A group is called what the names of its runs have in common.

    folders: run folders, record files, or runs in one: ``results/camvid_lite.zip/lad-0``.

    Raises:
        UserError: no runs are given, or a run is given twice.
    """
    paths = _list_run_paths(folders)
    names = [path.name for path in paths]
    runs_by_settings: dict[str, list[Run]] = {}
    for path in paths:
        is_unique = names.count(path.name) == 1
        run = read_run(path, path.name if is_unique else f"{path.parent.name}/{path.name}")
        settings = json.dumps(collect_grouping_settings(run.config, path.parent), sort_keys=True)
        runs_by_settings.setdefault(settings, []).append(run)
    groups: dict[str, list[Run]] = {}
    for members in runs_by_settings.values():
        name = _find_common_name(members)
        if name in groups:
            name = members[0].name
        groups[name] = members
        _note_shared_seeds(members)
    return groups


def _list_run_paths(folders: Sequence[str]) -> list[Folder]:
    """Return the runs that are given, and in place of a folder of runs or a record file all runs in it.

    Raises:
        UserError: no runs are given, or a run is given twice.
    """
    paths: list[Folder] = []
    for folder in folders:
        path = open_folder(Path(folder).expanduser().resolve())
        runs_inside = [] if (path / "config.yaml").is_file() else list_runs(path)
        if runs_inside:
            paths += runs_inside
        else:
            paths.append(path)
    if not paths:
        raise UserError("no runs given: compare.py RUN..")
    places = [str(path) for path in paths]
    for place in places:
        if places.count(place) > 1:
            raise UserError(f"{place} is given twice")
    return paths


def _note_shared_seeds(members: Sequence[Run]) -> None:
    """Add a note to each run of a group whose seed another run of the group has, too."""
    seeds = [run.seed for run in members]
    for run in members:
        if seeds.count(run.seed) > 1:
            run.notes.append(f"shares seed {run.seed} with another run of its group: they are not independent")


def collect_grouping_settings(
    config: dict[str, Any], beside: Folder | None = None, seen: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Return the settings by which runs are grouped: those that change the result, without the seed.

    The path of a checkpoint, its own or its teacher's, is replaced by the file's name and the settings of the run that
    wrote it. So students are of one group if their teachers differ in the seed only. If that run is not found, the path
    stays, and runs with different paths are of different groups.

    beside: the folder that holds the runs. The run of a checkpoint is looked for there by its name, if it is not where
    the settings say. seen: the config.yaml files that are described already. They end the recursion where runs refer to
    each other in a circle.

    Raises:
        UserError: a config.yaml is damaged.
    """
    config_class = TeacherConfig if "consistency" in config else StudentConfig
    whole = add_defaults(config, config_class)
    settings = {key: value for key, value in whole.items() if key not in IGNORED_WHEN_GROUPING}
    for key in ("data", "pretrained_base"):  # the same folder or file lies elsewhere on another machine
        settings[key] = Path(settings[key] or "").name
    for key in CHECKPOINT_SETTINGS:
        checkpoint = Path(settings.get(key) or "").expanduser()
        config_file = _find_config(checkpoint, beside)
        if config_file is None:
            continue
        settings[key] = [checkpoint.name]
        place = str(config_file.resolve() if isinstance(config_file, Path) else config_file)
        if place not in seen:
            above = collect_grouping_settings(read_config(config_file), config_file.parent.parent, (*seen, place))
            settings[key].append(above)
    return settings


def _find_config(checkpoint: Path, beside: Folder | None) -> Folder | None:
    """Return the config.yaml of the run that wrote a checkpoint, or None if it is not found."""
    if not checkpoint.name:
        return None
    folders: list[Folder] = [checkpoint.parent]
    if beside is not None:
        folders.append(beside / checkpoint.parent.name)
    for folder in folders:
        if (folder / "config.yaml").is_file():
            return folder / "config.yaml"
    return None


def _find_common_name(runs: Sequence[Run]) -> str:
    """Return what the names of runs have in common: "student" for student-0 and student-1."""
    if len(runs) == 1:
        return runs[0].name
    prefix = os.path.commonprefix([run.name for run in runs])  # noqa: RUF071 of letters
    prefix = prefix.rstrip("0123456789")
    return prefix.rstrip("-_. ").removesuffix("seed").rstrip("-_. ") or runs[0].name
