"""Draw the picture of an experiment with a dial: what must a teacher know to teach?"""

from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from engine.settings import TeacherConfig
from scripts.study.analysis import style
from scripts.study.analysis.record_files import Folder
from scripts.study.analysis.runs import Run
from scripts.study.experiments.definition import Experiment
from scripts.study.experiments.tables import get_scores_by_seed, read_records
from scripts.study.experiments.teachers_table import read_robustness


class DialPoint(NamedTuple):
    """Hold a place on the dial, the consistency loss of the teacher there, and the arms of teacher and student.

    A place is "0 (fixed)", the S of codes "near", or "random".
    """

    place: str
    loss: str
    teacher: str
    student: str

    def get_sort_key(self) -> tuple[float, str]:
        strength = np.inf if self.place == "random" else float(self.place.split()[0])
        return strength, self.loss


def list_dial_points(experiment: Experiment) -> list[DialPoint]:
    """List the dual-path teachers with their first students, from the weakest noise to the strongest.

    Teachers of another consistency are points of their own.
    """
    points: dict[tuple[str, str], DialPoint] = {}
    for arm in experiment.arms.values():
        origin = arm.origins.get("teacher_pretrained")
        teacher = experiment.arms[origin.run] if origin else None
        if teacher and teacher.role == "teacher" and "pretrained" not in arm.origins:
            settings = teacher.settings
            places = {"fixed": "0 (fixed)", "near": str(settings.get("code_std")), "random": "random"}
            place = places.get(settings.get("label_codes", "random"))
            if place and not settings.get("single_path"):
                loss = settings.get("consistency", TeacherConfig.consistency)
                points.setdefault((place, loss), DialPoint(place, loss, teacher.name, arm.name))
    return sorted(points.values(), key=DialPoint.get_sort_key)


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
    for i, (condition, label) in enumerate((("as trained", "their label"), ("no label", "a zero plane"))):
        found = [_get_teacher_scores(records[point.teacher], condition) for point in points]
        _draw_dots(axis, found, f"teachers, shown {label}", i)
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
    probes = [record for run in runs for record in read_robustness(run.folder / "robustness.json", {})]
    return [float(np.mean(r["miou"])) for r in probes if r["name"] == condition]


def _draw_dots(axis: plt.Axes, values: list[list[float]], label: str, i: int) -> None:
    """Draw every seed, and a line through the means."""
    for x, column in enumerate(values):
        axis.plot(
            [x] * len(column), [100 * v for v in column], style.choose_marker(i), color=style.choose_color(i), alpha=0.5
        )
    means = [100 * float(np.mean(column)) if column else np.nan for column in values]
    axis.plot(means, color=style.choose_color(i), label=label)
