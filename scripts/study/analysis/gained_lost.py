"""Count and draw where one network is right and another is wrong.

The predictions are those that eval.py --save-pred left in the folders of the runs.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from datasets import choose_evenly
from datasets.base import SegmentationDataset
from datasets.files import read_label
from scripts.study.analysis import style
from utils.colors import colorize
from utils.errors import UserError
from utils.types import IGNORE_INDEX

# blue and vermilion stay apart for colour-blind readers, as red and green do not
CHANGES = {
    "gained": (0, 114, 178),
    "lost": (213, 94, 0),
    "right in both": (225, 225, 225),
    "wrong in both": (130, 130, 130),
    "ignored": (255, 255, 255),
}
LABELLED = 4  # the kinds of change, without the ignored pixels at the end


def make_change_map(new: np.ndarray, old: np.ndarray, label: np.ndarray) -> np.ndarray:
    """Return for every pixel its place in CHANGES, uint8 ``[H, W]``."""
    is_right = new == label
    was_right = old == label
    index = np.full(label.shape, 3, np.uint8)  # wrong in both
    index[is_right & was_right] = 2
    index[was_right & ~is_right] = 1
    index[is_right & ~was_right] = 0
    index[label == IGNORE_INDEX] = LABELLED
    return index


@dataclass(frozen=True)
class Changes:
    """Pixel counts by image, int64 ``[n, 5]`` in the order of CHANGES, and where the predictions are."""

    dataset: SegmentationDataset
    new: Path
    old: Path
    counts: np.ndarray

    def compute_shares(self) -> dict[str, float]:
        """Return the share of each kind of change in the labelled pixels of all images."""
        total = max(self.counts[:, :LABELLED].sum(), 1)
        names = list(CHANGES)[:LABELLED]
        return {name: float(self.counts[:, k].sum() / total) for k, name in enumerate(names)}

    def compute_accuracies(self) -> tuple[float, float]:
        """Return the pixel accuracy of the new and of the old predictions."""
        share = self.compute_shares()
        return share["gained"] + share["right in both"], share["lost"] + share["right in both"]

    def choose_images(self, count: int) -> list[int]:
        """Choose images evenly spaced over their ranking by net gain: the most gained first, the most lost last."""
        net = (self.counts[:, 0] - self.counts[:, 1]) / np.maximum(self.counts[:, :LABELLED].sum(1), 1)
        order = np.argsort(-net, kind="stable")
        return [int(order[place]) for place in choose_evenly(len(order), count)]

    def read_image(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Return an image, its label, and its new and old prediction."""
        image, label = self.dataset.read(index)
        name = f"{self.dataset.names[index]}.png"
        new = _read_prediction(self.new / name, label.shape)
        old = _read_prediction(self.old / name, label.shape)
        return image, label, new, old


def count_changes(dataset: SegmentationDataset, new: Path, old: Path) -> Changes:
    """Count the pixels of each kind of change in every image.

    Raises:
        UserError: a prediction is missing, unreadable, or of another size than its label.
    """
    changes = Changes(dataset, new, old, np.zeros((len(dataset), len(CHANGES)), np.int64))
    for i in range(len(dataset)):
        _, label, new_ids, old_ids = changes.read_image(i)
        change_map = make_change_map(new_ids, old_ids, label)
        changes.counts[i] = np.bincount(change_map.ravel(), minlength=len(CHANGES))
    return changes


def _read_prediction(path: Path, shape: tuple[int, int]) -> np.ndarray:
    """Read the class ids of a prediction.

    Raises:
        UserError: it is missing or unreadable, or not of this shape.
    """
    try:
        ids = read_label(path)
    except UserError as error:
        raise UserError(f"prediction {error}") from error
    if ids.shape != shape:
        raise UserError(f"prediction {path} has shape {ids.shape}, its label {shape}")
    return ids


def draw_change_grid(changes: Changes, count: int, new_name: str, old_name: str) -> Figure:
    """Draw a row for each of ``count`` images: image, label, both predictions and the map of changes."""
    spec = changes.dataset.spec
    rows = []
    present: set[int] = set()  # the classes, for the legend
    for index in changes.choose_images(count):
        image, label, new, old = changes.read_image(index)
        gained, lost = 100 * changes.counts[index, :2] / max(changes.counts[index, :LABELLED].sum(), 1)
        change = np.uint8(list(CHANGES.values()))[make_change_map(new, old, label)]
        rows.append(
            {
                "image": (image, changes.dataset.names[index]),
                "label": (colorize(label, spec.palette), ""),
                old_name: (colorize(old, spec.palette), ""),
                new_name: (colorize(new, spec.palette), ""),
                f"{new_name} against {old_name}": (change, f"gained {gained:.1f} %, lost {lost:.1f} %"),
            }
        )
        present.update(*map(np.unique, (label, new, old)))
    classes = [(spec.names[k], spec.palette[k]) for k in sorted(present - {IGNORE_INDEX})]
    return style.draw_picture_table(
        rows, style.make_legend_entries(classes), style.make_legend_entries(CHANGES.items())
    )
