"""Find the settings of a run.

The later wins: default, recipe, what the chosen ImageNet weights need, flag.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

from engine.recipes import load_recipe
from engine.run_name import make_run_name
from engine.settings import StudentConfig, TeacherConfig, is_baseline
from models.checkpoints.imagenet import get_implied_settings
from utils.errors import UserError
from utils.options import REQUIRED, get_flag

C = TypeVar("C")

TRAINING_SCRIPTS = {"train_teacher.py": TeacherConfig, "train_student.py": StudentConfig}


def make_settings(config_class: type[C], role: str, flags: Mapping[str, Any]) -> C:
    """Return the settings of a run of train_teacher.py or train_student.py.

    A student without distillation takes the recipe's baseline values.

    role: "teacher" or "student". flags: the values that ``parse_flags`` returns.

    Raises:
        UserError: a recipe, method or recipe key is unknown, a recipe cannot be read, or a value is wrong or missing.
    """
    role, recipe = choose_recipe(role, flags)
    requested = {**dataclasses.asdict(config_class()), **recipe, **flags}
    without_flags = {**recipe, **get_implied_settings(requested)}
    settings = config_class(**{**without_flags, **flags})
    require_values(settings, without_flags, flags)
    settings = drop_unused_code_std(settings, flags)
    if settings.min_lr > settings.lr:
        raise UserError(f"--min-lr {settings.min_lr:g} is above --lr {settings.lr:g}: the rate would rise")
    if settings.save_dir:
        return settings
    name = make_run_name(role, settings, config_class(**without_flags))
    return dataclasses.replace(settings, save_dir=f"runs/{name}")


def drop_unused_code_std(settings: C, flags: Mapping[str, Any]) -> C:
    """Drop the recipe's strength of the label codes where a flag has chosen codes without one.

    Raises:
        UserError: the strength was given for codes that have none.
    """
    if settings.code_std is None or settings.label_codes == "near":
        return settings
    if "code_std" in flags or "label_codes" not in flags:
        raise UserError(f"--code-std is the strength of --label-codes near, not of {settings.label_codes}")
    return dataclasses.replace(settings, code_std=None)


def choose_recipe(role: str, flags: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return the role, which is "baseline" for a student without distillation, and its recipe's values."""
    name = flags.get("recipe")
    recipe = load_recipe(name, role) if name else {}
    if not is_baseline(flags.get("kd", recipe.get("kd", ""))):
        return role, recipe
    recipe = load_recipe(name, "baseline") if name else {}
    if "kd" not in flags:
        recipe["kd"] = "none"
    return "baseline", recipe


def require_values(settings: Any, without_flags: Mapping[str, Any], flags: Mapping[str, Any]) -> None:
    """Check that the user gave what the recipe leaves to the user.

    Raises:
        UserError: a flag is missing.
    """
    for field in dataclasses.fields(settings):
        if without_flags.get(field.name) == REQUIRED and field.name not in flags:
            flag = get_flag(field.name)
            needed = f"recipe {flags['recipe']} needs {flag}"
            if isinstance(field.default, str):
                needed += f" ({flag} '' does without)"
            raise UserError(f"{needed}: {field.metadata['help']}")
