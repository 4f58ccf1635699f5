"""Wrong labels, and what a teacher makes of them."""

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

from scripts.study.analysis.style import color, marker, wrap
from utils.training.metrics import Metrics, confusion_matrix
from utils.types import IGNORE_INDEX


@dataclass(frozen=True)
class Condition:
    """How a label plane is made. ``name`` is the axis of the experiment it belongs to."""

    name: str
    value: str  # its place on that axis, in words
    codes: str
    pixel_std: float
    share: float = 0.0  # of pixels or regions that show a wrong class; ``name`` is then a key of CORRUPTIONS
    plane: float = 1.0  # factor on the finished plane; 0 takes the label away
    code_std: float | None = None  # of codes "near"


def _pixels(label: np.ndarray, share: float, shift: Callable[[int], np.ndarray], rng: np.random.Generator):
    """Each labelled pixel on its own."""
    return (rng.random(label.shape) < share), shift(label.size).reshape(label.shape)


def _regions(label: np.ndarray, share: float, shift: Callable[[int], np.ndarray], rng: np.random.Generator):
    """Each connected region of one class as a whole, as an annotator mistakes an object."""
    region, count = np.zeros(label.shape, np.int64), 1
    for k in np.unique(label[label != IGNORE_INDEX]):
        found, parts = cv2.connectedComponents((label == k).astype(np.uint8), connectivity=4)
        region = np.where(parts > 0, parts + (count - 1), region)
        count += found - 1  # without the component of everything else
    return (rng.random(count) < share)[region], shift(count)[region]


# kind -> (label, share, draw of n shifts, rng) -> where, and by how many classes to shift
CORRUPTIONS: dict[str, Callable[..., tuple[np.ndarray, np.ndarray]]] = {
    "wrong pixels": _pixels,
    "wrong regions": _regions,
}


def corrupt(label: np.ndarray, condition: Condition, num_classes: int, rng: np.random.Generator) -> np.ndarray:
    """The label ``[H, W]`` that is shown: a share of it has another class, uniform over the others. Ignored pixels
    stay ignored.
    """
    if condition.name not in CORRUPTIONS or num_classes < 2:
        return label

    def shift(count: int) -> np.ndarray:
        return rng.integers(1, num_classes, count)

    where, by = CORRUPTIONS[condition.name](label, condition.share, shift, rng)
    where &= label != IGNORE_INDEX
    return np.where(where, (label.astype(np.int64) + by) % num_classes, label).astype(np.uint8)


class Tally:
    """Sums over images, for one condition."""

    def __init__(self, num_classes: int, draws: int) -> None:
        self.confusion = np.zeros((draws, num_classes, num_classes), np.int64)
        self.pairs = self.equal = self.divergence = self.wrong = self.labelled = 0.0
        self.followed = self.truthful = 0.0
        self.images = 0

    def add(self, logits: Tensor, label: np.ndarray, shown: np.ndarray) -> None:
        """logits ``[draws, K, H, W]`` of one image; label is the truth, shown what the plane was made of."""
        truth, classes = torch.from_numpy(label), logits.argmax(1)
        for d, prediction in enumerate(classes):
            self.confusion[d] += confusion_matrix(prediction, truth, logits.shape[1]).numpy()
        valid = truth != IGNORE_INDEX
        log_p = logits.permute(0, 2, 3, 1)[:, valid].log_softmax(2)
        classes = classes[:, valid]
        for a, b in combinations(range(len(logits)), 2):
            symmetric = (log_p[a].exp() - log_p[b].exp()) * (log_p[a] - log_p[b]) / 2  # KL both ways, halved
            self.divergence += float(symmetric.sum(dtype=torch.float64))
            self.equal += float((classes[a] == classes[b]).sum())
            self.pairs += classes.shape[1]
        said = torch.from_numpy(shown)[valid]
        wrong = said != truth[valid]
        self.wrong += float(wrong.sum())
        self.labelled += float(len(said))
        self.followed += float((classes == said)[:, wrong].sum()) / len(logits)
        self.truthful += float((classes == truth[valid])[:, wrong].sum()) / len(logits)
        self.images += 1

    def result(self) -> dict[str, Any]:
        """Fractions; what there was no pixel for is None. ``miou``: of each draw."""

        def ratio(part: float, whole: float) -> float | None:
            return part / whole if whole else None

        return {
            "miou": [Metrics(confusion, self.images).miou() for confusion in self.confusion],
            "agreement": ratio(self.equal, self.pairs),
            "kl": ratio(self.divergence, self.pairs),
            "wrong_share": ratio(self.wrong, self.labelled),
            "follows_wrong": ratio(self.followed, self.wrong),
            "sees_through_wrong": ratio(self.truthful, self.wrong),
        }


