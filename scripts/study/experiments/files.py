"""Find, read and check the yaml files of experiments, and merge each with the file that it includes."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from utils.errors import UserError, lookup
from utils.files import read_yaml

EXPERIMENTS = Path(__file__).resolve().parent
KEYS = {  # of an experiment file, with the kinds of their values
    "include": str,
    "title": str,
    "source": str,
    "columns": list,
    "recipe": str,
    "settings": dict,
    "networks": dict,
    "seeds": list,
    "baseline": str,
    "equal_time": str,
    "compare": list,
    "robustness_images": int,
    "only": list,
    "runs": dict,
}
RUN_KEYS = {  # of each entry under "runs"
    "title": str,
    "train": str,
    "network": str,
    "recipe": str,
    "settings": dict,
    "row": list,
    "published": float,
}
IN_WORDS = {str: "a word", list: "a list", dict: "'key: value' lines", int: "a number", float: "a number"}


def find_experiment(name: str) -> Path:
    """Return the file of an experiment, given by its name in this folder or by a path.

    Raises:
        UserError: there is no such file.
    """
    if not name:
        raise UserError("name an experiment: a file of scripts/study/experiments, without .yaml, or a path to one")
    path = Path(name).expanduser() if name.endswith((".yaml", ".yml")) else EXPERIMENTS / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in EXPERIMENTS.glob("*.yaml")))
        raise UserError(f"experiment not found: {path} (experiments: {known})")
    return path


def read_with_include(path: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Return the content of a file, merged over what it includes. Each file is checked by itself.

    Raises:
        UserError: a file includes itself, has an unknown key, or a value of the wrong kind.
    """
    if path.resolve() in seen:
        raise UserError(f"{path} includes itself")
    content = read_yaml(path)
    _check_keys(content, KEYS, str(path))
    for name, run in content.get("runs", {}).items():
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z]\w*", name):
            raise UserError(f"{path}: {name!r}: a run's name is made of letters, digits and _")
        content["runs"][name] = {} if run is None else run
        _check_keys(content["runs"][name], RUN_KEYS, f"{path}: {name}")
    include = content.pop("include", None)
    if include is None:
        return content
    file_name = include if include.endswith((".yaml", ".yml")) else f"{include}.yaml"
    included = path.parent / file_name
    if not included.is_file():
        included = find_experiment(include)
    base = read_with_include(included, (*seen, path.resolve()))
    return _merge(base, content)


def _check_keys(content: Any, keys: Mapping[str, type], where: str) -> None:
    """Check the keys of a mapping, and the kinds of their values.

    Raises:
        UserError: it is no mapping, a key is unknown, or a value is of the wrong kind.
    """
    if not isinstance(content, dict):
        raise UserError(f"{where}: 'key: value' lines, not {content!r}")
    for key, value in content.items():
        kind = lookup(keys, str(key), f"key in {where}:")
        is_right = type(value) in (int, float) if kind is float else type(value) is kind
        if not is_right:
            raise UserError(f"{where}: {key}: {IN_WORDS[kind]}, not {value!r}")


def _merge(base: Any, top: Any) -> Any:
    """Return ``base`` with the values of ``top`` in it. Mappings are merged key by key."""
    if not (isinstance(base, dict) and isinstance(top, dict)):
        return top
    merged = dict(base)
    for key, value in top.items():
        merged[key] = _merge(base[key], value) if key in base else value
    return merged
