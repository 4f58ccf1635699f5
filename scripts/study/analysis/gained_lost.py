"""Where one network is right and another wrong, from the predictions that eval.py --save-pred left in their folders."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from PIL import Image

from datasets.base import SegmentationDataset
from scripts.study.analysis.style import wrap
from utils.colors import colorize
from utils.errors import UserError
from utils.types import IGNORE_INDEX, Rgb

# blue and vermilion stay apart for colour-blind readers, as red and green do not
CHANGES = {
    "gained": (0, 114, 178),
    "lost": (213, 94, 0),
    "right in both": (225, 225, 225),
    "wrong in both": (130, 130, 130),
    "ignored": (255, 255, 255),
}


def change_map(new: np.ndarray, old: np.ndarray, label: np.ndarray) -> np.ndarray:
    """Index into CHANGES of every pixel, uint8 ``[H, W]``."""
    right, was = new == label, old == label
    index = np.select([right & ~was, was & ~right, right], [0, 1, 2], 3)
    return np.where(label == IGNORE_INDEX, 4, index).astype(np.uint8)


@dataclass(frozen=True)
class Changes:
    """Pixel counts by image, int64 ``[n, 5]`` in the order of CHANGES, and where the predictions are."""

    dataset: SegmentationDataset
    new: Path
    old: Path
    counts: np.ndarray

    def shares(self) -> dict[str, float]:
        """Of the labelled pixels of all images."""
        total = self.counts[:, :4].sum()
        return {name: float(self.counts[:, k].sum() / max(total, 1)) for k, name in enumerate(list(CHANGES)[:4])}

    def accuracies(self) -> tuple[float, float]:
        """Pixel accuracy of the new and of the old predictions."""
        share = self.shares()
        return share["gained"] + share["right in both"], share["lost"] + share["right in both"]

    def spread(self, count: int) -> list[int]:
        """Images evenly spaced over the ranking by net gain: the most gained first, the most lost last."""
        net = (self.counts[:, 0] - self.counts[:, 1]) / np.maximum(self.counts[:, :4].sum(1), 1)
        order = np.argsort(-net, kind="stable")
        return order[np.linspace(0, len(order) - 1, min(count, len(order))).round().astype(int)].tolist()

    def read(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Image, label, new and old prediction."""
        image, label = self.dataset.read(index)
        name = f"{self.dataset.pairs[index][0].stem}.png"
        return image, label, *(_prediction(folder / name, label.shape) for folder in (self.new, self.old))


def measure(dataset: SegmentationDataset, new: Path, old: Path) -> Changes:
    """Raises UserError when a prediction is missing, unreadable or of another size than its label."""
    changes = Changes(dataset, new, old, np.zeros((len(dataset), len(CHANGES)), np.int64))
    for i in range(len(dataset)):
        _, label, a, b = changes.read(i)
        changes.counts[i] = np.bincount(change_map(a, b, label).ravel(), minlength=len(CHANGES))
    return changes


def _prediction(path: Path, shape: tuple[int, int]) -> np.ndarray:
    try:
        with Image.open(path) as file:
            ids = np.array(file)
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f"prediction {path} cannot be read: {error}") from error
    if ids.shape != shape:
        raise UserError(f"prediction {path} has shape {ids.shape}, its label {shape}")
    return ids


def draw(changes: Changes, count: int, new_name: str, old_name: str) -> Figure:
    """Rows of image, label, both predictions and the change map."""
    spec, chosen = changes.dataset.spec, changes.spread(count)
    titles = ("image", "label", *map(wrap, (old_name, new_name, f"{new_name} against {old_name}")))
    rows = [changes.read(i) for i in chosen]
    ratio = rows[0][1].shape[0] / rows[0][1].shape[1]
    size = (2.2 * len(titles), (2.2 * ratio + 0.25) * len(rows) + 1.0)
    figure, axes = plt.subplots(len(rows), len(titles), figsize=size, squeeze=False, layout="constrained")
    for line, index, (image, label, new, old) in zip(axes, chosen, rows, strict=True):
        change = np.uint8(list(CHANGES.values()))[change_map(new, old, label)]
        pictures = (image, *(colorize(ids, spec.palette) for ids in (label, old, new)), change)
        for axis, title, picture in zip(line, titles, pictures, strict=True):
            axis.imshow(picture, interpolation="nearest")
            axis.set(xticks=[], yticks=[], title=title if index == chosen[0] else "")
            axis.title.set_fontsize(9)
            axis.spines[:].set(visible=True, color="0.8")
        gained, lost = 100 * changes.counts[index, :2] / max(changes.counts[index, :4].sum(), 1)
        line[-1].set_xlabel(f"gained {gained:.1f} %, lost {lost:.1f} %", fontsize=8)
        line[0].set_xlabel(wrap(changes.dataset.pairs[index][0].stem), fontsize=8)
    present = sorted(set().union(*(np.unique(ids) for row in rows for ids in row[1:])) - {IGNORE_INDEX})
    classes = [(spec.names[k], spec.palette[k]) for k in present]
    figure.legend(handles=_patches(classes), loc="outside lower left", ncols=5, fontsize=8, title="classes")
    figure.legend(handles=_patches(CHANGES.items()), loc="outside lower right", ncols=3, fontsize=8, title="map")
    return figure


def _patches(entries: Iterable[tuple[str, Rgb]]) -> list[Patch]:
    return [Patch(facecolor=np.array(c) / 255, edgecolor="0.6", linewidth=0.5, label=name) for name, c in entries]
