"""Evaluate a checkpoint: per-class IoU and mIoU on a split.

    python eval.py --pretrained runs/student-toy-fcn-resnet18/best.pth
    torchrun --nproc-per-node 2 eval.py --pretrained FILE --data VOCdevkit/VOC2012 --scales 0.5 1.0 1.5 --flip

The network, the data set and the pixel convention come from the checkpoint. The score of an assisted teacher, which
reads the label, is marked. JSON scores are fractions.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from datasets import build_dataset, dataset_spec, variant
from models.loading import Loaded, from_checkpoint
from utils.config import option, parse_flags
from utils.distributed import world
from utils.engine import AMP_DTYPES
from utils.errors import UserError, run
from utils.evaluate import Predictor, evaluate
from utils.pixels import CONVENTIONS


@dataclass(frozen=True)
class EvalConfig:
    pretrained: str = option("", "checkpoint to evaluate")
    dataset: str = option("", "data set (default: the checkpoint's)")
    data: str = option("", "root folder of the data set (default: the checkpoint's)")
    classes: int | None = option(None, "number of classes (the checkpoint's: anything else is an error)", minimum=2)
    split: str = option("val", "part of the data set")
    scales: tuple[float, ...] = option((1.0,), "input scales whose logits are averaged", minimum=0.05)
    flip: bool = option(False, "average with the mirrored input")
    window: tuple[int, int] | None = option(None, "height and width of a sliding window", minimum=32)
    stride: tuple[int, int] | None = option(None, "step of the window (default: two thirds of it)", minimum=1)
    absent_as_zero: bool = option(False, "count a class that never occurs as IoU 0, as the LAD release does")
    label_codes: str = option("", "label codes an assisted teacher is shown (default: those it was trained with)")
    label_std: float | None = option(None, "pixel noise it is shown (default: what it was trained with)", minimum=0)
    save_pred: str = option("", "folder for predictions as palette PNG")
    submission: bool = option(False, "write them as grey PNG in the data set's official ids instead")
    json: str = option("", "file for the scores")
    workers: int = option(2, "loader processes of each process", minimum=0)
    seed: int = option(0, "of an assisted teacher's label noise", minimum=0)
    device: str = option("auto", "where to run", choices=("auto", "cpu", "cuda"))
    amp: str = option("none", "autocast", choices=("none", "bf16", "fp16"))


def load(config: EvalConfig) -> Loaded:
    """The checkpoint, with its label noise replaced by what the flags ask for.

    Raises:
        UserError: label flags for a network that does not read the label.
    """
    loaded = from_checkpoint(config.pretrained)
    asked = {"codes": config.label_codes or None, "pixel_std": config.label_std}
    asked = {key: value for key, value in asked.items() if value is not None}
    if asked and not loaded.card["label_noise"]:
        raise UserError(f"--label-codes and --label-std: {config.pretrained} sees the image only")
    if asked:
        loaded.card["label_noise"] |= asked
    return loaded


def protocol(config: EvalConfig, assisted: bool) -> str:
    """How the score was made, in words."""
    scales = "single scale" if config.scales == (1.0,) else f"scales {' '.join(map(str, config.scales))} (mean logits)"
    view = f"window {config.window[0]}x{config.window[1]}" if config.window else "whole image"
    parts = [scales, view, *(["flip"] if config.flip else []), *(["LABEL-ASSISTED"] if assisted else [])]
    return ", ".join(parts)


def main() -> None:
    config = EvalConfig(**parse_flags(EvalConfig, __doc__))
    if not config.pretrained:
        raise UserError("--pretrained FILE is missing: the checkpoint to evaluate")
    if config.submission and not config.save_pred:
        raise UserError("--submission needs --save-pred DIR: where the predictions go")
    with world(config.device) as w:
        loaded = load(config)
        card, noise = loaded.card, loaded.noise
        if config.classes not in (None, card["num_classes"]):
            raise UserError(f"--classes {config.classes}: {config.pretrained} has {card['num_classes']}")
        name, root = variant(config.dataset or card["dataset"], card["num_classes"]), config.data or card["data"]
        spec = dataset_spec(name, root)
        if len(spec.names) != card["num_classes"]:
            raise UserError(f"{config.pretrained} has {card['num_classes']} classes, {name} {len(spec.names)}")
        dataset = build_dataset(name, root, config.split)
        predict = Predictor(
            loaded.model.to(w.device),
            CONVENTIONS[card["pixels"]],
            noise.to(w.device) if noise else None,
            config.scales,
            config.flip,
            config.window,
            config.stride,
            AMP_DTYPES[config.amp],
        )

        def save(index: int, prediction: np.ndarray) -> None:
            picture = Image.fromarray(
                spec.ids.official(prediction) if config.submission else prediction.astype(np.uint8)
            )
            if not config.submission:
                picture.putpalette([value for color in spec.palette for value in color])
            picture.save(Path(config.save_pred) / f"{dataset.pairs[index][0].stem}.png")

        if config.save_pred:
            Path(config.save_pred).mkdir(parents=True, exist_ok=True)
        on_prediction = save if config.save_pred else None
        metrics = evaluate(predict, dataset, len(spec.names), w, config.workers, config.seed, on_prediction, True)
        if not w.is_main:
            return
        result: dict[str, Any] = {
            "checkpoint": config.pretrained,
            "iteration": card.get("iteration"),
            "model": card["arch"],
            "dataset": name,
            "split": config.split,
            "protocol": protocol(config, noise is not None),
            "label_assisted": noise is not None,
            **metrics.as_dict(spec.names, config.absent_as_zero),
        }
        print(metrics.table(spec.names))
        report(result)
        if config.json:
            Path(config.json).parent.mkdir(parents=True, exist_ok=True)
            Path(config.json).write_text(json.dumps(result, indent=1) + "\n")


def report(result: dict[str, Any]) -> None:
    miou, accuracy = result["miou"], result["pixel_accuracy"]
    if miou is None:
        print("mIoU is not defined: no labelled pixel")
    else:
        print(f"mIoU {100 * miou:.2f} %  pixel accuracy {100 * accuracy:.2f} %")
    print(f"{result['dataset']} {result['split']}, {result['images']} images, {result['protocol']}")
    if result["absent"]:
        how = "counted as 0" if result["absent_as_zero"] else "left out of the mean"
        print(f"classes that never occur ({how}): {', '.join(result['absent'])}")
    if result["label_assisted"]:
        print("this network reads the label: its score measures a teacher, not segmentation")


if __name__ == "__main__":
    run(main)
