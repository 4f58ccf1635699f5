"""Declare the settings of training, and find their values: default < recipe yaml < flag.

Each script has one flat record of settings. The flags are made from its fields. Each field says at its declaration what
it affects (``utils.options.option``): the result, only the way of computing it, or nothing. From that follows which
settings may differ on resume, and which name a run.
"""

import dataclasses
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import yaml

from datasets import DATASETS
from datasets.base import DatasetSpec
from engine.protocol import Protocol
from engine.run_name import make_run_name
from models.architectures import ARCHITECTURES
from models.checkpoints.imagenet import get_implied_settings
from utils.errors import UserError, lookup, nearest
from utils.files import read_yaml, write_text
from utils.options import COMPUTING, NOTHING, REQUIRED, RESULT, convert, get_flag, list_marked, option, parse_flags
from utils.pixels import CONVENTIONS

C = TypeVar("C")
HELP_WIDTH = 96  # of what --help says of a value

# the groups of --help; what a group usually affects
data_option = partial(option, group="data")
network_option = partial(option, group="network")
method_option = partial(option, group="method")
optimisation_option = partial(option, group="optimisation")
output_option = partial(option, group="output", affects=NOTHING)
machine_option = partial(option, group="machine", affects=COMPUTING)

LABEL_CODES = {
    "random": "one of its own for each image and class: LAD's teacher phase",
    "near": "the table, plus --code-std times a random number",
    "fixed": "the same table for every image: LAD's student phase",
    "shuffled": "the table in an order of its own for every image",
    "onehot": "a plane for each class, 1 where the class is",
}
PIXELS = {
    "bgr_mean": "BGR 0..255 minus the mean: LAD and CIRKD",
    "imagenet": "RGB minus ImageNet's mean, divided by its deviation: torchvision, timm, MMSegmentation",
    "inception": "RGB from -1 to 1: EfficientNet-Lite and others of timm",
}


def describe_datasets() -> dict[str, str]:
    """Return what ``--help`` says of each data set."""
    lines = {}
    for name, entry in DATASETS.items():
        text = "your own images: a folder with dataset.yaml"
        if isinstance(entry, DatasetSpec):
            text = f"{len(entry.names)} classes: {', '.join(entry.names)}"
        lines[name] = textwrap.shorten(text, HELP_WIDTH, placeholder=" ...")
    return lines


def describe_models() -> dict[str, str]:
    """Return what ``--help`` says of each architecture: the first line of its function, and a variant's arguments."""
    lines = {}
    for name, build in ARCHITECTURES.items():
        text = ""
        if isinstance(build, partial):
            arguments = [str(value) for value in build.args]
            arguments += [f"{key}={value}" for key, value in build.keywords.items()]
            text = f"{' '.join(arguments)}: " if arguments else ""
            build = build.func
        text += (build.__doc__ or "").partition("\n")[0]
        lines[name] = textwrap.shorten(text, HELP_WIDTH, placeholder=" ...")
    return lines


