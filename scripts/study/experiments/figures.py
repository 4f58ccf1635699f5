"""Draw the picture of an experiment with a dial: what must a teacher know to teach?"""

from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from engine.recipes import load_recipe
from engine.settings import TeacherConfig
from scripts.study.analysis import style
from scripts.study.analysis.record_files import Folder
from scripts.study.analysis.runs import Run
from scripts.study.experiments.definition import Arm, Experiment
from scripts.study.experiments.tables import get_scores_by_seed, read_records
from scripts.study.experiments.teachers_table import list_scores, read_robustness


class DialPoint(NamedTuple):
    """Hold a place on the dial, the consistency loss of the teacher there, and the arms of teacher and student.

    The dial is the strength of the teacher's label noise. A place on it is "0 (fixed)", the S of codes "near", or
    "random".
    """

    place: str
    loss: str
    teacher: str
    student: str

    def get_sort_key(self) -> tuple[float, str]:
        """Return what the points are sorted by: the strength of the noise, then the loss."""
        strength = np.inf if self.place == "random" else float(self.place.split()[0])
        return strength, self.loss


def list_dial_points(experiment: Experiment) -> list[DialPoint]:
    """List the dual-path teachers with their first students, from the weakest noise to the strongest.

    Teachers of another consistency are points of their own.
    """
    points: dict[tuple[str, str], DialPoint] = {}
    for arm in experiment.arms.values():
        origin = arm.origins.get("teacher_pretrained")
        if origin is None or "pretrained" in arm.origins:
            continue
        teacher = experiment.arms[origin.run]
        place = _find_place(teacher)
        if place:
            loss = _read_settings(teacher).get("consistency", TeacherConfig.consistency)
            points.setdefault((place, loss), DialPoint(place, loss, teacher.name, arm.name))
    return sorted(points.values(), key=DialPoint.get_sort_key)


def _find_place(teacher: Arm) -> str:
    """Return the place of a teacher on the dial, "" where it is no dual-path teacher that reads the label."""
    if teacher.role != "teacher":
        return ""
    settings = _read_settings(teacher)
    if settings.get("single_path"):
        return ""
    places = {"fixed": "0 (fixed)", "near": str(settings.get("code_std")), "random": "random"}
    return places.get(settings.get("label_codes", "random"), "")


def _read_settings(teacher: Arm) -> dict[str, Any]:
    """Return the settings of a teacher that its recipe or the experiment gives."""
    return {**load_recipe(teacher.recipe, "teacher"), **teacher.settings}


def draw_dial(experiment: Experiment, folder: Folder) -> Figure | None:
    """Draw the teachers' mIoU with their label and with a zero plane, and their students' gains, seed by seed.

    Return None where no point of the dial has a scored student.
    """
    records = read_records(experiment, folder)
    base = get_scores_by_seed(records[experiment.baseline], "last") if experiment.baseline else {}
    points = [point for point in list_dial_points(experiment) if get_scores_by_seed(records[point.student], "last")]
    if not points or not base:
        return None
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    _draw_teachers(axes[0], points, records, base)
    _draw_gains(axes[1], points, records, base)
    for axis in axes:
        _label_axis(axis, points, records)
    figure.suptitle(experiment.title, fontsize=11)
    return figure


def _draw_teachers(
    axis: plt.Axes, points: list[DialPoint], records: dict[str, list[Run]], base: dict[int, float]
) -> None:
    """Draw the teachers' scores with their label and with a zero plane, and a line at the mean of the baseline."""
    with_label = [_get_teacher_scores(records[point.teacher], "as trained") for point in points]
    _draw_dots(axis, with_label, "teachers, shown their label", 0)
    without_label = [_get_teacher_scores(records[point.teacher], "no label") for point in points]
    _draw_dots(axis, without_label, "teachers, shown a zero plane", 1)
    level = 100 * float(np.mean(list(base.values())))
    axis.axhline(level, color="0.4", linestyle="--", linewidth=1, label=f"baseline {level:.1f}")
    axis.set(title="what the teacher scores", ylabel="mIoU %")


def _draw_gains(axis: plt.Axes, points: list[DialPoint], records: dict[str, list[Run]], base: dict[int, float]) -> None:
    """Draw by how much each student is ahead of the baseline of the same seed."""
    gained = []
    for point in points:
        own = get_scores_by_seed(records[point.student], "last")
        gained.append([own[seed] - base[seed] for seed in own.keys() & base.keys()])
    _draw_dots(axis, gained, "students, by seed", 2)
    axis.axhline(0, color="0.4", linestyle="--", linewidth=1)
    axis.set(title="what its student gains over the baseline", ylabel="points of mIoU")


def _label_axis(axis: plt.Axes, points: list[DialPoint], records: dict[str, list[Run]]) -> None:
    """Write the places below an axis, with the consistency of each teacher where they differ in it."""
    consistencies = []
    for point in points:
        runs = records[point.teacher]
        consistencies.append(str(runs[0].config.get("consistency")) if runs else "")
    ticks = [point.place for point in points]
    xlabel = "noise of the label codes in teacher training"
    if len(set(consistencies)) > 1:
        ticks = [f"{place}\n{loss}" for place, loss in zip(ticks, consistencies, strict=True)]
        xlabel = f"{xlabel}, consistency"
    axis.set_xticks(range(len(points)), ticks)
    axis.set(xlabel=xlabel)
    axis.set_xlim(-0.5, len(points) - 0.5)
    axis.grid(axis="y", color="0.92")
    axis.legend(fontsize=8)


def _get_teacher_scores(runs: list[Run], condition: str) -> list[float]:
    """Return the teachers' scores under one condition of teacher_robustness.py."""
    scores = []
    for run in runs:
        scores += list_scores(read_robustness(run.folder / "robustness.json", {}), condition)
    return scores


def _draw_dots(axis: plt.Axes, values: list[list[float]], label: str, i: int) -> None:
    """Draw every seed, and a line through the means.

    values: for each place on the dial, one for each seed. i: the number of the colour and the marker.
    """
    color = style.choose_color(i)
    for x, column in enumerate(values):
        percents = [100 * value for value in column]
        axis.plot([x] * len(column), percents, style.choose_marker(i), color=color, alpha=0.5)
    means = [100 * float(np.mean(column)) if column else np.nan for column in values]
    axis.plot(means, color=color, label=label)
