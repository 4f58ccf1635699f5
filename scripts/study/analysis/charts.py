"""Plots that compare groups of runs. A group is a list of runs that differ in the seed."""

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from engine.metrics import ASSISTED
from scripts.study.analysis.runs import Run, View, list_scored_runs
from scripts.study.analysis.style import choose_color, choose_line_style
from scripts.study.analysis.text import wrap_text
from utils.types import LOG_FIELDS

MAX_BARS = 40  # classes that the bar chart shows at most
MAX_CELLS = 40  # classes that a confusion matrix shows at most
MAX_ANNOTATED = 15  # classes up to which the cells of a confusion matrix have numbers
Groups = Mapping[str, Sequence[Run]]


class ClassScores(NamedTuple):
    """The IoU of each class in the runs of a group: ``table [runs, classes]``, NaN where a class does not occur."""

    table: np.ndarray
    mean_ious: list[float]  # of each run
    assisted: bool

    def compute_means(self) -> np.ndarray:
        """Return the mean over the runs for each class."""
        return np.ma.masked_invalid(self.table).mean(0).filled(np.nan)


def read_class_scores(groups: Groups, view: View) -> tuple[list[str], dict[str, ClassScores]]:
    """Return the names of the classes, and the scores of each group that has some in this view."""
    scored = {}
    names: dict[str, None] = {}  # a dict, because it keeps the order
    for group, runs in groups.items():
        scored_runs = list_scored_runs(runs, view)
        if scored_runs:
            scored[group] = scored_runs
        for run in scored_runs:
            names |= dict.fromkeys(run.scores[view]["iou"])
    found = {}
    for group, runs in scored.items():
        scores = [run.scores[view] for run in runs]
        table = np.array([[score["iou"].get(name) for name in names] for score in scores], float)
        mean_ious = [score["miou"] for score in scores]
        found[group] = ClassScores(table, mean_ious, any(run.is_assisted(view) for run in runs))
    return list(names), found


