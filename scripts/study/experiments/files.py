"""Experiment files: found by name, read, checked for their keys, merged with what they include."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from utils.errors import UserError, lookup
from utils.files import read_yaml

EXPERIMENTS = Path(__file__).resolve().parent
KINDS = {"include": str, "title": str, "recipe": str, "baseline": str, "settings": dict, "seeds": list, "only": list}
KINDS |= {"runs": dict, "compare": list, "robustness_images": int, "equal_time": str}
RUN_KINDS = {"title": str, "train": str, "settings": dict}
IN_WORDS = {str: "a word", list: "a list", dict: "'key: value' lines", int: "a number"}


def find(name: str) -> Path:
    if not name:
        raise UserError("name an experiment: a file of scripts/study/experiments, without .yaml, or a path to one")
    path = Path(name).expanduser() if name.endswith((".yaml", ".yml")) else EXPERIMENTS / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in EXPERIMENTS.glob("*.yaml")))
        raise UserError(f"experiment not found: {path} (experiments: {known})")
    return path


def merged(path: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The file's mapping on top of what it includes; each file is checked by itself."""
    if path.resolve() in seen:
        raise UserError(f"{path} includes itself")
    content = read_yaml(path)
    _check(content, KINDS, str(path))
    for name, run in content.get("runs", {}).items():
        if not re.fullmatch(r"[A-Za-z]\w*", str(name)) or not isinstance(name, str):
            raise UserError(f"{path}: {name!r}: a run's name is made of letters, digits and _")
        content["runs"][name] = {} if run is None else run
        _check(content["runs"][name], RUN_KINDS, f"{path}: {name}")
    include = content.pop("include", None)
    if include is None:
        return content
    beside = path.parent / (include if include.endswith((".yaml", ".yml")) else f"{include}.yaml")
    base = merged(beside if beside.is_file() else find(include), (*seen, path.resolve()))
    return _over(base, content)


def _check(content: Any, kinds: Mapping[str, type], where: str) -> None:
    if not isinstance(content, dict):
        raise UserError(f"{where}: 'key: value' lines, not {content!r}")
    for key, value in content.items():
        kind = lookup(kinds, str(key), f"key in {where}:")
        if type(value) is not kind:
            raise UserError(f"{where}: {key}: {IN_WORDS[kind]}, not {value!r}")


def _over(base: Any, top: Any) -> Any:
    """``top``'s values win; mappings are merged."""
    if not (isinstance(base, dict) and isinstance(top, dict)):
        return top
    return base | {key: _over(base[key], value) if key in base else value for key, value in top.items()}
