"""Settings: default < recipe yaml < flag. One flat record a script; the flags are made from its fields."""

import argparse
import dataclasses
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml

from utils.errors import UserError, lookup, nearest
from utils.names import run_name
from utils.pixels import CONVENTIONS

RECIPES = Path(__file__).resolve().parent.parent / "scripts" / "recipes"
BARE = "bare "  # marks what the parser finds without a flag
REQUIRED = "?"  # a recipe's value for what only the user can give
C = TypeVar("C")


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


@dataclass(frozen=True)
class TrainConfig:
    """What both training scripts share. Names are CIRKD's where CIRKD has one."""

    recipe: str = option("", "name of a file in scripts/recipes, or a path to a yaml file")
    model: str = option("deeplabv3", "architecture")
    backbone: str = option("resnet18_v1s", "backbone: a name of models.BACKBONES or a timm name")
    dataset: str = option("toy", "data set")
    data: str = option("", "root folder of the data set")
    classes: int | None = option(None, "number of classes, where the data set has variants", minimum=2)
    augmentation: str = option("cirkd", "augmentation of the training images: cirkd or mmseg")
    cache_gb: float = option(0.0, "keep decoded images in memory, up to so many GB a process", minimum=0)
    crop_size: tuple[int, int] = option((512, 512), "height and width of a training crop", minimum=32)
    batch_size: int = option(16, "images an iteration, over all processes", minimum=1)
    max_iterations: int = option(40000, "length of the run", minimum=1)
    lr: float = option(0.02, "initial learning rate", minimum=0)
    min_lr: float = option(0.0, "learning rate at the end of the polynomial decay", minimum=0)
    power: float = option(0.9, "exponent of the polynomial decay", minimum=0)
    warmup_iterations: int = option(0, "linear warm-up from a tenth of the learning rate", minimum=0)
    momentum: float = option(0.9, "of SGD", minimum=0)
    weight_decay: float = option(1e-4, "of SGD, on every parameter", minimum=0)
    label_smoothing: float = option(0.0, "of the classes in the task loss, 0 to 1", minimum=0, maximum=1)
    aux_weight: float | None = option(None, "weight of auxiliary losses (default: the architecture's)", minimum=0)
    pixels: str = option("bgr_mean", "pixel convention", choices=tuple(CONVENTIONS))
    pretrained_base: str = option(
        "", "backbone weights: a file, 'package' (an installed package's) or 'timm' (a download)"
    )
    pretrained: str = option("", "checkpoint to start the whole network from")
    workers: int = option(4, "loader processes of each process", minimum=0)
    save_dir: str = option("", "where the run goes (default: runs/<role>-<dataset>-<model>-<backbone>-<what differs>)")
    save_per_iters: int = option(800, "iterations between checkpoints", minimum=1)
    val_per_iters: int = option(800, "iterations between validations", minimum=1)
    log_iter: int = option(10, "iterations between log records", minimum=1)
    skip_val: bool = option(False, "validate only at the end")
    resume: str = option("", "a run's folder or last.pth to continue, or 'auto': continue save_dir if it holds a run")
    overwrite: bool = option(False, "start anew in a save_dir that holds a run")
    seed: int = option(0, "of every random draw", minimum=0)
    device: str = option("auto", "where to run", choices=("auto", "cpu", "cuda"))
    backend: str = option("auto", "between processes: gloo lets them share a GPU", choices=("auto", "gloo"))
    amp: str = option("none", "autocast", choices=("none", "bf16", "fp16"))
    channels_last: bool | None = option(None, "memory layout of the networks (default: what is fast on the device)")
    tf32: bool = option(True, "TF32 in float32 convolutions on CUDA")
    deterministic: bool = option(False, "the same bits in every run on CUDA too, slower")
    compile: bool = option(False, "compile the networks by torch.compile")
    accumulate: int = option(1, "parts that an iteration's batch is computed in, one after another", minimum=1)
    freeze_bn: bool = option(False, "keep BatchNorm in eval mode, for very small batches a process")
    dropout: float | None = option(None, "dropout probability of the heads (default: the architecture's)", minimum=0)
    label_std: float = option(0.03, "standard deviation of the label plane's pixel noise, before scaling", minimum=0)
    label_scale: float | None = option(None, "factor on the label plane (default: the pixel convention's)", minimum=0)
    code_std: float | None = option(None, "of --label-codes near: deviation of the codes from the table", minimum=0)


@dataclass(frozen=True)
class TeacherConfig(TrainConfig):
    single_path: bool = option(False, "one noised label an image and no consistency, instead of LAD's two")
    consistency: str = option("cwd=5", "distance between the two paths and its weight, or none")
    label_codes: str = option("random", "codes of the label plane: random, near, fixed, shuffled or onehot")


@dataclass(frozen=True)
class StudentConfig(TrainConfig):
    teacher_pretrained: str = option("", "the teacher's checkpoint")
    kd: str = option("kd=1", "distillation losses and weights, e.g. cwd=3 or kd=1:tau=4,dist=2; none = the baseline")
    label_codes: str = option("fixed", "codes of the label plane that an assisted teacher sees")
    label_std: float = option(0.02, "standard deviation of the label plane's pixel noise, before scaling", minimum=0)


# A recipe may prefix a key with the role it is for: "student.lr: 0.001".
ROLES: dict[str, type] = {"teacher": TeacherConfig, "student": StudentConfig, "baseline": StudentConfig}