@dataclass(frozen=True)
class TrainConfig:
    """Hold the settings that both training scripts have. Where CIRKD has such a flag, it has the same name."""

    recipe: str = output_option(
        "", "name of a file in scripts/recipes, or a path to a yaml file", instead="write recipe: beside settings:"
    )
    model: str = network_option(
        "deeplabv3",
        "architecture, or your own network: package.module:function (docs/networks.md)",
        examples=describe_models(),
    )
    backbone: str = network_option("resnet18_v1s", "backbone: a name of models.BACKBONES or a timm name")
    dataset: str = data_option("toy", "data set", examples=describe_datasets())
    data: str = data_option(
        "",
        "root folder of the data set",
        may_differ=True,
        names_run=False,
        instead="give --data or --data-root to experiment.py",
    )
    classes: int | None = data_option(None, "number of classes, where the data set has variants", minimum=2)
    augmentation: str = data_option("cirkd", "augmentation of the training images: cirkd or mmseg")
    cache_gb: float = data_option(
        0.0,
        "keep decoded images in memory, up to so many GB a process",
        minimum=0,
        affects=NOTHING,
        instead="give --cache-gb to experiment.py",
    )
    crop_size: tuple[int, int] = data_option((512, 512), "height and width of a training crop", minimum=32)
    scale_range: tuple[float, float] = data_option(
        (0.5, 2.0), "smallest and largest random scale of the augmentation", minimum=0.1
    )
    fit_to_data: bool = data_option(
        False, "fit crop, batch and length to the training images, up to the values given", names_run=False
    )
    batch_size: int = optimisation_option(16, "images an iteration, over all processes", minimum=1)
    max_iterations: int = optimisation_option(40000, "length of the run", minimum=1)
    lr: float = optimisation_option(0.02, "initial learning rate", minimum=0)
    min_lr: float = optimisation_option(0.0, "learning rate at the end of the polynomial decay", minimum=0)
    power: float = optimisation_option(0.9, "exponent of the polynomial decay", minimum=0)
    warmup_iterations: int = optimisation_option(0, "linear warm-up from a tenth of the learning rate", minimum=0)
    optimizer: str = optimisation_option("sgd", "sgd, or adamw", choices=("sgd", "adamw"))
    momentum: float = optimisation_option(0.9, "momentum of SGD; the first beta of AdamW", minimum=0)
    weight_decay: float = optimisation_option(
        1e-4, "weight decay, by SGD of every parameter, by AdamW not of norms and biases", minimum=0
    )
    task_loss: str = method_option("", "in place of the architecture's: ce, ohem, dice, or a sum such as ce+dice")
    class_weights: str = method_option(
        "",
        "weights of the classes in cross entropy and OHEM: auto (frequency^-0.5), numbers such as 1,2.5,1, or a file "
        "(docs/losses.md)",
    )
    ignored_in_mean: bool = method_option(
        False, "cross entropy over all pixels, ignored ones too, as MMSegmentation has it"
    )
    label_smoothing: float = method_option(
        0.0, "smoothing of the labels in the task loss, 0 to 1", minimum=0, maximum=1
    )
    aux_weight: float | None = method_option(
        None, "weight of auxiliary losses (default: the architecture's)", minimum=0
    )
    pixels: str = data_option("bgr_mean", "pixel convention", choices=tuple(CONVENTIONS), examples=PIXELS)
    pretrained_base: str = network_option(
        "",
        "backbone weights: a file, 'package' (an installed package's) or 'timm' (a download)",
        may_differ=True,
        is_file=True,
    )
    pretrained: str = network_option("", "checkpoint to start the whole network from", may_differ=True, is_file=True)
    workers: int | None = data_option(
        None,
        "loader workers of each rank (default: 4, or fewer where cores are few)",
        minimum=0,
        affects=NOTHING,
        instead="give --workers to experiment.py",
    )
    save_dir: str = output_option(
        "",
        "folder of the run (default: runs/<role>-<dataset>-<model>-<backbone>-<what differs>)",
        instead="give --output to experiment.py",
    )
    save_per_iters: int = output_option(800, "iterations between checkpoints", minimum=1)
    val_per_iters: int = output_option(800, "iterations between validations", minimum=1)
    log_iter: int = output_option(10, "iterations between log records", minimum=1)
    skip_val: bool = output_option(False, "validate only at the end")
    resume: str = output_option(
        "",
        "a run's folder or last.pth to continue, or 'auto': continue save_dir if it holds a run",
        instead="experiment.py continues what it finds",
    )
    overwrite: bool = output_option(
        False, "start anew in a save_dir that holds a run", instead="remove the run's folder to do it again"
    )
    seed: int = optimisation_option(
        0, "seed of every random draw", minimum=0, instead="write it into the list seeds: of the file"
    )
    device: str = machine_option("auto", "where to run", choices=("auto", "cpu", "cuda"))
    backend: str = machine_option("auto", "between processes: gloo lets them share a GPU", choices=("auto", "gloo"))
    amp: str = machine_option("none", "autocast", choices=("none", "bf16", "fp16"), affects=RESULT)
    channels_last: bool | None = machine_option(
        None, "memory layout of the networks (default: what is fast on the device)"
    )
    tf32: bool = machine_option(True, "TF32 in float32 convolutions on CUDA")
    deterministic: bool = machine_option(False, "the same bits in every run on CUDA too, slower")
    compile: bool = machine_option(False, "compile the networks by torch.compile")
    accumulate: int = optimisation_option(
        1, "parts that an iteration's batch is computed in, one after another", minimum=1
    )
    freeze_bn: bool = optimisation_option(
        False, "keep BatchNorm layers that were trained before in eval mode, for very small batches"
    )
    dropout: float | None = network_option(
        None, "dropout probability of the heads (default: the architecture's)", minimum=0, maximum=1
    )
    label_std: float = method_option(
        0.03, "standard deviation of the label plane's pixel noise, before scaling", minimum=0
    )
    label_scale: float | None = method_option(
        None, "factor on the label plane (default: the pixel convention's)", minimum=0
    )
    code_std: float | None = method_option(
        None, "standard deviation of the codes from the table, with --label-codes near", minimum=0
    )


@dataclass(frozen=True)
class TeacherConfig(TrainConfig):
    """Hold the settings of train_teacher.py."""

    single_path: bool = method_option(False, "one noised label an image and no consistency, instead of LAD's two")
    consistency: str = method_option("cwd=5", "distance between the two paths and its weight, or none")
    label_codes: str = method_option(
        "random", "codes of the label plane: random, near, fixed, shuffled or onehot", examples=LABEL_CODES
    )
    label_dropout: float = method_option(
        0.0, "share of the training images that are shown a zero label plane, 0 to 1", minimum=0, maximum=1
    )