def choose_order(scores: Mapping[str, ClassScores], baseline: str) -> tuple[np.ndarray, str]:
    """Choose the classes to show, from the bottom to the top, and say in words how they are sorted.

    They are sorted by the gain of the last group over the baseline, or else by the score of the first group.
    """
    others = [name for name, group in scores.items() if name != baseline and not group.assisted]
    if baseline in scores and others:
        order = np.argsort(np.nan_to_num(scores[others[-1]].compute_means() - scores[baseline].compute_means()))
        title = f"sorted by the gain of {others[-1]} over {baseline}"
    else:
        first = next(iter(scores))
        order = np.argsort(np.nan_to_num(scores[first].compute_means()))
        title = f"sorted by {first}"
    if len(order) > MAX_BARS:
        title += f"; the {MAX_BARS // 2} at either end of {len(order)} classes"
        order = np.concatenate([order[: MAX_BARS // 2], order[-MAX_BARS // 2 :]])
    return order, title


def draw_class_bars(groups: Groups, view: View, baseline: str) -> Figure:
    """Draw the IoU of each class by group, with whiskers for the seeds and a line at each mIoU."""
    names, scores = read_class_scores(groups, view)
    order, title = choose_order(scores, baseline)
    height = 0.8 / len(scores)
    size = (7.5, 1.4 + len(order) * max(0.25, 0.16 * len(scores)))
    figure, axis = plt.subplots(figsize=size, layout="constrained")
    at = np.arange(len(order))
    style = {"elinewidth": 1, "capsize": 1.5, "ecolor": "0.25"}
    for i, (name, group) in enumerate(scores.items()):
        offset = ((len(scores) - 1) / 2 - i) * height
        total = 100 * np.mean(group.mean_ious)
        label = f"{name}: mIoU {total:.1f} %"
        whisker = None
        if len(group.table) > 1:
            label += f", {len(group.table)} seeds"
            whisker = 100 * group.table.std(0, ddof=1)[order]
        if group.assisted:
            label += f" ({ASSISTED})"
        values = 100 * np.nan_to_num(group.compute_means()[order])
        axis.barh(
            at + offset, values, height, xerr=whisker, error_kw=style, color=choose_color(i), label=wrap_text(label, 48)
        )
        axis.axvline(total, color=choose_color(i), linestyle="--", linewidth=1)
    axis.set(yticks=at, xlabel="IoU %, dashed: mIoU", xlim=(0, 100), ylim=(-0.6, len(order) - 0.4))
    axis.set_yticklabels([names[k] for k in order])
    axis.tick_params(axis="y", length=0)
    axis.grid(axis="x", color="0.9")
    heading = f"IoU by class, {view.describe_data()}, {view.checkpoint} checkpoint"
    figure.suptitle(f"{heading}\n{wrap_text(title, 90)}", fontsize=10)
    figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def draw_training_curves(groups: Groups) -> Figure | None:
    """Draw validation mIoU and every training term against the iteration. Return None where no run has a log.

    A line is the mean over seeds, the band their range. Training terms are smoothed; of a single seed the raw values
    show as well.
    """
    terms = list_training_terms(groups)
    if not terms:
        return None
    panels = ["val", *terms]
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(3.6 * columns, 2.6 * rows), squeeze=False, layout="constrained")
    for axis, panel in zip(axes.flat, panels, strict=False):
        _draw_panel(axis, panel, groups)
    for axis in axes.flat[len(panels) :]:
        axis.remove()
    handles = {}  # by label: a group has one entry, though it is in many panels
    for axis in figure.axes:
        for handle in axis.get_legend_handles_labels()[0]:
            handles[handle.get_label()] = handle
    figure.legend(handles=list(handles.values()), loc="outside lower center", ncols=min(3, len(handles)))
    return figure


def list_training_terms(groups: Groups) -> list[str]:
    """List the terms of the training loss that any run has logged, and the learning rate."""
    terms: dict[str, None] = {}  # a dict, because it keeps the order
    for run in chain.from_iterable(groups.values()):
        for record in run.curves.get("train", ()):
            for key in record:
                # a weighted term has the shape of the term itself
                if key not in LOG_FIELDS and not key.endswith("_weighted"):
                    terms[key] = None
    return list(terms)


def _draw_panel(axis: plt.Axes, panel: str, groups: Groups) -> None:
    """Draw one panel of the training curves. panel: "val" or a term of the training loss."""
    for i, (name, members) in enumerate(groups.items()):
        series = _read_panel_series(members, panel)
        _draw_band(axis, series, name, choose_color(i), choose_line_style(i), smooth=panel not in ("val", "lr"))
    title = "validation mIoU %" if panel == "val" else f"training: {panel}"
    axis.set(title=title, xlabel="iteration", xlim=(0, None))
    axis.grid(color="0.92")
    if panel == "lr" or not axis.lines:
        return
    values = np.concatenate([curve.get_ydata() for curve in axis.lines])
    if values.min() > 0 and values.max() > 30 * values.min():
        axis.set_yscale("log")
        axis.yaxis.set_major_formatter("{x:g}")  # matplotlib's own needs math text, which is off


def _read_panel_series(runs: Sequence[Run], panel: str) -> list[dict[int, float]]:
    """Return the values of a panel by iteration, for each run that has some."""
    event = "train"
    key = panel
    scale = 1
    if panel == "val":
        event = "val"
        key = "miou"
        scale = 100  # in percent
    series = []
    for run in runs:
        points = {}
        for record in run.curves.get(event, ()):
            if record.get(key) is not None:
                points[record["iteration"]] = scale * record[key]
        if points:
            series.append(points)
    return series


def _draw_band(axis: plt.Axes, series: list[dict[int, float]], name: str, tint: str, dashes: str, smooth: bool) -> None:
    """Draw the mean of a group and the range of its runs. series: values by iteration, of each run."""
    common = sorted(set.intersection(*map(set, series))) if series else []
    if not common:
        return
    table = np.array([[points[iteration] for iteration in common] for points in series])
    lines = np.stack([_smooth_curve(row) for row in table]) if smooth else table
    if len(series) > 1:
        axis.fill_between(common, lines.min(0), lines.max(0), color=tint, alpha=0.2, linewidth=0)
    elif smooth:
        axis.plot(common, table[0], color=tint, alpha=0.25, linewidth=0.8)
    label = name if len(series) == 1 else f"{name} (mean and range of {len(series)} seeds)"
    marker = "." if len(common) < 15 else None
    axis.plot(
        common, lines.mean(0), color=tint, linestyle=dashes, linewidth=1.6, label=wrap_text(label, 48), marker=marker
    )


def _smooth_curve(values: np.ndarray) -> np.ndarray:
    """Return the centred moving mean over a twentieth of the points; windows shrink at the ends."""
    window = np.ones(len(values) // 40 * 2 + 1)
    return np.convolve(values, window, "same") / np.convolve(np.ones(len(values)), window, "same")


def draw_confusion(confusion: np.ndarray, names: Sequence[str], title: str) -> Figure:
    """Draw a confusion matrix in percent of each label's pixels.

    confusion: int ``[K, K]``, rows are labels, columns predictions.
    """
    share = divide_by_rows(confusion)
    shown = np.arange(len(names))
    if len(names) > MAX_CELLS:  # the classes that are confused most, in the order of the data set
        recall = np.where(confusion.sum(1) > 0, share.diagonal(), 2.0)  # classes without a pixel come last
        shown = np.sort(np.argsort(recall)[:MAX_CELLS])
        title += f"\nthe {MAX_CELLS} of {len(names)} classes with the lowest recall"
    share = share[np.ix_(shown, shown)]
    side = 2.2 + 0.36 * len(shown) if len(shown) <= MAX_ANNOTATED else 2.6 + 0.24 * len(shown)
    figure, axis = plt.subplots(figsize=(side + 0.8, side), layout="constrained")
    picture = axis.imshow(100 * share, cmap="cividis", vmin=0, vmax=100)
    labels = [names[k] for k in shown]
    axis.set(xticks=range(len(shown)), yticks=range(len(shown)), xlabel="prediction", ylabel="label")
    axis.set_xticklabels(labels, rotation=90)
    axis.set_yticklabels(labels)
    axis.spines[:].set_visible(False)
    axis.tick_params(length=0)
    if len(shown) <= MAX_ANNOTATED:
        for (i, j), value in np.ndenumerate(share):
            if np.isfinite(value) and value >= 0.005:
                tint = "black" if value > 0.55 else "white"
                axis.text(j, i, f"{100 * value:.0f}", ha="center", va="center", color=tint, fontsize=7.5)
    figure.colorbar(picture, ax=axis, label="% of the label's pixels", shrink=0.8)
    axis.set_title("\n".join(wrap_text(part, int(10 * side)) for part in title.split("\n")), fontsize=10)
    return figure


def divide_by_rows(confusion: np.ndarray) -> np.ndarray:
    """Divide each row of a matrix by its sum; NaN for a class without a labelled pixel."""
    total = confusion.sum(1, keepdims=True).astype(float)
    return np.divide(confusion, total, out=np.full(confusion.shape, np.nan), where=total > 0)


def list_top_confusions(confusion: np.ndarray, names: Sequence[str], count: int = 5) -> list[dict[str, object]]:
    """List the ``count`` largest confusions, as shares of the label's pixels.

    Each has the names of label and prediction, the share, and the number of pixels.
    """
    share = np.nan_to_num(divide_by_rows(confusion))
    np.fill_diagonal(share, 0)
    order = np.argsort(-share, axis=None)[:count]
    confusions = []
    for place in order:
        i, j = divmod(int(place), len(names))
        if share[i, j] > 0:
            confusions.append(
                {
                    "label": names[i],
                    "prediction": names[j],
                    "share": float(share[i, j]),
                    "pixels": int(confusion[i, j]),
                }
            )
    return confusions
