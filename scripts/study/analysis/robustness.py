"""Make wrong labels, and measure and draw what a teacher makes of them."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import cv2
import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from engine.metrics import Metrics, count_confusions
from scripts.study.analysis.style import choose_color, choose_marker
from scripts.study.analysis.text import wrap_text
from utils.types import IGNORE_INDEX


@dataclass(frozen=True)
class Condition:
    """Describe how a label plane is made. ``name`` is the axis of the experiment that it belongs to."""

    name: str
    value: str  # its place on that axis, in words
    codes: str
    pixel_std: float
    share: float = 0.0  # of pixels or regions that show a wrong class, where ``name`` is a key of CORRUPTIONS
    plane: float = 1.0  # factor on the finished plane; 0 takes the label away
    code_std: float | None = None  # of codes "near"


def number_pixels(label: np.ndarray) -> tuple[np.ndarray, int]:
    """Give each pixel of a label a number. Return the map of numbers and how many there are."""
    return np.arange(label.size).reshape(label.shape), label.size


def number_regions(label: np.ndarray) -> tuple[np.ndarray, int]:
    """Give each connected region of one class a number. Return the map of numbers and how many there are.

    An annotator mistakes whole objects, not single pixels. Ignored pixels have the number 0.
    """
    region = np.zeros(label.shape, np.int64)
    count = 1
    for k in np.unique(label[label != IGNORE_INDEX]):
        found, parts = cv2.connectedComponents((label == k).astype(np.uint8), connectivity=4)
        region = np.where(parts > 0, parts + (count - 1), region)
        count += found - 1  # without the component of everything else
    return region, count


# by kind, what numbers the parts of a label: a part is shown right or wrong as a whole
CORRUPTIONS: dict[str, Callable[[np.ndarray], tuple[np.ndarray, int]]] = {
    "wrong pixels": number_pixels,
    "wrong regions": number_regions,
}


def corrupt_label(label: np.ndarray, kind: str, share: float, num_classes: int, rng: np.random.Generator) -> np.ndarray:
    """Return a label, uint8 ``[H, W]``, in which a share of the pixels or regions has a wrong class.

    kind: a key of CORRUPTIONS; of any other kind, or with only one class, the label comes back as it was. share: of
    the pixels or regions, 0 to 1. Every wrong class is equally likely. Ignored pixels stay ignored.
    """
    if kind not in CORRUPTIONS or num_classes < 2:
        return label
    part, count = CORRUPTIONS[kind](label)
    is_wrong = (rng.random(count) < share)[part] & (label != IGNORE_INDEX)
    shift = rng.integers(1, num_classes, count)[part]
    return np.where(is_wrong, (label.astype(np.int64) + shift) % num_classes, label).astype(np.uint8)


# the results that are ratios: the names of the sum above and of the sum below the line
RATIOS = {
    "agreement": ("equal", "pairs"),
    "kl": ("divergence", "pairs"),
    "wrong_share": ("wrong", "labelled"),
    "follows_wrong": ("followed", "wrong"),
    "sees_through_wrong": ("truthful", "wrong"),
}


class Tally:
    """Sum up, image by image, what a teacher predicts under one condition."""

    def __init__(self, num_classes: int, draws: int) -> None:
        self.confusion = np.zeros((draws, num_classes, num_classes), np.int64)
        self.images = 0
        self.sums: Counter[str] = Counter()  # the sums that RATIOS names

    def add(self, logits: Tensor, label: np.ndarray, shown: np.ndarray) -> None:
        """Add one image.

        logits: ``[draws, K, H, W]``. label: the true one. shown: the label that the plane was made of.
        """
        truth = torch.from_numpy(label)
        classes = logits.argmax(1)
        for d, prediction in enumerate(classes):
            self.confusion[d] += count_confusions(prediction, truth, logits.shape[1]).numpy()
        valid = truth != IGNORE_INDEX
        log_p = logits.permute(0, 2, 3, 1)[:, valid].log_softmax(2)
        classes = classes[:, valid]
        for a, b in combinations(range(len(logits)), 2):
            symmetric = (log_p[a].exp() - log_p[b].exp()) * (log_p[a] - log_p[b]) / 2  # KL both ways, halved
            equal = int((classes[a] == classes[b]).sum())
            self.sums.update(divergence=float(symmetric.sum(dtype=torch.float64)), equal=equal, pairs=classes.shape[1])
        true_classes = truth[valid]
        shown_classes = torch.from_numpy(shown)[valid]
        wrong = shown_classes != true_classes
        followed = float((classes == shown_classes)[:, wrong].sum()) / len(logits)
        truthful = float((classes == true_classes)[:, wrong].sum()) / len(logits)
        self.sums.update(wrong=int(wrong.sum()), labelled=len(shown_classes), followed=followed, truthful=truthful)
        self.images += 1

    def compute_results(self) -> dict[str, Any]:
        """Return the results as fractions, None where there was no pixel; ``miou`` is a list with one a draw."""
        results: dict[str, Any] = {}
        results["miou"] = [Metrics(confusion, self.images).miou() for confusion in self.confusion]
        for name, (part, whole) in RATIOS.items():
            results[name] = self.sums[part] / self.sums[whole] if self.sums[whole] else None
        return results


def draw_robustness(results: dict[str, list[dict[str, Any]]], title: str) -> Figure:
    """Draw the mIoU against noise, codes and wrong labels, and how many pixels change their class between draws.

    results: the records of each teacher, by its name.
    """
    figure, axes = plt.subplots(2, 2, figsize=(9, 6.6), layout="constrained")
    for place, (name, records) in enumerate(results.items()):
        _draw_teacher(axes, name, records, place, len(results))
    miou = "mIoU %, true label"
    std = "standard deviation before scaling"
    texts = [
        ("pixel noise of the label plane", std, miou),
        ("codes of the label plane", "", miou),
        ("wrong labels shown", "% of pixels (solid), of regions (dashed)", miou),
        ("difference between two draws", std, "% of pixels that change class"),
    ]
    for axis, (heading, xlabel, ylabel) in zip(axes.flat, texts, strict=True):
        axis.set(title=heading, xlabel=xlabel, ylabel=ylabel)
        axis.set_ylim(0, 1.08 * axis.dataLim.y1 or None)  # room for the markers of a flat line
        axis.grid(color="0.92", axis="y")
    for axis in (axes[0, 0], axes[1, 1]):
        axis.set_xscale("symlog", linthresh=0.01, linscale=0.3)
        axis.set_xlim(-0.001, None)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    figure.suptitle(title, fontsize=10)
    return figure


def _draw_teacher(axes: np.ndarray, name: str, records: list[dict[str, Any]], place: int, teachers: int) -> None:
    """Draw the results of one teacher into all four panels. place: its number among ``teachers``, from 0."""
    by_kind: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        by_kind.setdefault(record["name"], []).append(record)
    style = {"color": choose_color(place), "marker": choose_marker(place)}

    noise = by_kind["pixel noise"]
    levels = [record["pixel_std"] for record in noise]
    _draw_line(axes[0, 0], levels, [record["miou"] for record in noise], name, **style)
    changed = [[1 - record["agreement"]] for record in noise if record["agreement"] is not None]
    _draw_line(axes[1, 1], levels[: len(changed)], changed, name, **style)

    bars = [*by_kind["codes"], *by_kind["no label"]]
    width = 0.8 / teachers
    at = np.arange(len(bars)) + (place - (teachers - 1) / 2) * width
    means = [np.mean(record["miou"]) for record in bars]
    stds = [np.std(record["miou"], ddof=1) for record in bars]
    axes[0, 1].bar(at, 100 * np.array(means), width, yerr=100 * np.array(stds), color=choose_color(place))
    axes[0, 1].set_xticks(range(len(bars)), [wrap_text(record["value"], 8) for record in bars])

    start = by_kind["as trained"][0]["miou"]
    for kind, dash in zip(CORRUPTIONS, ("-", "--"), strict=True):
        corrupted = by_kind.get(kind, [])
        shares = [0.0, *(100 * record["share"] for record in corrupted)]
        values = [start, *(record["miou"] for record in corrupted)]
        _draw_line(axes[1, 0], shares, values, name, linestyle=dash, **style)


def _draw_line(axis: plt.Axes, x: list[float], draws: list[list[float]], label: str, **style: Any) -> None:
    """Draw the mean over the draws at each x, with a whisker of one standard deviation."""
    means = 100 * np.array([np.mean(d) for d in draws])
    stds = 100 * np.array([np.std(d, ddof=1) if len(d) > 1 else 0 for d in draws])
    axis.errorbar(x, means, stds, label=label, markersize=4, linewidth=1.4, elinewidth=0.8, capsize=2, **style)