def parse(
    config_class: type[C],
    role: str,
    description: str,
    argv: Sequence[str] | None = None,
    implied: Callable[[Mapping[str, Any]], Mapping[str, Any]] = lambda settings: {},
) -> C:
    """The settings of a run of ``role``. A student without distillation takes the recipe's baseline values.

    implied: what follows from other settings; it wins over the recipe, a flag wins over it.

    Raises:
        UserError: an unknown flag or recipe key, a value of the wrong type or out of range.
    """
    flags = parse_flags(config_class, description, argv)
    if role == "student" and flags.get("kd", "").strip() == "none":
        role = "baseline"
    recipe = load_recipe(flags["recipe"], role) if flags.get("recipe") else {}
    given = {**dataclasses.asdict(config_class()), **recipe, **flags}
    usual = {**recipe, **implied(given)}
    config = config_class(**{**usual, **flags})
    for field in dataclasses.fields(config):
        if getattr(config, field.name) == REQUIRED:
            flag = _flag(field.name)
            raise UserError(f"recipe {flags['recipe']} needs {flag}: {field.metadata['help']}")
    if not config.save_dir:
        name = run_name(role, vars(config), vars(config_class(**usual)), REQUIRED)
        config = dataclasses.replace(config, save_dir=f"runs/{name}")
    return config


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
        parser.add_argument(_flag(field.name), **options)
    # launchers before torchrun pass the local rank as a flag; the environment says the same
    parser.add_argument("--local-rank", "--local_rank", help=argparse.SUPPRESS, default=argparse.SUPPRESS)
    given = vars(parser.parse_intermixed_args(argv))
    given.pop("local_rank", None)
    for name in [key for key in given if key.startswith(BARE)]:
        value, field_name = given.pop(name), name.removeprefix(BARE)
        if value and field_name in given:
            raise UserError(f"{_flag(field_name)} is given twice: with the flag and without")
        if value:
            given[field_name] = value
    return {name: convert(config_class, name, value, _flag(name)) for name, value in given.items()}


def load_recipe(name: str, role: str) -> dict[str, Any]:
    """The values of a recipe that apply to ``role``; role-prefixed keys win over plain ones.

    ``NAME:METHOD`` also takes the values for that method, keys such as ``kd.METHOD``, which win over both.

    Raises:
        UserError: no such recipe or method, no flat mapping, an unknown key, a bad value.
    """
    base, colon, method = name.rpartition(":")
    name, method = (base, method) if colon and not name.endswith((".yaml", ".yml")) else (name, "")
    path = Path(name).expanduser() if name.endswith((".yaml", ".yml")) else RECIPES / f"{name}.yaml"
    if not path.is_file():
        known = sorted(file.stem for file in RECIPES.glob("*.yaml"))
        raise UserError(f"recipe not found: {path}{nearest(name, known)} (recipes: {', '.join(known)})")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is no plain yaml: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: a recipe is a list of 'key: value' lines")
    fields = {r: {field.name for field in dataclasses.fields(c)} - {"recipe"} for r, c in ROLES.items()}
    every = set().union(*fields.values())
    known = every | {f"{r}.{field_name}" for r, names in fields.items() for field_name in names}
    order = ("", role, method) if method else ("", role)
    layers: dict[str, dict[str, Any]] = {layer: {} for layer in order}  # a later one wins
    methods = []
    for key, value in content.items():
        head, _, rest = str(key).partition(".")
        if head not in every and rest not in fields.get(head, ()):
            raise UserError(f"{path}: unknown key {str(key)!r}{nearest(str(key), known)}")
        layer, field_name = (head, rest) if head in ROLES else (rest, head)
        methods += [rest] if rest and head not in ROLES else []
        if layer in layers and field_name in fields[role]:
            layers[layer][field_name] = convert(ROLES[role], field_name, value, f"{path}: {key}")
    if method:
        lookup(dict.fromkeys(methods), method, f"method of {path}")
    return {name: value for layer in layers.values() for name, value in layer.items()}


def convert(config_class: type, name: str, value: Any, where: str) -> Any:
    """A value from the command line (strings) or yaml as the type of the field, within its bounds."""
    field = next(field for field in dataclasses.fields(config_class) if field.name == name)
    hint = typing.get_type_hints(config_class)[name]
    if value == REQUIRED:
        return value
    if value is None and isinstance(hint, types.UnionType):
        return None
    kind = _plain(hint)
    if typing.get_origin(kind) is tuple:
        parts = typing.get_args(kind)
        repeated = parts[-1] is Ellipsis
        if not isinstance(value, (list, tuple)) or not (repeated or len(value) == len(parts)):
            raise UserError(f"{where}: {value!r} is not {len(parts)} values")
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


def save_yaml(config: Any, path: Path) -> None:
    """Write every setting; the file is itself a recipe."""
    values = {key: list(v) if isinstance(v, tuple) else v for key, v in dataclasses.asdict(config).items()}
    values.pop("recipe", None)
    path.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")


def _scalar(kind: type, value: Any, where: str) -> Any:
    if kind is bool or isinstance(value, bool):
        if isinstance(value, bool) and kind is bool:
            return value
        raise UserError(f"{where}: {value!r} is not {'true or false' if kind is bool else f'a {kind.__name__}'}")
    try:
        if kind is int and isinstance(value, float):
            raise ValueError
        return kind(value)
    except (TypeError, ValueError):
        raise UserError(f"{where}: {value!r} is not a {kind.__name__}") from None


def _plain(hint: Any) -> Any:
    """``float | None`` -> ``float``."""
    return typing.get_args(hint)[0] if isinstance(hint, types.UnionType) else hint


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> typing.NoReturn:
        if message.startswith("unrecognized arguments:"):
            given = message.split()[2]
            message = f"unknown flag {given}{nearest(given, self._option_string_actions)}"
        raise UserError(f"{message} (see {self.prog} --help)")
