"""Show what the teachers of an experiment know, beside what their students gain: a table and a picture.

It is read from knowledge.json of each teacher, which teacher_knowledge.py --save writes.
"""

import json
import math
from dataclasses import dataclass

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from scripts.study.analysis import style
from scripts.study.analysis.record_files import Folder
from scripts.study.analysis.runs import Run
from scripts.study.analysis.text import format_mean_std
from scripts.study.experiments.definition import Arm, Experiment
from scripts.study.experiments.tables import NOT_RUN, Table, get_scores_by_seed, read_records
from utils.errors import UserError


@dataclass(frozen=True)
class Knowledge:
    """Hold what teacher_knowledge.py measured of one teacher: means over labelled pixels, in nats.

    measured_on: the images and the reference networks. Numbers measured on others are not compared.
    """

    entropy: float
    negative_log_likelihood: float
    divergence: float
    measured_on: str


def read_knowledge(run: Run) -> Knowledge | None:
    """Read knowledge.json of a run. Return None where there is none.

    Raises:
        UserError: the file is not what teacher_knowledge.py writes.
    """
    path = run.folder / "knowledge.json"
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        numbers = [float(content[key]) for key in ("entropy", "negative_log_likelihood", "divergence")]
        where = f"{content['images']} images of {content['split']}, references {', '.join(content['references'])}"
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is no result of teacher_knowledge.py: {error!r}") from error
    if not all(map(math.isfinite, numbers)):
        raise UserError(f"{path} is no result of teacher_knowledge.py: a number is not finite")
    return Knowledge(*numbers, where)


def read_knowledge_by_seed(records: dict[str, list[Run]]) -> dict[str, dict[int, Knowledge]]:
    """Return what is known of each arm's runs, by seed.

    Raises:
        UserError: teachers were measured on different images or beside different references.
    """
    known = {}
    for name, runs in records.items():
        found = {run.seed: read_knowledge(run) for run in runs}
        known[name] = {seed: knowledge for seed, knowledge in found.items() if knowledge is not None}
    places = {knowledge.measured_on for by_seed in known.values() for knowledge in by_seed.values()}
    if len(places) > 1:
        raise UserError(f"knowledge.json of different measurements: {'; '.join(sorted(places))}")
    return known


def make_knowledge_table(experiment: Experiment, folder: Folder) -> Table:
    """List entropy, likelihood and divergence of the networks that were measured."""
    known = read_knowledge_by_seed(read_records(experiment, folder))
    rows = []
    for name, by_seed in known.items():
        if by_seed:
            measured = list(by_seed.values())
            columns = (
                [knowledge.entropy for knowledge in measured],
                [knowledge.negative_log_likelihood for knowledge in measured],
                [knowledge.divergence for knowledge in measured],
            )
            cells = [format_mean_std(values, scale=1, digits=3) for values in columns]
            rows.append([f"{experiment.arms[name].title} ({len(measured)})", *cells])
    header = ["network (seeds)", "entropy", "negative log-likelihood", "divergence from the references"]
    return header, rows or [[NOT_RUN, "", "", ""]]


def find_control(experiment: Experiment, student: Arm) -> str:
    """Return the arm that a student's gain is counted from.

    That is the baseline. For a student that starts from another network it is the arm that starts from the same one and
    has no teacher; "" where there is none.
    """
    start = student.origins.get("pretrained")
    if start is None:
        return experiment.baseline
    for arm in experiment.arms.values():
        if arm.role == "student" and arm.origins.get("pretrained") == start and len(arm.origins) == 1:
            return arm.name
    return ""


def draw_knowledge(experiment: Experiment, folder: Folder) -> Figure | None:
    """Draw each student's gain against the divergence of its teacher, seed by seed.

    Return None where no student with a score has a teacher that was measured.
    """
    records = read_records(experiment, folder)
    known = read_knowledge_by_seed(records)
    points = {}
    for arm in experiment.arms.values():
        found = list_points(experiment, arm, records, known)
        if found:
            points[arm.title] = found
    if not points:
        return None
    figure, axis = plt.subplots(figsize=(7.5, 4.2), layout="constrained")
    for i, (title, found) in enumerate(points.items()):
        divergences, gains = zip(*found, strict=True)
        axis.plot(
            divergences,
            gains,
            marker=style.choose_marker(i),
            color=style.choose_color(i),
            linestyle="none",
            label=title,
        )
    axis.axhline(0, color="0.4", linestyle="--", linewidth=1)
    axis.set(xlabel="divergence of the teacher's probabilities from the references', nats")
    axis.set(ylabel="points of mIoU over the control", title=experiment.title)
    axis.grid(color="0.92")
    figure.legend(loc="outside lower center", fontsize=8)
    return figure


def list_points(
    experiment: Experiment, arm: Arm, records: dict[str, list[Run]], known: dict[str, dict[int, Knowledge]]
) -> list[tuple[float, float]]:
    """Return (divergence of the teacher, gain of the student in points) for each seed of a student.

    The list is empty for an arm that has no teacher or no control, and where nothing was measured.
    """
    teacher = arm.origins.get("teacher_pretrained")
    control = find_control(experiment, arm)
    if teacher is None or not control:
        return []
    own = get_scores_by_seed(records[arm.name], "last")
    base = get_scores_by_seed(records[control], "last")
    points = []
    for seed in sorted(own.keys() & base.keys()):
        knowledge = known[teacher.run].get(experiment.shift_seed(seed, teacher.shift))
        if knowledge is not None:
            points.append((knowledge.divergence, 100 * (own[seed] - base[seed])))
    return points
