"""Evaluate a checkpoint: IoU, precision, recall and F1 of each class, and mIoU on a split.

    python eval.py runs/student-toy-stdc-tf_efficientnet_lite0/last.pth
    torchrun --nproc-per-node 2 eval.py --pretrained FILE --data VOCdevkit/VOC2012 --scales 0.5 1.0 1.5 --flip

The network, the data set and the pixel convention come from the checkpoint. The score of an assisted teacher, which
reads the label, is marked. JSON scores are fractions.
"""

from utils.environment import require_packages

require_packages()

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from datasets import build_dataset_for_network
from datasets.base import SegmentationDataset
from engine.evaluator import evaluate
from engine.metrics import ASSISTED, Metrics
from engine.protocol import EvalProtocol
from engine.recipes import load_recipe
from engine.resolve_settings import TRAINING_SCRIPTS
from engine.runtime import Runtime, start_runtime
from engine.settings import data_option, machine_option, network_option, output_option
from models.checkpoints.card import Card
from models.checkpoints.loading import LoadedNetwork, from_checkpoint
from models.checkpoints.reading import list_checkpoint_files
from models.prediction import Predictor
from utils.colors import blend_classes, make_palette_picture, save_png
from utils.entry import run_main
from utils.errors import UserError
from utils.files import require_apart, require_kind, require_writable, write, write_text
from utils.options import convert, parse_flags

# keys of the JSON file -> how the means are called where they are printed
CLASS_MEANS = {"mean_precision": "precision", "mean_recall": "recall", "mean_f1": "F1"}

SUFFIXES = {"--json": ".json", "--per-image": ".npz"}  # of the files that are written


@dataclass(frozen=True)
class EvalConfig(EvalProtocol):
    """Hold the settings of eval.py."""

    pretrained: str = network_option("", "checkpoint to evaluate", positional=True)
    model: str = network_option("", "package.module:function, where the checkpoint holds a network of your own")
    backbone: str = network_option("", "encoder of a file of segmentation_models_pytorch whose keys do not tell it")
    recipe: str = data_option("", "recipe whose data set and 'eval.' keys are the defaults, such as ade20k_mmseg")
    data: str = data_option("", "root folder of the data set (default: the checkpoint's)")
    classes: int | None = data_option(None, "number of classes (the checkpoint's: others are an error)", minimum=2)
    other_class_names: bool = data_option(False, "score a network none of whose class names is one of the data set's")
    split: str = data_option("val", "part of the data set")
    batch_size: int = machine_option(1, "successive images of equal size in one forward pass", minimum=1)
    draws: int = network_option(
        1, "label noises an assisted teacher is scored with, of seeds --seed, --seed + 1, ...", minimum=1
    )
    absent_as_zero: bool = output_option(False, "count a class that never occurs as IoU 0, as the LAD release does")
    label_codes: str = network_option("", "label codes an assisted teacher sees (default: those of its training)")
    label_std: float | None = network_option(None, "pixel noise it sees (default: that of its training)", minimum=0)
    code_std: float | None = network_option(None, "strength of codes 'near' (default: that of its training)", minimum=0)
    without_label: bool = network_option(False, "show a teacher a zero plane: what does it know without its label?")
    save_pred: str = output_option("", "folder for predictions as palette PNG")
    blend: str = output_option("", "folder for predictions over the images")
    submission: bool = output_option(
        False, "write the predictions of --save-pred as grey PNG in the data set's official ids"
    )
    per_image: str = output_option("", "npz file for the pixel counts of every image and class")
    json: str = output_option("", "file for the scores")
    workers: int | None = machine_option(
        None, "loader workers of each rank (default: 4, or fewer on few cores)", minimum=0
    )
    seed: int = network_option(0, "seed of an assisted teacher's label noise", minimum=0)
    device: str = machine_option("auto", "where to run", choices=("auto", "cpu", "cuda"))
    amp: str = machine_option("", "autocast (default: as in training)", choices=("none", "bf16", "fp16"))
    channels_last: bool | None = machine_option(None, "memory layout of the network (default: as in training)")
    tf32: bool | None = machine_option(None, "TF32 in float32 convolutions on CUDA (default: as in training)")
    deterministic: bool | None = machine_option(None, "the same bits in every run (default: as in training)")
    compile: bool | None = machine_option(None, "compile the network by torch.compile (default: as in training)")


def main(argv: Sequence[str] | None = None) -> None:
    """Score a checkpoint, print the scores, and write what the flags ask for."""
    flags = parse_flags(EvalConfig, __doc__, argv, TRAINING_SCRIPTS)
    recipe = load_recipe(flags["recipe"], "eval") if flags.get("recipe") else {}
    config = EvalConfig(**recipe | flags)
    if not config.pretrained:
        raise UserError("--pretrained FILE is missing: the checkpoint to evaluate")
    if config.submission and not config.save_pred:
        raise UserError("--submission needs --save-pred DIR: where the predictions go")
    loaded = load_network(config)
    config = take_precision_from_training(config, loaded.card)
    with start_runtime(config) as runtime:
        name, dataset = open_dataset(config, loaded)
        runtime.on_rank0(check_outputs, config, dataset)
        scores = score_network(config, loaded, dataset, runtime)
        if not runtime.is_main:
            return
        names = dataset.spec.names
        result = make_result(config, loaded, name, names, scores)
        print(scores[0].format_table(names))
        print_result(result)
        if config.per_image:
            save_areas(Path(config.per_image).expanduser(), scores[0].areas, dataset)
        if config.json:
            write_text(Path(config.json).expanduser(), json.dumps(result, indent=1) + "\n")