@dataclass(frozen=True)
class StudentConfig(TrainConfig):
    """Hold the settings of train_student.py."""

    other_class_names: bool = method_option(
        False,
        "take a teacher none of whose class names is one of the data set's",
        affects=NOTHING,
        may_differ=True,
    )
    teacher_pretrained: str = method_option("", "the teacher's checkpoint", is_file=True)
    teacher_model: str = method_option(
        "",
        "package.module:function of a teacher that is a network of your own (default: --model, if it has the same)",
        affects=NOTHING,
    )
    kd: str = method_option(
        "kd=1", "distillation losses and weights, e.g. cwd=3 or kd=1:tau=4,dist=2; none = the baseline"
    )
    label_codes: str = method_option(
        "fixed", "codes of the label plane that an assisted teacher sees", examples=LABEL_CODES
    )
    label_std: float = method_option(
        0.02, "standard deviation of the label plane's pixel noise, before scaling", minimum=0
    )


# A recipe may prefix a key with the role it is for: "student.lr: 0.001".
TRAINED = {"teacher": TeacherConfig, "student": StudentConfig, "baseline": StudentConfig}
ROLES: dict[str, type] = {**TRAINED, "eval": Protocol}


def list_settings_without_effect(config_class: type) -> set[str]:
    """Return the names of the settings that do not change the result, or only its rounding."""
    return {field.name for field in dataclasses.fields(config_class) if field.metadata["affects"] != RESULT}


# settings that do not make two runs different experiments
IGNORED_WHEN_GROUPING = (
    {"seed"} | list_settings_without_effect(TeacherConfig) | list_settings_without_effect(StudentConfig)
)


def list_resumable_settings(config_class: type) -> set[str]:
    """Return the names of the settings that may differ when a run is resumed."""
    return list_marked(config_class, "may_differ")


def list_loader_settings(config_class: type) -> set[str]:
    """Return the names of the settings that say how much of the machine the loader may use."""
    fields = dataclasses.fields(config_class)
    return {f.name for f in fields if f.metadata["group"] == "data" and f.metadata["affects"] == NOTHING}


def list_file_settings(config_class: type) -> set[str]:
    """Return the names of the settings that name a file."""
    return list_marked(config_class, "is_file")


def parse_settings(
    config_class: type[C], role: str, description: str, recipes: Path, argv: Sequence[str] | None = None
) -> C:
    """Return the settings of a run of train_teacher.py or train_student.py.

    A student without distillation takes the recipe's baseline values.

    role: "teacher" or "student". recipes: the folder of the recipes that are known by name.

    Raises:
        UserError: a flag, recipe, method or recipe key is unknown, a recipe cannot be read, or a value is wrong or
            missing.
    """
    scripts = {"train_teacher.py": TeacherConfig, "train_student.py": StudentConfig}
    flags = parse_flags(config_class, description, argv, scripts)
    role, recipe = choose_recipe(role, flags, recipes)
    given = {**dataclasses.asdict(config_class()), **recipe, **flags}
    without_flags = {**recipe, **get_implied_settings(given)}
    values = {**without_flags, **flags}
    settings = config_class(**values)
    require_values(settings, without_flags, flags)
    settings = settle_code_strength(settings, flags)
    if settings.save_dir:
        return settings
    name = make_run_name(role, settings, config_class(**without_flags))
    return dataclasses.replace(settings, save_dir=f"runs/{name}")


def settle_code_strength(settings: C, flags: Mapping[str, Any]) -> C:
    """Drop the recipe's strength of the label codes where a flag has chosen codes without one.

    Raises:
        UserError: the strength was given for codes that have none.
    """
    if settings.code_std is None or settings.label_codes == "near":
        return settings
    if "code_std" in flags or "label_codes" not in flags:
        raise UserError(f"--code-std is the strength of --label-codes near, not of {settings.label_codes}")
    return dataclasses.replace(settings, code_std=None)


def choose_recipe(role: str, flags: Mapping[str, Any], recipes: Path) -> tuple[str, dict[str, Any]]:
    """Return the role, which is "baseline" for a student without distillation, and its recipe's values."""
    if role == "student" and flags.get("kd", "").strip() == "none":
        role = "baseline"
    if not flags.get("recipe"):
        return role, {}
    recipe = load_recipe(flags["recipe"], role, recipes)
    if role == "student" and "kd" not in flags and recipe.get("kd", "").strip() == "none":
        recipe = load_recipe(flags["recipe"], "baseline", recipes)
        recipe["kd"] = "none"
        return "baseline", recipe
    return role, recipe


