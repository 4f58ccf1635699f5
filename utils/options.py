"""Turn the fields of a settings dataclass into flags, and convert and check their values."""

import argparse
import dataclasses
import math
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from utils.errors import UserError, suggest_nearest

NO_SCRIPTS: Mapping[str, type] = types.MappingProxyType({})
BARE = "bare "  # begins the parser's name of a value that was given without its flag
REQUIRED = "?"  # a recipe's value for what only the user can give
HEADINGS = ("", "data", "network", "method", "optimisation", "evaluation", "output", "machine")  # of --help, in order
# what a setting affects
RESULT = "result"  # the weights and scores of a run
COMPUTING = "computing"  # only how they are computed: they differ by rounding at most
NOTHING = "nothing"  # neither


def option(
    default: Any,
    text: str,
    choices: Sequence[str] | None = None,
    minimum: float | None = None,
    maximum: float | None = None,
    positional: bool = False,
    group: str = "",
    affects: str = RESULT,
    may_differ: bool = False,
    names_run: bool = True,
    is_file: bool = False,
    examples: Mapping[str, str] | None = None,
) -> Any:
    """Declare a field of a settings record.

    text: what ``--help`` says about the flag. minimum, maximum: the smallest and the largest number that is allowed.
    positional: the flag's name may be left out. group: the heading of ``--help`` that the flag stands under. affects:
    RESULT, COMPUTING or NOTHING. may_differ: the setting may differ when a run is resumed though it affects the
    result. names_run: a value that is not the usual one is part of the run's name, if it affects the result. is_file:
    the setting names a file. examples: what ``--help`` says about some values; others are allowed.
    """
    metadata = {
        "help": text,
        "choices": choices,
        "minimum": minimum,
        "maximum": maximum,
        "positional": positional,
        "group": group,
        "affects": affects,
        "may_differ": may_differ or affects != RESULT,
        "names_run": names_run and affects == RESULT,
        "is_file": is_file,
        "examples": examples,
    }
    return dataclasses.field(default=default, metadata=metadata)


def list_marked(config_class: type, mark: str) -> set[str]:
    """Return the names of the settings for which an argument of ``option`` holds, such as "may_differ"."""
    return {field.name for field in dataclasses.fields(config_class) if field.metadata[mark]}


def parse_flags(
    config_class: type,
    description: str,
    argv: Sequence[str] | None = None,
    other_scripts: Mapping[str, type] = NO_SCRIPTS,
) -> dict[str, Any]:
    """Return the fields given on the command line, converted and checked.

    other_scripts: scripts with a config class of their own. The message on an unknown flag says if it is one of theirs.

    Raises:
        UserError: a flag is unknown, a value is given both with its flag and without, or a value is of another type,
            out of bounds, or no choice. Of a flag that is given twice, the last value counts.
    """
    parser = _make_parser(config_class, description)
    parser.other_scripts = other_scripts
    given = vars(parser.parse_intermixed_args(argv))
    given.pop("local_rank", None)
    for name in list(given):
        if not name.startswith(BARE):
            continue
        value = given.pop(name)
        field_name = name.removeprefix(BARE)
        if value and field_name in given:
            raise UserError(f"{get_flag(field_name)} is given twice: with the flag and without")
        if value:
            given[field_name] = value
    return {name: convert(config_class, name, value, get_flag(name)) for name, value in given.items()}


