"""Settings: default < recipe yaml < flag. One flat record a script; the flags are made from its fields."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml

from utils.errors import UserError, lookup, nearest
from utils.files import read_yaml, write_text
from utils.options import REQUIRED, convert, flag_of, option, parse_flags
from utils.pixels import CONVENTIONS
from utils.training.naming import run_name
from utils.training.protocol import Protocol

C = TypeVar("C")


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
    optimizer: str = option("sgd", "sgd, or adamw", choices=("sgd", "adamw"))
    momentum: float = option(0.9, "of SGD; the first beta of AdamW", minimum=0)
    weight_decay: float = option(1e-4, "of SGD on every parameter, of AdamW not on norms and biases", minimum=0)
    task_loss: str = option("", "in place of the architecture's: ce, ohem, dice, or a sum such as ce+dice")
    ignored_in_mean: bool = option(False, "cross entropy over all pixels, ignored ones too, as MMSegmentation has it")
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
    dropout: float | None = option(
        None, "dropout probability of the heads (default: the architecture's)", minimum=0, maximum=1
    )
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
    other_class_names: bool = option(False, "take a teacher none of whose class names is one of the data set's")
    kd: str = option("kd=1", "distillation losses and weights, e.g. cwd=3 or kd=1:tau=4,dist=2; none = the baseline")
    label_codes: str = option("fixed", "codes of the label plane that an assisted teacher sees")
    label_std: float = option(0.02, "standard deviation of the label plane's pixel noise, before scaling", minimum=0)


# A recipe may prefix a key with the role it is for: "student.lr: 0.001".
TRAINED = {"teacher": TeacherConfig, "student": StudentConfig, "baseline": StudentConfig}
ROLES: dict[str, type] = {**TRAINED, "eval": Protocol}


def parse(
    config_class: type[C],
    role: str,
    description: str,
    recipes: Path,
    argv: Sequence[str] | None = None,
    implied: Callable[[Mapping[str, Any]], Mapping[str, Any]] = lambda settings: {},
) -> C:
    """The settings of a run of ``role``. A student without distillation takes the recipe's baseline values.

    recipes: the folder of those known by name. implied: what follows from other settings; it wins over the recipe, a
    flag wins over it.

    Raises UserError: an unknown flag or recipe key, a value of the wrong type or out of range.
    """
    flags = parse_flags(config_class, description, argv)
    if role == "student" and flags.get("kd", "").strip() == "none":
        role = "baseline"
    recipe = load_recipe(flags["recipe"], role, recipes) if flags.get("recipe") else {}
    if role == "student" and "kd" not in flags and recipe.get("kd", "").strip() == "none":
        role, recipe = "baseline", load_recipe(flags["recipe"], "baseline", recipes) | {"kd": "none"}
    given = {**dataclasses.asdict(config_class()), **recipe, **flags}
    usual = {**recipe, **implied(given)}
    config = config_class(**{**usual, **flags})
    for field in dataclasses.fields(config):
        if usual.get(field.name) == REQUIRED and field.name not in flags:
            flag = flag_of(field.name)
            given = f"recipe {flags['recipe']} needs {flag} ({flag} '' does without)"
            raise UserError(f"{given}: {field.metadata['help']}")
    if config.code_std is not None and config.label_codes != "near":
        raise UserError(f"--code-std is the strength of --label-codes near, not of {config.label_codes}")
    if not config.save_dir:
        name = run_name(role, vars(config), vars(config_class(**usual)), REQUIRED)
        config = dataclasses.replace(config, save_dir=f"runs/{name}")
    return config


def load_recipe(name: str, role: str, recipes: Path) -> dict[str, Any]:
    """The values of a recipe that apply to ``role``; role-prefixed keys win over plain ones.

    name: of a file in the folder ``recipes``, or a path to one.

    ``NAME:METHOD`` also takes the values for that method, keys such as ``kd.METHOD``, which win over both.

    Raises UserError: no such recipe or method, no flat mapping, an unknown key, a bad value.
    """
    base, colon, method = name.rpartition(":")
    name, method = (base, method) if colon and not name.endswith((".yaml", ".yml")) else (name, "")
    path = Path(name).expanduser() if name.endswith((".yaml", ".yml")) else recipes / f"{name}.yaml"
    if not path.is_file():
        known = sorted(file.stem for file in recipes.glob("*.yaml"))
        raise UserError(f"recipe not found: {path}{nearest(name, known)} (recipes: {', '.join(known)})")
    content = read_yaml(path) or {}
    if not isinstance(content, dict):
        raise UserError(f"{path}: a recipe is a list of 'key: value' lines")
    fields = {r: {field.name for field in dataclasses.fields(c)} - {"recipe"} for r, c in ROLES.items()}
    every = set().union(*(fields[r] for r in TRAINED))  # of evaluation only "eval.<name>" is known
    known = every | {f"{r}.{field_name}" for r, names in fields.items() for field_name in names}
    layers: dict[str, dict[str, Any]] = {layer: {} for layer in (":", role, f":{method}")}  # a later one wins
    methods = []
    for key, value in content.items():
        head, _, rest = str(key).partition(".")
        if head not in every and rest not in fields.get(head, ()):
            raise UserError(f"{path}: unknown key {str(key)!r}{nearest(str(key), known)}")
        layer, field_name = (head, rest) if head in ROLES else (f":{rest}", head)
        methods += [rest] if rest and head not in ROLES else []
        if layer in layers and field_name in fields[role]:
            asked = value == REQUIRED
            layers[layer][field_name] = value if asked else convert(ROLES[role], field_name, value, f"{path}: {key}")
    if method:
        lookup(dict.fromkeys(methods), method, f"method of {path}")
    return {name: value for layer in layers.values() for name, value in layer.items()}


def save_yaml(config: Any, path: Path) -> None:
    """Write every setting; the file is itself a recipe."""
    values = {key: list(v) if isinstance(v, tuple) else v for key, v in dataclasses.asdict(config).items()}
    values.pop("recipe", None)
    write_text(path, yaml.safe_dump(values, sort_keys=False))
