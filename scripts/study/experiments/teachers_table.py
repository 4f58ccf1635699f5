"""What teachers score with their label, without it, and with a wrong one."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from scripts.study.analysis import style
from scripts.study.experiments.definition import Experiment
from scripts.study.experiments.tables import Table, logs, minutes, read_records, scores, shown, time_heading
from utils.errors import UserError


def teachers(experiment: Experiment, folder: Path) -> Table:
    """The networks that read the label: scores that are no segmentation results, and what they do without it."""
    records, rows, images = read_records(experiment, folder), [], {}
    for arm in experiment.arms.values():
        if arm.train != "teacher":
            continue
        runs = records[arm.name]
        last, probes = scores(runs, "last"), []
        for run in runs:
            if probe := read_robustness(run.folder / "robustness.json", images):
                probes.append(probe)
        conditions = [_condition(probes, *key) for key in (("as trained", ""), ("codes", "fixed"), ("no label", ""))]
        cells = [f"`{arm.name}`", arm.title, str(len(last)), shown(last), *conditions, _followed(probes)]
        rows.append([*cells, minutes(runs), logs(runs, folder)])
    if len(images) > 1:
        raise UserError(f"{folder}: robustness of different images: {'; '.join(sorted(images))}")
    where = f" ({next(iter(images))})" if images else ""
    header = ["run", "teacher", "n", "last mIoU %, LABEL-ASSISTED", f"as trained{where}", "fixed codes", "no label"]
    return [*header, "follows wrong labels %", time_heading(records), "logs by seed"], rows


def read_robustness(path: Path, images: dict[str, None]) -> list[dict[str, Any]] | None:
    """The conditions of one teacher; ``images`` collects what they were measured on."""
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        (records,) = content["results"].values()
        keys = {"name", "value", "miou", "share", "follows_wrong"}
        if not all(keys <= record.keys() for record in records):
            raise ValueError("a condition lacks its values")
        images[str(content["data"])] = None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is no result of teacher_robustness.py for one teacher: {error}") from error
    return records


def _condition(probes: Sequence[list[dict[str, Any]]], name: str, value: str) -> str:
    """Over runs, of the mean over draws."""
    found = [
        np.mean(r["miou"]) for records in probes for r in records if r["name"] == name and value in ("", r["value"])
    ]
    return style.spread([float(x) for x in found]) if found else "-"


def _followed(probes: Sequence[list[dict[str, Any]]]) -> str:
    """Of pixels whose whole region was shown as another class, the share predicted as the shown class."""
    shown = [
        r["follows_wrong"] for records in probes for r in records if r["name"] == "wrong regions" and r["share"] == 1
    ]
    values = [value for value in shown if value is not None]
    return style.spread(values) if values else "-"