def _make_parser(config_class: type, description: str) -> "_Parser":
    """Return a parser with a flag for each field, under the headings of their groups."""
    fields = dataclasses.fields(config_class)
    examples = [_describe_examples(field) for field in fields if field.metadata["examples"]]
    parser = _Parser(
        usage="%(prog)s [flags]",
        description=description,
        epilog="\n".join([*examples, "LAD_TRACEBACK=1 in the environment shows where an error was raised."]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    hints = typing.get_type_hints(config_class)
    groups = {"": parser}
    for field in sorted(fields, key=lambda field: HEADINGS.index(field.metadata["group"])):
        heading = field.metadata["group"]
        if heading not in groups:
            groups[heading] = parser.add_argument_group(heading)
        _add_flag(groups[heading], field, _remove_none(hints[field.name]))
    # launchers before torchrun pass the local rank as a flag; the environment says the same
    parser.add_argument("--local-rank", "--local_rank", help=argparse.SUPPRESS, default=argparse.SUPPRESS)
    return parser


def _add_flag(parser: Any, field: dataclasses.Field, kind: Any) -> None:
    """Add the flag of a field, and its bare form where the field is positional."""
    text = field.metadata["help"]
    if field.default not in ("", None, ()) and field.default is not False:
        text += f" (default: {format_value(field.default)})"
    options: dict[str, Any] = {"default": argparse.SUPPRESS, "help": text.replace("%", "%%")}
    if kind is bool:
        options["action"] = argparse.BooleanOptionalAction
    elif typing.get_origin(kind) is tuple:
        repeated = typing.get_args(kind)[-1] is Ellipsis
        options["nargs"] = "+" if repeated else len(typing.get_args(kind))
    if field.metadata["positional"]:
        bare = {"nargs": "*" if options.get("nargs") == "+" else "?", "metavar": field.name.upper().removesuffix("S")}
        parser.add_argument(BARE + field.name, **options | bare)
    if field.metadata["choices"]:
        options["metavar"] = "{" + ",".join(field.metadata["choices"]) + "}"
    parser.add_argument(get_flag(field.name), **options)


def format_value(value: Any) -> str:
    """Return the value of a flag as it is written on the command line."""
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _describe_examples(field: dataclasses.Field) -> str:
    """Return a line for each value that ``--help`` explains."""
    examples = field.metadata["examples"]
    width = max(map(len, examples))
    lines = [f"{get_flag(field.name)}:"]
    for name, text in examples.items():
        lines.append(f"  {name:<{width}}  {text}")
    lines.append("")
    return "\n".join(lines)


def convert(config_class: type, name: str, value: Any, where: str) -> Any:
    """Convert a value from the command line (strings) or yaml to the type of the field, and check its bounds.

    where: the flag, or the file and key, for messages.

    Raises:
        UserError: the value is of another type, out of bounds, or no choice.
    """
    field = next(field for field in dataclasses.fields(config_class) if field.name == name)
    hint = typing.get_type_hints(config_class)[name]
    if value is None and isinstance(hint, types.UnionType):
        return None
    kind = _remove_none(hint)
    if typing.get_origin(kind) is tuple:
        result = _convert_tuple(typing.get_args(kind), value, where)
    else:
        result = _convert_scalar(kind, value, where)
    choices = field.metadata["choices"]
    if choices and result not in choices:
        raise UserError(f"{where}: {result!r}{suggest_nearest(str(result), choices)} (choices: {', '.join(choices)})")
    minimum = field.metadata["minimum"]
    maximum = field.metadata["maximum"]
    for item in result if isinstance(result, tuple) else (result,):
        if minimum is not None and not item >= minimum:
            raise UserError(f"{where}: {item} is too small: at least {minimum}")
        if maximum is not None and not item <= maximum:
            raise UserError(f"{where}: {item} is too large: at most {maximum}")
    return result


def _convert_tuple(item_kinds: Sequence[Any], value: Any, where: str) -> tuple:
    """Convert a list of values. item_kinds: the arguments of the tuple's type.

    Raises:
        UserError: ``value`` is no list of the right length, or one of its items is of another type.
    """
    wanted = f"{len(item_kinds)} values"
    has_right_length = isinstance(value, (list, tuple)) and len(value) == len(item_kinds)
    if item_kinds[-1] is Ellipsis:
        wanted = "a list of one or more values"
        has_right_length = isinstance(value, (list, tuple)) and len(value) > 0
    if not has_right_length:
        raise UserError(f"{where}: {value!r} is not {wanted}")
    return tuple(_convert_scalar(item_kinds[0], item, where) for item in value)


def _convert_scalar(kind: type, value: Any, where: str) -> Any:
    """Convert one value to bool, int, float or str.

    Raises:
        UserError: the value is not of that kind, is a float that is not finite, or an int of more than 64 bits.
    """
    if kind is bool or isinstance(value, bool):
        if isinstance(value, bool) and kind is bool:
            return value
        wanted = "true or false" if kind is bool else f"a {kind.__name__}"
        raise UserError(f"{where}: {value!r} is not {wanted}")
    try:
        # str() takes any value, and int() would cut off the digits of a float
        if value is None or isinstance(value, (list, dict)) or (kind is int and isinstance(value, float)):
            raise ValueError
        result = kind(value)
    except (OverflowError, TypeError, ValueError):
        raise UserError(f"{where}: {value!r} is not a {kind.__name__}") from None
    if kind is float and not math.isfinite(result):
        raise UserError(f"{where}: {value!r} is no finite number")
    if kind is int and not -(2**63) <= result < 2**63:
        raise UserError(f"{where}: {value!r} does not fit into 64 bits")
    return result


def _remove_none(hint: Any) -> Any:
    """Return the type without None: ``float | None`` -> ``float``."""
    return typing.get_args(hint)[0] if isinstance(hint, types.UnionType) else hint


def get_flag(name: str) -> str:
    """Return the flag of a field."""
    return "--" + name.replace("_", "-")


class _Parser(argparse.ArgumentParser):
    """Parse flags, and raise UserError where argparse would end the program. other_scripts: as of ``parse_flags``."""

    other_scripts: Mapping[str, type] = NO_SCRIPTS

    def error(self, message: str) -> typing.NoReturn:
        """Refuse flags that argparse cannot read.

        Raises:
            UserError: always. For an unknown flag, the message names the script that has it, or else the nearest flag.
        """
        if message.startswith("unrecognized arguments:"):
            given = message.removeprefix("unrecognized arguments:").strip().split(" ")[0].partition("=")[0]
            message = self.explain_unknown_flag(given)
        raise UserError(f"{message} (see {self.prog} --help)")

    def explain_unknown_flag(self, given: str) -> str:
        """Return the message on a flag that the script does not have, or on a value without a flag."""
        if not given:
            return "an argument is empty: a variable in the command may not be set"
        if not given.startswith("-"):
            return f"{given} is one value too many: a flag is missing before it, or it has spaces and needs quotes"
        flag = given.replace("_", "-")
        positive = "--" + flag.removeprefix("--no-").removeprefix("--")
        if flag in self._option_string_actions:
            return f"unknown flag {given}: it is written {flag}"
        if positive in self._option_string_actions:
            return f"unknown flag {given}: {positive} has no such form"
        for script, config_class in self.other_scripts.items():
            if positive in {get_flag(field.name) for field in dataclasses.fields(config_class)}:
                return f"{flag} is a flag of {script}; {self.prog} does not have it"
        return f"unknown flag {given}{suggest_nearest(given, self._option_string_actions)}"
