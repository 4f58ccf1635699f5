"""Settings as the fields of a dataclass: made into flags, converted and checked."""

import argparse
import dataclasses
import math
import types
import typing
from collections.abc import Sequence
from typing import Any

from utils.errors import UserError, nearest

BARE = "bare "  # marks what the parser finds without a flag
REQUIRED = "?"  # a recipe's value for what only the user can give


def option(
    default: Any,
    text: str,
    choices: Sequence[str] | None = None,
    minimum: float | None = None,
    maximum: float | None = None,
    positional: bool = False,
) -> Any:
    """A field of a settings record. ``positional``: the flag's name may be left out."""
    metadata = {"help": text, "choices": choices, "minimum": minimum, "maximum": maximum, "positional": positional}
    return dataclasses.field(default=default, metadata=metadata)


def parse_flags(config_class: type, description: str, argv: Sequence[str] | None = None) -> dict[str, Any]:
    """The fields given on the command line, converted and checked."""
    parser = _Parser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    hints = typing.get_type_hints(config_class)
    for field in dataclasses.fields(config_class):
        kind, shown = _plain(hints[field.name]), "" if field.default in ("", None) else f" (default: {field.default})"
        options: dict[str, Any] = {"default": argparse.SUPPRESS, "help": field.metadata["help"] + shown}
        if kind is bool:
            options["action"] = argparse.BooleanOptionalAction
        elif typing.get_origin(kind) is tuple:
            repeated = typing.get_args(kind)[-1] is Ellipsis
            options["nargs"] = "+" if repeated else len(typing.get_args(kind))
        if field.metadata["positional"]:
            bare = {
                "nargs": "*" if options.get("nargs") == "+" else "?",
                "metavar": field.name.upper().removesuffix("S"),
            }
            parser.add_argument(BARE + field.name, **options | bare)
        if field.metadata["choices"]:
            options["metavar"] = "{" + ",".join(field.metadata["choices"]) + "}"
        parser.add_argument(flag_of(field.name), **options)
    # launchers before torchrun pass the local rank as a flag; the environment says the same
    parser.add_argument("--local-rank", "--local_rank", help=argparse.SUPPRESS, default=argparse.SUPPRESS)
    given = vars(parser.parse_intermixed_args(argv))
    given.pop("local_rank", None)
    for name in [key for key in given if key.startswith(BARE)]:
        value, field_name = given.pop(name), name.removeprefix(BARE)
        if value and field_name in given:
            raise UserError(f"{flag_of(field_name)} is given twice: with the flag and without")
        if value:
            given[field_name] = value
    return {name: convert(config_class, name, value, flag_of(name)) for name, value in given.items()}


def convert(config_class: type, name: str, value: Any, where: str) -> Any:
    """A value from the command line (strings) or yaml as the type of the field, within its bounds."""
    field = next(field for field in dataclasses.fields(config_class) if field.name == name)
    hint = typing.get_type_hints(config_class)[name]
    if value is None and isinstance(hint, types.UnionType):
        return None
    kind = _plain(hint)
    if typing.get_origin(kind) is tuple:
        parts = typing.get_args(kind)
        repeated = parts[-1] is Ellipsis
        if not isinstance(value, (list, tuple)) or not (value if repeated else len(value) == len(parts)):
            wanted = "a list of one or more values" if repeated else f"{len(parts)} values"
            raise UserError(f"{where}: {value!r} is not {wanted}")
        result = tuple(_scalar(parts[0], item, where) for item in value)
    else:
        result = _scalar(kind, value, where)
    if field.metadata["choices"] and result not in field.metadata["choices"]:
        choices = field.metadata["choices"]
        raise UserError(f"{where}: {result!r}{nearest(str(result), choices)} (choices: {', '.join(choices)})")
    minimum, maximum = field.metadata["minimum"], field.metadata["maximum"]
    for item in result if isinstance(result, tuple) else (result,):
        if minimum is not None and not item >= minimum:
            raise UserError(f"{where}: {item} is too small: at least {minimum}")
        if maximum is not None and not item <= maximum:
            raise UserError(f"{where}: {item} is too large: at most {maximum}")
    return result


def _scalar(kind: type, value: Any, where: str) -> Any:
    if kind is bool or isinstance(value, bool):
        if isinstance(value, bool) and kind is bool:
            return value
        raise UserError(f"{where}: {value!r} is not {'true or false' if kind is bool else f'a {kind.__name__}'}")
    try:
        if value is None or isinstance(value, (list, dict)) or (kind is int and isinstance(value, float)):
            raise ValueError  # anything has a str
        result = kind(value)
    except (OverflowError, TypeError, ValueError):
        raise UserError(f"{where}: {value!r} is not a {kind.__name__}") from None
    if kind is float and not math.isfinite(result):
        raise UserError(f"{where}: {value!r} is no finite number")
    if kind is int and not -(2**63) <= result < 2**63:
        raise UserError(f"{where}: {value!r} does not fit into 64 bits")
    return result


def _plain(hint: Any) -> Any:
    """``float | None`` -> ``float``."""
    return typing.get_args(hint)[0] if isinstance(hint, types.UnionType) else hint


def flag_of(name: str) -> str:
    return "--" + name.replace("_", "-")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> typing.NoReturn:
        if message.startswith("unrecognized arguments:"):
            given = message.split()[2]
            message = f"unknown flag {given}{nearest(given, self._option_string_actions)}"
        raise UserError(f"{message} (see {self.prog} --help)")