def plot(results: dict[str, list[dict[str, Any]]], title: str) -> Figure:
    """mIoU against noise, codes and wrong labels, and the share of pixels whose class changes between draws."""
    figure, axes = plt.subplots(2, 2, figsize=(9, 6.6), layout="constrained")
    for t, (name, records) in enumerate(results.items()):
        of = {kind: [r for r in records if r["name"] == kind] for kind in {r["name"] for r in records}}
        style = {"color": color(t), "marker": marker(t)}

        noise = of["pixel noise"]
        levels = [r["pixel_std"] for r in noise]
        _line(axes[0, 0], levels, [r["miou"] for r in noise], name, **style)
        changed = [[1 - r["agreement"]] for r in noise if r["agreement"] is not None]
        _line(axes[1, 1], levels[: len(changed)], changed, name, **style)

        bars = [*of["codes"], *of["no label"]]
        at = np.arange(len(bars)) + (t - (len(results) - 1) / 2) * 0.8 / len(results)
        means, stds = [np.mean(r["miou"]) for r in bars], [np.std(r["miou"], ddof=1) for r in bars]
        axes[0, 1].bar(at, 100 * np.array(means), 0.8 / len(results), yerr=100 * np.array(stds), color=color(t))
        axes[0, 1].set_xticks(range(len(bars)), [wrap(r["value"], 8) for r in bars])

        start = of["as trained"][0]["miou"]
        for kind, dash in zip(CORRUPTIONS, ("-", "--"), strict=True):
            shares = [0.0] + [r["share"] for r in of.get(kind, ())]
            values = [start] + [r["miou"] for r in of.get(kind, ())]
            _line(axes[1, 0], [100 * s for s in shares], values, name, linestyle=dash, **style)
    axes[0, 0].set(title="pixel noise of the label plane", xlabel="standard deviation before scaling")
    axes[0, 0].set_ylabel("mIoU %, true label")
    axes[0, 1].set(title="codes of the label plane", ylabel="mIoU %, true label")
    axes[1, 0].set(
        title="wrong labels shown", xlabel="% of pixels (solid), of regions (dashed)", ylabel="mIoU %, true label"
    )
    axes[1, 1].set(title="difference between two draws", xlabel="standard deviation before scaling")
    axes[1, 1].set_ylabel("% of pixels that change class")
    for axis in axes.flat:
        axis.set_ylim(0, 1.08 * axis.dataLim.y1 or None)  # room for the markers of a flat line
        axis.grid(color="0.92", axis="y")
    for axis in (axes[0, 0], axes[1, 1]):
        axis.set_xscale("symlog", linthresh=0.01, linscale=0.3)
        axis.set_xlim(-0.001, None)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    figure.suptitle(title, fontsize=10)
    return figure


def _line(axis: plt.Axes, x: list[float], draws: list[list[float]], label: str, **style: Any) -> None:
    """Mean over draws, with a whisker of one standard deviation."""
    means = 100 * np.array([np.mean(d) for d in draws])
    stds = 100 * np.array([np.std(d, ddof=1) if len(d) > 1 else 0 for d in draws])
    axis.errorbar(x, means, stds, label=label, markersize=4, linewidth=1.4, elinewidth=0.8, capsize=2, **style)
