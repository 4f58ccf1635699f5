"""What must a teacher know to teach? Students' gains beside the strength of their teachers' label noise."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from scripts.study.analysis import style
from scripts.study.analysis.runs import Run
from scripts.study.experiments.definition import Experiment
from scripts.study.experiments.tables import read_records, scores
from scripts.study.experiments.teachers_table import read_robustness


def strength(settings: dict[str, object]) -> str:
    """Where a teacher's codes stand on the dial, in words: "fixed", the S of "near", "random"; "" elsewhere."""
    codes = settings.get("label_codes", "random")
    return {"fixed": "0 (fixed)", "near": f"{settings.get('code_std')}", "random": "random"}.get(codes, "")


def dial_points(experiment: Experiment) -> dict[str, tuple[str, str]]:
    """Place on the dial -> (teacher's arm, student's arm), of dual-path teachers and their first student."""
    points: dict[str, tuple[str, str]] = {}
    for arm in experiment.arms.values():
        origin = arm.origins.get("teacher_pretrained")
        teacher = experiment.arms[origin.arm] if origin else None
        if teacher is None or teacher.train != "teacher" or teacher.settings.get("single_path"):
            continue
        if "pretrained" not in arm.origins and (place := strength(teacher.settings)):
            points.setdefault(place, (teacher.name, arm.name))
    return dict(sorted(points.items(), key=lambda item: (item[0] == "random", item[0])))


def draw_dial(experiment: Experiment, folder: Path) -> Figure | None:
    """Left: the teachers' mIoU with their label and with a zero plane. Right: their students' gains, seed by seed.

    None where no point of the dial has a scored student.
    """
    records = read_records(experiment, folder)
    base = scores(records[experiment.baseline], "last")
    points = {place: arms for place, arms in dial_points(experiment).items() if scores(records[arms[1]], "last")}
    if not points or not base:
        return None
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    at = np.arange(len(points))
    for i, (name, value) in enumerate((("as trained", "its label"), ("no label", "a zero plane"))):
        found = [_teacher_scores(records[teacher], name) for teacher, _ in points.values()]
        _dots(left, at, found, f"teachers, shown {value}", i)
    level = 100 * float(np.mean(list(base.values())))
    left.axhline(level, color="0.4", linestyle="--", linewidth=1, label=f"baseline {level:.1f}")
    gained = []
    for _, student in points.values():
        own = scores(records[student], "last")
        gained.append([own[seed] - base[seed] for seed in own.keys() & base.keys()])
    _dots(right, at, gained, "students, by seed", 2)
    right.axhline(0, color="0.4", linestyle="--", linewidth=1)
    left.set(title="what the teacher scores", ylabel="mIoU %")
    right.set(title="what its student gains over the baseline", ylabel="points of mIoU")
    for axis in (left, right):
        axis.set_xticks(at, list(points))
        axis.set(xlabel="noise of the label codes in teacher training", xlim=(-0.5, len(points) - 0.5))
        axis.grid(axis="y", color="0.92")
        axis.legend(fontsize=8)
    figure.suptitle(experiment.title, fontsize=11)
    return figure


def _teacher_scores(runs: list[Run], condition: str) -> list[float]:
    probes = [probe for run in runs if (probe := read_robustness(run.folder / "robustness.json", {}))]
    return [float(np.mean(r["miou"])) for records in probes for r in records if r["name"] == condition]


def _dots(axis: plt.Axes, at: np.ndarray, values: list[list[float]], label: str, i: int) -> None:
    """Every seed, and a line through the means."""
    for x, column in zip(at, values, strict=True):
        axis.plot([x] * len(column), [100 * v for v in column], style.marker(i), color=style.color(i), alpha=0.5)
    means = [100 * float(np.mean(column)) if column else np.nan for column in values]
    axis.plot(at, means, style.line(0), color=style.color(i), label=label)
