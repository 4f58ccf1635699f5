"""Mean intersection over union from an integer confusion matrix."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

ASSISTED = " LABEL-ASSISTED"  # the mark of a score or prediction by a network that reads the label


def confusion_matrix(prediction: Tensor, label: Tensor, num_classes: int) -> Tensor:
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
    """Scores of a confusion matrix, as fractions.

    confusion: int64 ``[K, K]``, rows = label, columns = prediction. areas: int64 ``[images, 3, K]``: for every image
    and class the pixels of the intersection, the label and the prediction.
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

    def miou(self, absent_as_zero: bool = False) -> float:
        """Return the mean IoU over the classes that occur; NaN when no pixel has a label.

        absent_as_zero: average over all classes, absent ones as 0 (LAD, CIRKD: utils/score.py).
        """
        if not self.confusion.any():
            return float("nan")
        iou = self.iou
        return float(np.nan_to_num(iou).mean() if absent_as_zero else np.nanmean(iou))

    @property
    def pixel_accuracy(self) -> float:
        """Return the share of labelled pixels that are right; NaN when there are none."""
        total = int(self.confusion.sum())
        return int(np.trace(self.confusion)) / total if total else float("nan")

    def as_dict(self, names: tuple[str, ...], absent_as_zero: bool = False) -> dict[str, object]:
        """Return plain values for JSON; a score that is not defined is null."""
        iou = {name: or_none(value) for name, value in zip(names, self.iou.tolist(), strict=True)}
        return {
            "miou": or_none(self.miou(absent_as_zero)),
            "pixel_accuracy": or_none(self.pixel_accuracy),
            "iou": iou,
            "absent": [name for name, value in iou.items() if value is None],
            "absent_as_zero": absent_as_zero,
            "images": self.images,
            "confusion": self.confusion.tolist(),
        }

    def table(self, names: tuple[str, ...]) -> str:
        """Return the IoU of each class in percent, as lines of text."""
        width = max(map(len, names))
        rows = [f"{'class':<{width}}  {'IoU %':>6}  {'labelled px':>14}"]
        for name, iou, pixels in zip(names, self.iou, self.confusion.sum(1), strict=True):
            percent = "absent" if np.isnan(iou) else f"{100 * iou:.2f}"
            rows.append(f"{name:<{width}}  {percent:>6}  {pixels:>14,}")
        return "\n".join(rows)


def or_none(value: float) -> float | None:
    """Return a finite value as it is, and None for one that is not: JSON has no NaN."""
    return value if math.isfinite(value) else None