def check_outputs(config: EvalConfig, dataset: SegmentationDataset) -> None:
    """Check that everything that is asked for can be written, before the network is scored.

    Raises:
        UserError: an output cannot be written, two outputs have the same place, or one would overwrite an input.
    """
    files = {"--json": config.json, "--per-image": config.per_image}
    folders = {"--save-pred": config.save_pred, "--blend": config.blend}
    inputs = {path.resolve() for path in list_checkpoint_files(config.pretrained)}
    inputs |= {path.resolve() for pair in dataset.pairs for path in pair if path}
    flag_of: dict[Path, str] = {}
    for flag, given in {**files, **folders}.items():
        if not given:
            continue
        path = Path(given).expanduser()
        place = path.resolve()
        if place in inputs:
            raise UserError(f"{flag} {given} is an input and would be overwritten: choose another name")
        if place in flag_of:
            raise UserError(f"{flag_of[place]} and {flag} are both {given}: give two names")
        flag_of[place] = flag
        if flag in files and path.is_dir():
            raise UserError(f"{flag} {given} is a folder: give the name of a file")
        if flag in files and path.exists() and not path.is_file():
            raise UserError(f"{flag} {given} is no regular file: give the name of a file")
        if flag in files:
            require_kind(path, SUFFIXES[flag], f"{flag} {given}")
        require_writable(path.parent if flag in files else path, f"{flag} {given}")


def load_network(config: EvalConfig) -> LoadedNetwork:
    """Load the checkpoint, and replace its label noise by what the flags say.

    Raises:
        UserError: the checkpoint cannot be read, or label flags are given for a network that does not read the label,
            or a strength for label codes that have none.
    """
    noise = {"codes": config.label_codes or None, "pixel_std": config.label_std, "code_std": config.code_std}
    if config.without_label:
        noise["scale"] = 0.0
    noise = {key: value for key, value in noise.items() if value is not None}
    loaded = from_checkpoint(config.pretrained, assisted=bool(noise), backbone=config.backbone, model=config.model)
    if not noise:
        return loaded
    if not loaded.card.reads_label:
        raise UserError(
            f"--label-codes, --label-std, --code-std and --without-label: {config.pretrained} sees the image only"
        )
    loaded = loaded.with_label_noise(**noise)
    codes = loaded.card.label_noise["codes"]
    if config.code_std is not None and codes != "near":
        raise UserError(f"--code-std is the strength of --label-codes near, not of {codes}")
    return loaded


def take_precision_from_training(config: EvalConfig, card: Card) -> EvalConfig:
    """Take precision, memory layout and compilation from the network's training where no flag says otherwise.

    The score is then the one of the validation, to the last digit.

    Raises:
        UserError: the checkpoint holds a value that such a setting cannot have.
    """
    trained = {"amp": "none", **card.training.get("config", {})}
    changes: dict[str, Any] = {}
    for name in ("amp", "channels_last", "tf32", "deterministic", "compile"):
        if getattr(config, name) in (None, "") and name in trained:
            where = f"{config.pretrained}: {name} of its training"
            changes[name] = convert(EvalConfig, name, trained[name], where)
    return replace(config, **changes)


def open_dataset(config: EvalConfig, loaded: LoadedNetwork) -> tuple[str, SegmentationDataset]:
    """Return the name and the images of the data set that the network is scored on.

    Raises:
        UserError: flags or data set do not fit the network.
    """
    card = loaded.card
    if config.draws > 1 and not card.reads_label:
        raise UserError(f"--draws: {config.pretrained} sees the image only")
    if config.classes not in (None, card.num_classes):
        raise UserError(f"--classes {config.classes}: {config.pretrained} has {card.num_classes}")
    dataset = config.dataset or card.dataset
    data = config.data or card.data
    if dataset and not config.data and data and not Path(data).expanduser().is_dir():
        raise UserError(f"{config.pretrained} was trained with --data {data}, which is not there: give --data")
    return build_dataset_for_network(card, dataset, data, config.split, config.pretrained, config.other_class_names)


def score_network(
    config: EvalConfig, loaded: LoadedNetwork, dataset: SegmentationDataset, runtime: Runtime
) -> list[Metrics]:
    """Score the network once for each draw of label noise; write the predictions of the first, if that is asked for."""
    model = runtime.to_device(loaded.model)
    if runtime.compile:
        model.compile()
    noise = loaded.build_label_noise()
    if noise is not None:
        noise = runtime.to_device(noise)
    predictor = Predictor(model, loaded.convention, noise, **config.get_view_options(), precision=runtime.precision)
    writer = PredictionWriter(config, dataset) if config.save_pred or config.blend else None
    scores = []
    for draw in range(config.draws):
        metrics = evaluate(
            predictor,
            dataset,
            len(dataset.spec.names),
            runtime,
            config.workers,
            seed=config.seed + draw,
            batch_size=config.batch_size,
            on_prediction=writer if draw == 0 else None,
            progress=True,
        )
        scores.append(metrics)
    return scores


