"""Evaluate a checkpoint: per-class IoU and mIoU on a split.

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
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from datasets import for_network
from datasets.base import SegmentationDataset
from models.checkpoints.loading import Loaded, from_checkpoint
from utils.colors import blended, palette_picture, save_png
from utils.errors import UserError, run_main
from utils.files import require_apart, write, write_text
from utils.options import option, parse_flags
from utils.training.configuration import load_recipe
from utils.training.evaluation import Predictor, evaluate
from utils.training.protocol import Protocol
from utils.training.runtime import start

RECIPES = Path(__file__).resolve().parent / "scripts" / "recipes"


@dataclass(frozen=True)
class EvalConfig(Protocol):
    pretrained: str = option("", "checkpoint to evaluate", positional=True)
    recipe: str = option("", "recipe whose data set and 'eval.' keys are the defaults, such as ade20k_mmseg")
    data: str = option("", "root folder of the data set (default: the checkpoint's)")
    classes: int | None = option(None, "number of classes (the checkpoint's: anything else is an error)", minimum=2)
    other_class_names: bool = option(False, "score a network none of whose class names is one of the data set's")
    split: str = option("val", "part of the data set")
    batch_size: int = option(1, "successive images of equal size that go through the network together", minimum=1)
    draws: int = option(1, "independent label noises an assisted teacher is scored with", minimum=1)
    absent_as_zero: bool = option(False, "count a class that never occurs as IoU 0, as the LAD release does")
    label_codes: str = option("", "label codes an assisted teacher is shown (default: those it was trained with)")
    label_std: float | None = option(None, "pixel noise it is shown (default: what it was trained with)", minimum=0)
    code_std: float | None = option(None, "of codes 'near' (default: what it was trained with)", minimum=0)
    without_label: bool = option(False, "show an assisted teacher a zero plane: what does it know without its label?")
    save_pred: str = option("", "folder for predictions as palette PNG")
    blend: str = option("", "folder for predictions over the images")
    submission: bool = option(False, "write them as grey PNG in the data set's official ids instead")
    per_image: str = option("", "npz file for the pixel counts of every image and class")
    json: str = option("", "file for the scores")
    workers: int = option(2, "loader processes of each process", minimum=0)
    seed: int = option(0, "of an assisted teacher's label noise", minimum=0)
    device: str = option("auto", "where to run", choices=("auto", "cpu", "cuda"))
    amp: str = option("", "autocast (default: as in training)", choices=("none", "bf16", "fp16"))


def load(config: EvalConfig) -> Loaded:
    """The checkpoint, with its label noise replaced by what the flags ask for.

    Raises UserError: label flags for a network that does not read the label.
    """
    asked = {"codes": config.label_codes or None, "pixel_std": config.label_std, "code_std": config.code_std}
    asked["scale"] = 0.0 if config.without_label else None
    asked = {key: value for key, value in asked.items() if value is not None}
    loaded = from_checkpoint(config.pretrained, assisted=bool(asked))
    if asked and not loaded.card.label_noise:
        raise UserError(
            f"--label-codes, --label-std, --code-std and --without-label: {config.pretrained} sees the image only"
        )
    return loaded.shown(**asked) if asked else loaded


def protocol(config: EvalConfig, amp: str, assisted: bool) -> str:
    """How the score was made, in words."""
    parts = [*config.words(), amp * (amp != "none"), "LABEL-ASSISTED" * assisted]
    return ", ".join(filter(None, [*parts, "zero label plane" * config.without_label]))


def main(argv: Sequence[str] | None = None) -> None:
    flags = parse_flags(EvalConfig, __doc__, argv)
    recipe = load_recipe(flags["recipe"], "eval", RECIPES) if flags.get("recipe") else {}
    config = EvalConfig(**recipe | flags)
    if not config.pretrained:
        raise UserError("--pretrained FILE is missing: the checkpoint to evaluate")
    if config.submission and not config.save_pred:
        raise UserError("--submission needs --save-pred DIR: where the predictions go")
    with start(config) as runtime:
        loaded = load(config)
        card, noise = loaded.card, loaded.noise
        if config.draws > 1 and noise is None:
            raise UserError(f"--draws: {config.pretrained} sees the image only")
        if config.classes not in (None, card.num_classes):
            raise UserError(f"--classes {config.classes}: {config.pretrained} has {card.num_classes}")
        where = config.dataset or card.dataset, config.data or card.data, config.split
        name, dataset = for_network(card, *where, config.pretrained, config.other_class_names)
        spec = dataset.spec
        amp = config.amp or card.training.get("config", {}).get("amp", "none")
        runtime = replace(runtime, amp=amp)
        placed = runtime.place(loaded.model), loaded.convention, noise and runtime.place(noise)
        predict = Predictor(*placed, **config.views(), runtime=runtime)
        keep = Keeper(config, dataset) if config.save_pred or config.blend else None
        scored = partial(evaluate, predict, dataset, len(spec.names), runtime, config.workers, progress=True)
        metrics, *others = (
            scored(config.seed + draw, config.batch_size, keep if draw == 0 else None) for draw in range(config.draws)
        )
        if not runtime.is_main:
            return
        result: dict[str, Any] = {
            "checkpoint": config.pretrained,
            "iteration": card.training.get("iteration"),
            "model": card.arch,
            "dataset": name,
            "split": config.split,
            "protocol": protocol(config, amp, noise is not None),
            "label_assisted": noise is not None,
            **metrics.as_dict(spec.names, config.absent_as_zero),
        }
        if others and result["miou"] is not None:
            result["draws"] = [m.miou(config.absent_as_zero) for m in (metrics, *others)]
        print(metrics.table(spec.names))
        report(result)
        if config.per_image:
            save_areas(Path(config.per_image), metrics.areas, dataset)
        if config.json:
            write_text(Path(config.json), json.dumps(result, indent=1) + "\n")


class Keeper:
    """Writes predictions as pictures: palette PNG with the class ids, and blends with the image."""

    def __init__(self, config: EvalConfig, dataset: SegmentationDataset) -> None:
        """Raises UserError: a picture would overwrite a file of the data set, or another picture."""
        self.config, self.dataset = config, dataset
        folders = [Path(folder) for folder in (config.save_pred, config.blend) if folder]
        made = [(f"{name}.png", image) for name, (image, _) in zip(dataset.names, dataset.pairs, strict=True)]
        outputs = ((folder / name, image) for folder in folders for name, image in made)
        inputs = (path for pair in dataset.pairs for path in pair if path)
        require_apart(outputs, inputs, "folder for --save-pred and --blend")

    def __call__(self, index: int, prediction: np.ndarray) -> None:
        name, spec = f"{self.dataset.names[index]}.png", self.dataset.spec
        if self.config.submission:  # which needs --save-pred
            save_png(Image.fromarray(spec.ids.official(prediction)), Path(self.config.save_pred) / name)
        elif self.config.save_pred:
            save_png(palette_picture(prediction, spec.palette), Path(self.config.save_pred) / name)
        if self.config.blend:
            save_png(blended(self.dataset.read(index)[0], prediction, spec.palette), Path(self.config.blend) / name)


def save_areas(path: Path, areas: np.ndarray, dataset: SegmentationDataset) -> None:
    """Per image and class ``[n, K]``: pixels of the intersection, the label and the prediction."""
    counts = dict(zip(("intersection", "label", "prediction"), areas.swapaxes(0, 1), strict=True))
    write(path, lambda file: np.savez_compressed(file, names=dataset.names, **counts))


def report(result: dict[str, Any]) -> None:
    miou, accuracy = result["miou"], result["pixel_accuracy"]
    mark = "  LABEL-ASSISTED" * result["label_assisted"]
    if miou is None:
        print("mIoU is not defined: no labelled pixel")
    else:
        print(f"mIoU {100 * miou:.2f} %  pixel accuracy {100 * accuracy:.2f} %{mark}")
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
