"""Draw the picture of an experiment with a dial: what must a teacher know to teach?"""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from engine.settings import TeacherConfig
from scripts.study.analysis import style
from scripts.study.analysis.record_files import Folder
from scripts.study.analysis.runs import Run
from scripts.study.experiments.definition import Experiment
from scripts.study.experiments.tables import read_records, scores
from scripts.study.experiments.teachers_table import read_robustness


def dial_points(experiment: Experiment) -> list[tuple[str, str, str]]:
    """Return (place on the dial, teacher's arm, student's arm) for dual-path teachers and their first students.

    A place is "fixed", the S of codes "near", or "random". Teachers of another consistency are points of their own.
    """
    points: dict[tuple[str, str], tuple[str, str]] = {}
    for arm in experiment.arms.values():
        origin = arm.origins.get("teacher_pretrained")
        teacher = experiment.arms[origin.run] if origin else None
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


def draw_dial(experiment: Experiment, folder: Folder) -> Figure | None:
    """Draw the teachers' mIoU with their label and with a zero plane, and their students' gains, seed by seed.

    Return None where no point of the dial has a scored student.
    """
    records = read_records(experiment, folder)
    base = scores(records[experiment.baseline], "last") if experiment.baseline else {}
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
    noise = [place for place, *_ in points]
    xlabel = "noise of the label codes in teacher training"
    if len(set(tied)) > 1:
        noise = [f"{place}\n{loss}" for place, loss in zip(noise, tied, strict=True)]
        xlabel = f"{xlabel}, consistency"
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
    """Draw every seed, and a line through the means."""
    for x, column in enumerate(values):
        axis.plot([x] * len(column), [100 * v for v in column], style.marker(i), color=style.color(i), alpha=0.5)
    means = [100 * float(np.mean(column)) if column else np.nan for column in values]
    axis.plot(means, color=style.color(i), label=label)
