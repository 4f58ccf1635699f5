"""IoU, precision, recall and F1 from an integer confusion matrix."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

CLASS_SCORES = ("precision", "recall", "f1")  # what is computed for each class beside the IoU
ASSISTED = "LABEL-ASSISTED"  # the mark of a score or prediction by a network that reads the label


def count_confusions(prediction: Tensor, label: Tensor, num_classes: int) -> Tensor:
    """Count pixels by label and prediction: int64 ``[K, K]``, rows = label, columns = prediction.

    prediction: integers 0..K-1 of any shape. label: the same shape, with IGNORE_INDEX, whose pixels are left out. One
    extra row collects them, so that nothing is masked out and the host does not wait for a device.
    """
    cell = label.clamp(max=num_classes).long().mul_(num_classes).add_(prediction).flatten()
    size = (num_classes + 1) * num_classes
    if cell.is_cuda:  # there bincount reads the largest value back
        counts = cell.new_zeros(size).scatter_add_(0, cell, torch.ones_like(cell))
    else:
        counts = torch.bincount(cell, minlength=size)
    return counts.view(num_classes + 1, num_classes)[:num_classes]


@dataclass(frozen=True)
class Metrics:
    """Compute scores from a confusion matrix, as fractions.

    confusion: int64 ``[K, K]``, rows = label, columns = prediction.
    areas: int64 ``[images, 3, K]``, for every image and class the pixels of the intersection, label and prediction.
    """

    confusion: np.ndarray
    images: int
    areas: np.ndarray | None = None

    @property
    def iou(self) -> np.ndarray:
        """Return the IoU of each class ``[K]``; NaN for a class in neither labels nor predictions."""
        intersection = np.diag(self.confusion)
        union = self.confusion.sum(0) + self.confusion.sum(1) - intersection
        return np.divide(intersection, union, out=np.full(len(union), np.nan), where=union > 0)

    @property
    def precision(self) -> np.ndarray:
        """Return the share of the pixels predicted as a class that are of it ``[K]``.

        NaN for a class in neither labels nor predictions; 0 for a class that is in labels but never predicted.
        """
        return self._share_of(self.confusion.sum(0))

    @property
    def recall(self) -> np.ndarray:
        """Return the share of the pixels of a class that are predicted as it ``[K]``.

        NaN for a class in neither labels nor predictions; 0 for a class that is predicted but in no label.
        """
        return self._share_of(self.confusion.sum(1))

    @property
    def f1(self) -> np.ndarray:
        """Return the harmonic mean of precision and recall ``[K]``, which is Dice's coefficient.

        NaN for a class in neither labels nor predictions.
        """
        return self._share_of((self.confusion.sum(0) + self.confusion.sum(1)) / 2)

    def _share_of(self, pixels: np.ndarray) -> np.ndarray:
        """Divide the pixels of each class that are right by ``pixels [K]``.

        The result is NaN for a class in neither labels nor predictions, as the IoU is, and 0 for any other class
        without such pixels.
        """
        share = np.divide(np.diag(self.confusion), pixels, out=np.zeros(len(pixels)), where=pixels > 0)
        return np.where(np.isnan(self.iou), np.nan, share)

    def miou(self, absent_as_zero: bool = False) -> float:
        """Return the mean IoU over the classes that occur; NaN when no pixel has a label.

        absent_as_zero: average over all classes, absent ones as 0.
        """
        return self.mean(self.iou, absent_as_zero)

    def mean(self, scores: np.ndarray, absent_as_zero: bool = False) -> float:
        """Return the mean of scores ``[K]`` over the classes that occur; NaN when no pixel has a label.

        absent_as_zero: average over all classes, absent ones as 0 (LAD, CIRKD: utils/score.py).
        """
        if not self.confusion.any():
            return float("nan")
        return float(np.nan_to_num(scores).mean() if absent_as_zero else np.nanmean(scores))

    @property
    def pixel_accuracy(self) -> float:
        """Return the share of labelled pixels that are right; NaN when there are none."""
        total = int(self.confusion.sum())
        return int(np.trace(self.confusion)) / total if total else float("nan")

    def as_dict(self, names: tuple[str, ...], absent_as_zero: bool = False) -> dict[str, object]:
        """Return plain values for JSON; a score that is not defined is null."""
        by_class: dict[str, dict[str, float | None]] = {}
        means: dict[str, float | None] = {}
        for key in ("iou", *CLASS_SCORES):
            scores = getattr(self, key)
            by_class[key] = {name: make_json_number(value) for name, value in zip(names, scores.tolist(), strict=True)}
            means[f"mean_{key}"] = make_json_number(self.mean(scores, absent_as_zero))
        iou = by_class["iou"]
        return {
            "miou": means.pop("mean_iou"),
            "pixel_accuracy": make_json_number(self.pixel_accuracy),
            **means,
            **by_class,
            "absent": [name for name, value in iou.items() if value is None],
            "absent_as_zero": absent_as_zero,
            "images": self.images,
            "confusion": self.confusion.tolist(),
        }

    def format_table(self, names: tuple[str, ...]) -> str:
        """Return IoU, precision, recall and F1 of each class in percent, as lines of text."""
        width = max(map(len, ("class", *names)))
        rows = [
            f"{'class':<{width}}  {'IoU %':>6}  {'precision %':>11}  {'recall %':>8}  {'F1 %':>6}  {'labelled px':>14}"
        ]
        columns = (self.iou, self.precision, self.recall, self.f1, self.confusion.sum(1))
        for name, *scores, pixels in zip(names, *columns, strict=True):
            cells = []
            for score in scores:
                cells.append("absent" if np.isnan(score) else f"{100 * score:.2f}")
            iou, precision, recall, f1 = cells
            rows.append(f"{name:<{width}}  {iou:>6}  {precision:>11}  {recall:>8}  {f1:>6}  {pixels:>14,}")
        return "\n".join(rows)


def make_json_number(value: float) -> float | None:
    """Return a finite value as it is, and None for NaN and infinity, which JSON does not have."""
    return value if math.isfinite(value) else None
