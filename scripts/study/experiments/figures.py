"""The pictures of an experiment: what must a teacher know to teach, and what do losses gain for their cost?"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from engine.settings import TeacherConfig
from scripts.study.analysis import style
from scripts.study.analysis.runs import Run
from scripts.study.experiments.definition import Experiment
from scripts.study.experiments.losses_table import BUDGETS, TEACHERS, Row
from scripts.study.experiments.tables import read_records, scores
from scripts.study.experiments.teachers_table import read_robustness

COSTS = ("time of a training step, x baseline", "peak memory over the baseline, MB")
# of their axes: most losses cost a little more than the baseline, some many times as much; memory may be less
SCALES = {"value": "log"}, {"value": "symlog", "linthresh": 20, "subs": (2, 3, 4, 5, 7)}


def dial_points(experiment: Experiment) -> list[tuple[str, str, str]]:
    """(place on the dial, teacher's arm, student's arm) of dual-path teachers of each consistency, first students.

    A place is "fixed", the S of codes "near", or "random".
    """
    points: dict[tuple[str, str], tuple[str, str]] = {}
    for arm in experiment.arms.values():
        origin = arm.origins.get("teacher_pretrained")
        teacher = experiment.arms[origin.arm] if origin else None
        if teacher and teacher.train == "teacher" and "pretrained" not in arm.origins:
            settings = teacher.settings
            places = {"fixed": "0 (fixed)", "near": str(settings.get("code_std")), "random": "random"}
            place = places.get(settings.get("label_codes", "random"))
            if place and not settings.get("single_path"):
                loss = settings.get("consistency", TeacherConfig.consistency)
                points.setdefault((place, loss), (teacher.name, arm.name))
    return [(key[0], *points[key]) for key in sorted(points, key=lambda key: (_strength(key[0]), key[1]))]


def _strength(place: str) -> float:
    return np.inf if place == "random" else float(place.split()[0])


def draw_dial(experiment: Experiment, folder: Path) -> Figure | None:
    """Left: the teachers' mIoU with their label and with a zero plane. Right: their students' gains, seed by seed.

    None where no point of the dial has a scored student.
    """
    records = read_records(experiment, folder)
    base = scores(records[experiment.baseline], "last")
    points = [point for point in dial_points(experiment) if scores(records[point[2]], "last")]
    if not points or not base:
        return None
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    level = float(np.mean(list(base.values())))
    gained = []
    for *_, student in points:
        own = scores(records[student], "last")
        gained.append([own[seed] - base[seed] for seed in own.keys() & base.keys()])
    for i, (condition, label) in enumerate((("as trained", "their label"), ("no label", "a zero plane"))):
        found = [_teacher_scores(records[teacher], condition) for _, teacher, _ in points]
        _dots(axes[0], found, f"teachers, shown {label}", i)
    _dots(axes[1], gained, "students, by seed", 2)
    axes[0].axhline(100 * level, color="0.4", linestyle="--", linewidth=1, label=f"baseline {100 * level:.1f}")
    axes[1].axhline(0, color="0.4", linestyle="--", linewidth=1)
    texts = ("what the teacher scores", "mIoU %"), ("what its student gains over the baseline", "points of mIoU")
    runs = [records[teacher] for _, teacher, _ in points]
    tied = [str(found[0].config.get("consistency")) if found else "" for found in runs]
    noise, xlabel = [place for place, *_ in points], "noise of the label codes in teacher training"
    if len(set(tied)) > 1:
        noise, xlabel = [f"{place}\n{loss}" for place, loss in zip(noise, tied, strict=True)], f"{xlabel}, consistency"
    for axis, (title, ylabel) in zip(axes, texts, strict=True):
        axis.set_xticks(range(len(points)), noise)
        axis.set(title=title, ylabel=ylabel, xlabel=xlabel)
        axis.set_xlim(-0.5, len(points) - 0.5)
        axis.grid(axis="y", color="0.92")
        axis.legend(fontsize=8)
    figure.suptitle(experiment.title, fontsize=11)
    return figure


def _teacher_scores(runs: list[Run], condition: str) -> list[float]:
    probes = [record for run in runs for record in read_robustness(run.folder / "robustness.json", {})]
    return [float(np.mean(r["miou"])) for r in probes if r["name"] == condition]


def _dots(axis: plt.Axes, values: list[list[float]], label: str, i: int) -> None:
    """Every seed, and a line through the means."""
    for x, column in enumerate(values):
        axis.plot([x] * len(column), [100 * v for v in column], style.marker(i), color=style.color(i), alpha=0.5)
    means = [100 * float(np.mean(column)) if column else np.nan for column in values]
    axis.plot(means, color=style.color(i), label=label)


def draw_costs(rows: Sequence[Row], title: str) -> Figure | None:
    """Columns: cost in time and in memory. Rows: the budgets that were run. Colours: the teachers, a line a loss.

    None where no loss has both a score and a cost.
    """
    shown = [b for b in BUDGETS if any((end, b) in row.gains for row in rows if row.cost for end in TEACHERS)]
    if not shown:
        return None
    figure, axes = plt.subplots(len(shown), 2, figsize=(11, 5.5 * len(shown)), layout="constrained", squeeze=False)
    points: dict[plt.Axes, dict[str, list[tuple[float, float]]]] = {axis: {} for axis in axes.flat}
    for budget, line in zip(shown, axes, strict=True):
        for k, axis in enumerate(line):
            for i, (end, teacher) in enumerate(TEACHERS.items()):
                known = [row for row in rows if row.cost and (end, budget) in row.gains]
                for row in known:
                    points[axis].setdefault(row.loss, []).append((row.cost[k], 100 * row.gains[end, budget]))
                places = [points[axis][row.loss][-1] for row in known]
                axis.plot(*np.array(places).reshape(-1, 2).T, style.marker(i), color=style.color(i), label=teacher)
            for both in points[axis].values():
                axis.plot(*np.array(both).T, color="0.7", linewidth=0.8, zorder=1)
            axis.axhline(0, color="0.6", linewidth=0.8)
            axis.set(title=BUDGETS[budget], xlabel=COSTS[k], ylabel="gain over the baseline, points of mIoU")
            axis.set_xscale(**SCALES[k])
            axis.margins(x=0.06, y=0.12)  # room for the names
            axis.xaxis.set_major_formatter("{x:g}")
            axis.xaxis.set_minor_formatter("{x:g}")
    figure.suptitle(title, fontsize=11)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    figure.draw_without_rendering()  # where the axes lie
    for axis, losses in points.items():
        _name(axis, losses)
    return figure


def _name(axis: plt.Axes, points: Mapping[str, Sequence[tuple[float, float]]]) -> None:
    """A name above the highest of its points, so high that it covers no other name or point."""
    size = axis.figure.dpi / 72
    centres = axis.transData.transform([place for several in points.values() for place in several])
    taken = [Bbox.from_bounds(*(centre - 3 * size), 6 * size, 6 * size) for centre in centres]
    for name, several in sorted(points.items(), key=lambda item: max(y for _, y in item[1])):
        highest = max(several, key=lambda place: place[1])
        line = {"arrowstyle": "-", "color": "0.7", "linewidth": 0.6}
        place = {"xytext": (0, 5), "textcoords": "offset points", "ha": "center"}
        text = axis.annotate(name, highest, **place, fontsize=7, arrowprops=line)
        while any((box := Text.get_window_extent(text)).overlaps(other) for other in taken):  # without its line
            text.set_position((0, text.get_position()[1] + 2))
            text.update_positions(axis.figure.canvas.get_renderer())
        taken.append(box)
