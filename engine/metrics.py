"""Mean intersection over union from an integer confusion matrix."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


def confusion_matrix(prediction: Tensor, label: Tensor, num_classes: int) -> Tensor:
    """int64 ``[K, K]``, rows = label, columns = prediction, over the pixels that are not ignored.

    prediction: integers 0..K-1 of any shape; label: the same shape, with IGNORE_INDEX. One extra row collects the
    ignored pixels, so nothing is masked out and the host does not wait for a device.
    """
    cell = label.clamp(max=num_classes).long().mul_(num_classes).add_(prediction).flatten()
    size = (num_classes + 1) * num_classes
    if cell.is_cuda:  # whose bincount reads the largest value back
        counts = cell.new_zeros(size).scatter_add_(0, cell, torch.ones_like(cell))
    else:
        counts = torch.bincount(cell, minlength=size)
    return counts.view(num_classes + 1, num_classes)[:num_classes]


@dataclass(frozen=True)
class Metrics:
    """Scores of a confusion matrix, as fractions.

    confusion: int64 ``[K, K]``, rows = label. areas: int64 ``[images, 3, K]``, of every image the pixels in the
    intersection, the label and the prediction of each class.
    """

    confusion: np.ndarray
    images: int
    areas: np.ndarray | None = None

    @property
    def iou(self) -> np.ndarray:
        """Per class ``[K]``; NaN for a class in neither labels nor predictions."""
        intersection = np.diag(self.confusion)
        union = self.confusion.sum(0) + self.confusion.sum(1) - intersection
        return np.divide(intersection, union, out=np.full(len(union), np.nan), where=union > 0)

    def miou(self, absent_as_zero: bool = False) -> float:
        """Mean over the classes that occur, or over all with absent ones as 0 (LAD, CIRKD: utils/score.py).

        NaN when no pixel has a label.
        """
        if not self.confusion.any():
            return float("nan")
        iou = self.iou
        return float(np.nan_to_num(iou).mean() if absent_as_zero else np.nanmean(iou))

    @property
    def pixel_accuracy(self) -> float:
        """Share of labelled pixels that are right; NaN when there are none."""
        total = int(self.confusion.sum())
        return int(np.trace(self.confusion)) / total if total else float("nan")

    def as_dict(self, names: tuple[str, ...], absent_as_zero: bool = False) -> dict[str, object]:
        """Plain values for JSON; a score that is not defined is null."""
        iou = {name: None if np.isnan(value) else float(value) for name, value in zip(names, self.iou, strict=True)}
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
        """Per-class IoU in percent, as lines of text."""
        width = max(map(len, names))
        pixels = self.confusion.sum(1)
        rows = [
            f"{name:<{width}}  {'absent' if np.isnan(value) else f'{100 * value:6.2f}':>6}  {count:>14,}"
            for name, value, count in zip(names, self.iou, pixels, strict=True)
        ]
        return "\n".join([f"{'class':<{width}}  {'IoU %':>6}  {'labelled px':>14}", *rows])


def or_none(value: float) -> float | None:
    return None if np.isnan(value) else value
