"""List what teachers score with their label, without it, and with a wrong one."""

import json
import re
from typing import Any

import numpy as np

from engine.metrics import ASSISTED
from scripts.study.analysis.record_files import Folder
from scripts.study.analysis.text import format_mean_std
from scripts.study.experiments.definition import Experiment
from scripts.study.experiments.tables import (
    MIOU,
    NOT_RUN,
    Table,
    format_scores,
    get_scores_by_seed,
    link_records,
    read_records,
)
from utils.errors import UserError


def make_teachers_table(experiment: Experiment, folder: Folder) -> Table:
    """List the networks that read the label: what they score with it and without it, and whether they follow it.

    Their scores are no segmentation results.
    """
    records = read_records(experiment, folder)
    rows = []
    images = {}
    for arm in experiment.arms.values():
        if arm.role != "teacher":
            continue
        runs = records[arm.name]
        probes = [record for run in runs for record in read_robustness(run.folder / "robustness.json", images)]
        # per teacher the mean over draws of its label noise
        shown = [float(np.mean(record["miou"])) for record in probes if record["name"] == "as trained"]
        without = [float(np.mean(record["miou"])) for record in probes if record["name"] == "no label"]
        # of pixels whose whole region was shown as another class, the share predicted as the shown class
        whole = [r["follows_wrong"] for r in probes if r["name"] == "wrong regions" and r["share"] == 1]
        followed = [share for share in whole if share is not None]
        cells = [format_mean_std(values) if values else NOT_RUN for values in (shown, without, followed)]
        seen = format_scores(get_scores_by_seed(runs, "last"))
        rows.append([f"{arm.title}: {link_records(experiment, arm.name, runs)}", seen, *cells])
    if len(images) > 1:
        raise UserError(f"{folder}: robustness of different images: {'; '.join(sorted(images))}")
    part = "some images"
    if images:
        data = next(iter(images))
        count = re.search(r"\d+ of \d+ images", data)
        part = count[0] if count else data
    header = ["teacher", f"{ASSISTED} last {MIOU}", f"{ASSISTED} mIoU %, {part}"]
    return [*header, "mIoU % shown zeros, same images", "follows wrong labels, % of pixels"], rows


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