def require_values(settings: Any, without_flags: Mapping[str, Any], flags: Mapping[str, Any]) -> None:
    """Check that the user gave what the recipe leaves to the user.

    Raises:
        UserError: a flag is missing.
    """
    for field in dataclasses.fields(settings):
        if without_flags.get(field.name) == REQUIRED and field.name not in flags:
            flag = get_flag(field.name)
            needed = f"recipe {flags['recipe']} needs {flag} ({flag} '' does without)"
            raise UserError(f"{needed}: {field.metadata['help']}")


INCLUDE = "include"  # the key of a recipe that names another


class RecipeKey(NamedTuple):
    """A key of a recipe: the setting, and the role or the method that it is for; "" for all."""

    setting: str
    role: str = ""
    method: str = ""


def load_recipe(name: str, role: str, recipes: Path) -> dict[str, Any]:
    """Return the values of a recipe that apply to ``role``.

    name: of a file in the folder ``recipes``, or a path to one. ``NAME:METHOD`` also takes the values for a method.
    Keys for a role (``student.lr``) win over plain ones, keys for the method (``kd.METHOD``) over both.

    Raises:
        UserError: no such recipe or method, no flat mapping, an unknown key, a bad value.
    """
    path, method = find_recipe(name, recipes)
    settings = {field.name for field in dataclasses.fields(ROLES[role])} - {"recipe"}
    plain: dict[str, Any] = {}
    of_role: dict[str, Any] = {}
    of_method: dict[str, Any] = {}
    methods: dict[str, None] = {}
    for text, value in read_recipe(path).items():
        key = parse_recipe_key(str(text), path)
        if key.method:
            methods[key.method] = None
        if key.setting not in settings or key.role not in ("", role) or key.method not in ("", method):
            continue
        if value != REQUIRED:
            value = convert(ROLES[role], key.setting, value, f"{path}: {text}")
        if key.method:
            of_method[key.setting] = value
        elif key.role:
            of_role[key.setting] = value
        else:
            plain[key.setting] = value
    if method:
        lookup(methods, method, f"method of {path}")
    return {**plain, **of_role, **of_method}


def find_recipe(name: str, recipes: Path) -> tuple[Path, str]:
    """Return the file of a recipe, and the method that is asked for, or "".

    Raises:
        UserError: there is no such file.
    """
    method = ""
    base, colon, rest = name.rpartition(":")
    if colon and not name.endswith((".yaml", ".yml")):
        name = base
        method = rest
    path = recipes / f"{name}.yaml"
    if name.endswith((".yaml", ".yml")):
        path = Path(name).expanduser()
    if not path.is_file():
        known = sorted(file.stem for file in recipes.glob("*.yaml"))
        raise UserError(f"recipe not found: {path}{nearest(name, known)} (recipes: {', '.join(known)})")
    return path, method


def read_recipe(path: Path) -> dict[Any, Any]:
    """Read the lines of a recipe. ``include: NAME`` puts those of another recipe of its folder before them.

    Raises:
        UserError: it is no flat mapping, or includes a recipe that is not there or includes another.
    """
    content = read_flat_yaml(path)
    if INCLUDE not in content:
        return content
    base, _ = find_recipe(str(content.pop(INCLUDE)), path.parent)
    included = read_flat_yaml(base)
    if INCLUDE in included:
        raise UserError(f"{path}: {INCLUDE}: {base.stem} includes another recipe itself: one step is enough")
    return {**included, **content}


def read_flat_yaml(path: Path) -> dict[Any, Any]:
    """Read ``key: value`` lines.

    Raises:
        UserError: it is no flat mapping.
    """
    content = read_yaml(path) or {}
    if not isinstance(content, dict):
        raise UserError(f"{path}: a recipe is a list of 'key: value' lines")
    return content


def parse_recipe_key(text: str, path: Path) -> RecipeKey:
    """Split a key: ``lr``, ``student.lr`` (for a role) or ``lr.cwd`` (for a method).

    Raises:
        UserError: there is no such setting; the nearest one is named.
    """
    of_role = {role: {field.name for field in dataclasses.fields(c)} - {"recipe"} for role, c in ROLES.items()}
    trained = set().union(*(of_role[role] for role in TRAINED))  # of evaluation only "eval.<setting>" is known
    head, _, rest = text.partition(".")
    if rest in of_role.get(head, ()):
        return RecipeKey(rest, role=head)
    if head in trained and head not in ROLES:
        return RecipeKey(head, method=rest)
    known = trained | {f"{role}.{name}" for role, names in of_role.items() for name in names}
    raise UserError(f"{path}: unknown key {text!r}{nearest(text, known)}")


def save_yaml(settings: Any, path: Path) -> None:
    """Write every setting; the file is itself a recipe."""
    values = {key: list(v) if isinstance(v, tuple) else v for key, v in dataclasses.asdict(settings).items()}
    values.pop("recipe", None)
    write_text(path, yaml.safe_dump(values, sort_keys=False))
