"""Read recipes: yaml files with the settings of a training."""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

from engine.settings import ROLES, START_SETTINGS, TRAINED
from utils.errors import UserError, require_known, suggest_nearest
from utils.files import read_yaml
from utils.options import REQUIRED, convert

RECIPES = Path(__file__).resolve().parents[1] / "scripts" / "recipes"  # those that are known by name
INCLUDE = "include"  # the key of a recipe that names another


class RecipeKey(NamedTuple):
    """A key of a recipe: the setting, and the role or the method that it is for; "" for all."""

    setting: str
    role: str = ""
    method: str = ""

    def applies_to(self, role: str, method: str) -> bool:
        """Return whether the value of this key counts for a role and a method."""
        has_setting = self.setting in list_recipe_settings(role)
        return has_setting and self.role in ("", role) and self.method in ("", method)

    def get_rank(self) -> int:
        """Return the rank of a key for the same setting: a value of higher rank wins."""
        if self.method:
            return 2
        return 1 if self.role else 0


class RecipeLine(NamedTuple):
    """A line of a recipe: its key, as it is written and as it is read, and its value."""

    text: str
    key: RecipeKey
    value: Any


def list_recipe_settings(role: str) -> set[str]:
    """Return the names of the settings that a recipe may give for a role."""
    return {field.name for field in dataclasses.fields(ROLES[role])} - {"recipe"}


def load_recipe(name: str, role: str) -> dict[str, Any]:
    """Return the values of a recipe that apply to ``role``.

    name: of a file in the folder RECIPES, or a path to one. ``NAME:METHOD`` also takes the values for a method.
    Keys for a role (``student.lr``) win over plain ones, keys for the method (``kd.METHOD``) over both.

    Raises:
        UserError: no such recipe or method, no flat mapping, an unknown key, a bad value.
    """
    path, method = find_recipe(name)
    lines = parse_recipe(path)
    if method:
        known_methods = dict.fromkeys(line.key.method for line in lines if line.key.method)
        require_known(method, known_methods, f"method of {path}")
    values: dict[str, Any] = {}
    for line in sorted(lines, key=lambda line: line.key.get_rank()):
        if line.key.applies_to(role, method):
            value = line.value
            if value != REQUIRED:
                value = convert(ROLES[role], line.key.setting, value, f"{path}: {line.text}")
            values[line.key.setting] = value
    return values


def parse_recipe(path: Path) -> list[RecipeLine]:
    """Read the lines of a recipe, without those for a single start of a run.

    Raises:
        UserError: a key is unknown, or a setting for a single start has a value.
    """
    lines = []
    for key_text, value in read_recipe(path).items():
        text = str(key_text)
        key = parse_recipe_key(text, path)
        if key.setting not in START_SETTINGS:
            lines.append(RecipeLine(text, key, value))
        elif value:  # the config.yaml of older runs has such settings, mostly without a value
            raise UserError(f"{path}: {text} is for a single start of a run: give the flag, and take the key out")
    return lines


def find_recipe(name: str) -> tuple[Path, str]:
    """Return the file of a recipe, and the method that is asked for, or "".

    Raises:
        UserError: there is no such file.
    """
    method = ""
    base, colon, rest = name.rpartition(":")
    if colon and not name.endswith((".yaml", ".yml")):
        name = base
        method = rest
    path = RECIPES / f"{name}.yaml"
    if name.endswith((".yaml", ".yml")):
        path = Path(name).expanduser()
    if not path.is_file():
        known = sorted(file.stem for file in RECIPES.glob("*.yaml"))
        raise UserError(f"recipe not found: {path}{suggest_nearest(name, known)} (recipes: {', '.join(known)})")
    return path, method


def read_recipe(path: Path) -> dict[Any, Any]:
    """Read the lines of a recipe. ``include: NAME`` puts those of another recipe before them.

    NAME is the name or the file name of a recipe in the same folder, or the name of one that comes with the project.

    A line of the recipe replaces the included one of the same key. A line for all roles, such as ``kd``, also replaces
    the included ones for a role, such as ``student.kd``.

    Raises:
        UserError: the file is no flat mapping, or the recipe that it includes does not exist, includes another, or is
            named with a method.
    """
    content = read_flat_yaml(path)
    if INCLUDE not in content:
        return content
    base = _find_included(str(content.pop(INCLUDE)), path)
    included = read_flat_yaml(base)
    if INCLUDE in included:
        raise UserError(f"{path}: {INCLUDE}: {base.stem} includes another recipe itself: one step is enough")
    replaced = {f"{role}.{text}" for role in ROLES for text in content}
    kept = {text: value for text, value in included.items() if text not in replaced}
    return {**kept, **content}


def _find_included(name: str, path: Path) -> Path:
    """Return the file of the recipe that another one, at ``path``, includes.

    Raises:
        UserError: there is no such recipe, or it is named with a method.
    """
    if ":" in name:
        raise UserError(f"{path}: {INCLUDE}: {name}: leave out the colon and the method after it")
    stem = name.removesuffix(".yaml").removesuffix(".yml")
    for suffix in (".yaml", ".yml"):
        file = path.parent / f"{stem}{suffix}"
        if file.is_file():
            return file
    file, _ = find_recipe(stem)
    return file


def read_flat_yaml(path: Path) -> dict[Any, Any]:
    """Read ``key: value`` lines.

    Raises:
        UserError: the file is no flat mapping.
    """
    content = read_yaml(path) or {}
    if not isinstance(content, dict):
        raise UserError(f"{path}: a recipe is a list of 'key: value' lines")
    return content


def parse_recipe_key(text: str, path: Path) -> RecipeKey:
    """Split a key: ``lr``, ``student.lr`` (for a role) or ``lr.cwd`` (for a method).

    Raises:
        UserError: the setting is unknown. The message names the nearest one.
    """
    head, _, rest = text.partition(".")
    if head in ROLES and rest in list_recipe_settings(head):
        return RecipeKey(rest, role=head)
    known = set()
    for role in TRAINED:  # of evaluation only "eval.<setting>" is known
        known |= list_recipe_settings(role)
    if head in known and head not in ROLES:
        return RecipeKey(head, method=rest)
    for role in ROLES:
        known |= {f"{role}.{setting}" for setting in list_recipe_settings(role)}
    raise UserError(f"{path}: unknown key {text!r}{suggest_nearest(text, known)}")
