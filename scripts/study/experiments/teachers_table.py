"""What teachers score with their label, without it, and with a wrong one."""

import json
from typing import Any

import numpy as np

from scripts.study.analysis import style
from scripts.study.analysis.record_files import Folder
from scripts.study.experiments.definition import Experiment
from scripts.study.experiments.tables import (
    Table,
    link_records,
    name_minutes,
    read_records,
    scores,
    show_minutes,
    show_scores,
)
from utils.errors import UserError


def list_teachers(experiment: Experiment, folder: Folder) -> Table:
    """List the networks that read the label: scores that are no segmentation results, and what they do without it."""
    records, rows, images = read_records(experiment, folder), [], {}
    for arm in experiment.arms.values():
        if arm.train != "teacher":
            continue
        runs = records[arm.name]
        last = scores(runs, "last")
        probes = [record for run in runs for record in read_robustness(run.folder / "robustness.json", images)]
        mious = [(r["name"], r["value"], float(np.mean(r["miou"]))) for r in probes]  # over draws
        conditions = (("as trained", ""), ("codes", "fixed"), ("no label", ""))
        found = [[miou for n, v, miou in mious if n == name and value in ("", v)] for name, value in conditions]
        # of pixels whose whole region was shown as another class, the share predicted as the shown class
        whole = [r["follows_wrong"] for r in probes if r["name"] == "wrong regions" and r["share"] == 1]
        found.append([share for share in whole if share is not None])
        cells = [f"`{arm.name}`", arm.title, str(len(last)), show_scores(last)]
        cells += [style.spread(values) if values else "-" for values in found]
        apart = [r["kl"] for r in probes if r["name"] == "as trained"]
        cells.append(f"{np.mean(apart):.4f}" if apart else "-")
        rows.append([*cells, show_minutes(runs), link_records(experiment, runs)])
    if len(images) > 1:
        raise UserError(f"{folder}: robustness of different images: {'; '.join(sorted(images))}")
    where = f" ({next(iter(images))})" if images else ""
    header = ["run", "teacher", "n", "last mIoU %, LABEL-ASSISTED", f"as trained{where}", "fixed codes", "no label"]
    header += ["follows wrong labels %", "KL between two noises"]
    return [*header, name_minutes(records), "records by seed"], rows


def read_robustness(path: Folder, images: dict[str, None]) -> list[dict[str, Any]]:
    """Return the conditions of one teacher, none where there is no such file.

    images: takes what they were measured on, as a key.
    """
    if not path.is_file():
        return []
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        (records,) = content["results"].values()
        keys = {"name", "value", "miou", "share", "follows_wrong", "kl"}
        if not all(keys <= record.keys() for record in records):
            raise ValueError("a condition lacks its values")
        images[str(content["data"])] = None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is no result of teacher_robustness.py for one teacher: {error}") from error
    return records