def make_result(
    config: EvalConfig, loaded: LoadedNetwork, dataset: str, names: Sequence[str], scores: Sequence[Metrics]
) -> dict[str, Any]:
    """Return what the JSON file holds."""
    card = loaded.card
    result: dict[str, Any] = {
        "checkpoint": config.pretrained,
        "iteration": card.training.get("iteration"),
        "model": card.arch,
        "dataset": dataset,
        "split": config.split,
        "protocol": describe_protocol(config, card.reads_label),
        "label_assisted": card.reads_label,
        **scores[0].as_dict(names, config.absent_as_zero),
    }
    if len(scores) > 1 and result["miou"] is not None:
        result["draws"] = [metrics.miou(config.absent_as_zero) for metrics in scores]
    return result


def describe_protocol(config: EvalConfig, is_assisted: bool) -> str:
    """Say in words how the score was made: every flag that changes it, so that compare.py tells such scores apart."""
    parts = config.describe()
    if config.amp != "none":
        parts.append(config.amp)
    if is_assisted:
        parts.append(ASSISTED)
    if config.without_label:
        parts.append("zero label plane")
    if config.label_codes:
        parts.append(f"label codes {config.label_codes}")
    if config.label_std is not None:
        parts.append(f"pixel noise {config.label_std:g}")
    if config.code_std is not None:
        parts.append(f"code noise {config.code_std:g}")
    if is_assisted and config.seed and not config.without_label:
        parts.append(f"noise seed {config.seed}")
    if config.absent_as_zero:
        parts.append("absent classes as 0")
    return ", ".join(parts)


class PredictionWriter:
    """Write predictions as pictures: palette PNG with the class ids, and blends with the image."""

    def __init__(self, config: EvalConfig, dataset: SegmentationDataset) -> None:
        """Check that no picture would overwrite a file.

        Raises:
            UserError: a picture would overwrite a file of the data set, or another picture.
        """
        self.config = config
        self.dataset = dataset
        self.save_pred = Path(config.save_pred).expanduser() if config.save_pred else None
        self.blend = Path(config.blend).expanduser() if config.blend else None
        folders = [folder for folder in (self.save_pred, self.blend) if folder]
        images = [image for image, _ in dataset.pairs]
        outputs = [
            (folder / f"{name}.png", image)
            for folder in folders
            for name, image in zip(dataset.names, images, strict=True)
        ]
        inputs = (path for pair in dataset.pairs for path in pair if path)
        require_apart(outputs, inputs, "folder for --save-pred and --blend")

    def __call__(self, index: int, prediction: np.ndarray) -> None:
        """Write the prediction ``[H, W]`` of an image."""
        name = f"{self.dataset.names[index]}.png"
        spec = self.dataset.spec
        if self.save_pred and self.config.submission:
            save_png(Image.fromarray(spec.ids.to_official(prediction)), self.save_pred / name)
        elif self.save_pred:
            save_png(make_palette_picture(prediction, spec.palette), self.save_pred / name)
        if self.blend:
            image, _ = self.dataset.read(index)
            save_png(blend_classes(image, prediction, spec.palette), self.blend / name)


def save_areas(path: Path, areas: np.ndarray, dataset: SegmentationDataset) -> None:
    """Write for each image and class ``[n, K]`` the pixels of the intersection, the label and the prediction."""
    counts = dict(zip(("intersection", "label", "prediction"), areas.swapaxes(0, 1), strict=True))
    write(path, lambda file: np.savez_compressed(file, names=dataset.names, **counts))


def print_result(result: dict[str, Any]) -> None:
    """Print the scores, how they were made, and what to know about them."""
    miou = result["miou"]
    mark = f"  {ASSISTED}" if result["label_assisted"] else ""
    if miou is None:
        print("mIoU is not defined: no labelled pixel")
    else:
        print(f"mIoU {100 * miou:.2f} %  pixel accuracy {100 * result['pixel_accuracy']:.2f} %{mark}")
        means = [f"{name} {100 * result[key]:.2f} %" for key, name in CLASS_MEANS.items()]
        print(f"means over the classes: {', '.join(means)}{mark}")
    print(f"{result['dataset']} {result['split']}, {result['images']} images, {result['protocol']}")
    if "draws" in result:
        scores = 100 * np.array(result["draws"])
        print(f"over {len(scores)} label noises: mIoU {scores.mean():.2f} +- {scores.std(ddof=1):.2f} %{mark}")
    if result["absent"]:
        how = "counted as 0" if result["absent_as_zero"] else "left out of the mean"
        print(f"classes that never occur ({how}): {', '.join(result['absent'])}")
    if result["label_assisted"]:
        print("this network reads the label: its score measures a teacher, not segmentation")


if __name__ == "__main__":
    run_main(main)
