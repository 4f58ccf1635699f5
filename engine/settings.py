"""Declare the settings of training.

Each script has one flat record of settings. The flags are made from its fields. Each field says at its declaration what
it affects (``utils.options.option``): the result, only the way of computing it, or nothing. From that follows which
settings may differ on resume, and which name a run.
"""

import dataclasses
import textwrap
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from datasets import DATASETS
from datasets.base import DatasetSpec
from engine.protocol import EvalProtocol
from models.architectures import ARCHITECTURES
from utils.files import write_text
from utils.options import COMPUTING, NOTHING, RESULT, list_marked, option
from utils.pixels import CONVENTIONS

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
            arguments = [str(value) for value in build.args if value != name]
            arguments += [f"{key}={value}" for key, value in build.keywords.items()]
            text = f"{' '.join(arguments)}: " if arguments else ""
            build = build.func
        text += (build.__doc__ or "").partition("\n")[0]
        lines[name] = textwrap.shorten(text, HELP_WIDTH, placeholder=" ...")
    return lines


@dataclass(frozen=True)
class TrainConfig:
    """Hold the settings that both training scripts have. Where CIRKD has such a flag, it has the same name."""

    recipe: str = output_option("", "name of a file in scripts/recipes, or a path to a yaml file")
    model: str = network_option(
        "deeplabv3",
        "architecture, or your own network: package.module:function (docs/networks.md)",
        examples=describe_models(),
    )
    backbone: str = network_option("resnet18_v1s", "backbone: a name of models.BACKBONES or a timm name")
    dataset: str = data_option("toy", "data set", examples=describe_datasets())
    data: str = data_option("", "root folder of the data set", may_differ=True, names_run=False)
    classes: int | None = data_option(None, "number of classes, where the data set has variants", minimum=2)
    augmentation: str = data_option("cirkd", "augmentation of the training images: cirkd or mmseg")
    cache_gb: float = data_option(
        0.0,
        "keep decoded images in memory, up to so many GB a process",
        minimum=0,
        affects=NOTHING,
    )
    crop_size: tuple[int, int] = data_option((512, 512), "height and width of a training crop", minimum=32)
    scale_range: tuple[float, float] = data_option(
        (0.5, 2.0), "smallest and largest random scale of the augmentation", minimum=0.1, maximum=16
    )
    fit_to_data: bool = data_option(
        False, "fit crop, batch and length to the training images, up to the values given", affects=NOTHING
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
        "weights of the classes in cross entropy and OHEM: auto (frequency^-0.5), auto:0.25 (frequency^-0.25), numbers "
        "such as 1,2.5,1, or a file (docs/losses.md)",
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
    )
    save_dir: str = output_option(
        "",
        "folder of the run (default: runs/<role>-<dataset>-<model>-<backbone>-<what differs>)",
    )
    save_per_iters: int = output_option(800, "iterations between checkpoints", minimum=1)
    val_per_iters: int = output_option(800, "iterations between validations", minimum=1)
    log_iter: int = output_option(10, "iterations between log records", minimum=1)
    skip_val: bool = output_option(False, "validate only at the end")
    resume: str = output_option(
        "",
        "a run's folder or last.pth to continue, or 'auto': continue save_dir if it holds a run",
    )
    overwrite: bool = output_option(False, "start anew in a save_dir that holds a run")
    seed: int = optimisation_option(0, "seed of every random draw", minimum=0)
    device: str = machine_option("auto", "where to run", choices=("auto", "cpu", "cuda"))
    backend: str = machine_option("auto", "between processes: gloo lets them share a GPU", choices=("auto", "gloo"))
    amp: str = machine_option("none", "autocast", choices=("none", "bf16", "fp16"), affects=RESULT)
    channels_last: bool | None = machine_option(None, "memory layout of the networks (default: on)")
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


# settings of a single start of a run: a recipe that held them would delete finished runs, or begin them anew
START_SETTINGS = ("overwrite", "resume")
# A recipe may prefix a key with the role it is for: "student.lr: 0.001".
TRAINED = {"teacher": TeacherConfig, "student": StudentConfig, "baseline": StudentConfig}
ROLES: dict[str, type] = {**TRAINED, "eval": EvalProtocol}


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


def is_baseline(kd: str) -> bool:
    """Return whether the setting ``kd`` says that a student learns without a teacher."""
    return kd.strip() == "none"


def list_file_settings(config_class: type) -> set[str]:
    """Return the names of the settings that name a file."""
    return list_marked(config_class, "is_file")


def save_yaml(settings: Any, path: Path) -> None:
    """Write every setting to a yaml file, except for the recipe's name and those of a single start.

    The file can be given as a recipe for the same role. It then sets ``save_dir``, too. What was fitted to the data
    stands in it, so it does not ask for fitting.
    """
    values = {key: list(v) if isinstance(v, tuple) else v for key, v in dataclasses.asdict(settings).items()}
    values["fit_to_data"] = False
    for name in ("recipe", *START_SETTINGS):
        values.pop(name, None)
    write_text(path, yaml.safe_dump(values, sort_keys=False))
