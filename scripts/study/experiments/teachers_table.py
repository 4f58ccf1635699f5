"""List what teachers score with their label, without it, and with a wrong one."""

import json
import re
from collections.abc import Mapping, Sequence
from itertools import chain
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
    # data set -> what its teachers were measured on: the same images, or they cannot be compared
    images: dict[str, dict[str, None]] = {}
    for arm in experiment.arms.values():
        if arm.role != "teacher":
            continue
        runs = records[arm.name]
        conditions = []
        for run in runs:
            conditions += read_robustness(run.folder / "robustness.json", images.setdefault(arm.dataset, {}))
        columns = (
            list_scores(conditions, "as trained"),
            list_scores(conditions, "no label"),
            list_followed_shares(conditions),
        )
        cells = [format_mean_std(values) if values else NOT_RUN for values in columns]
        seen = format_scores(get_scores_by_seed(runs, "last"))
        rows.append([f"{arm.title}: {link_records(experiment, arm.name, runs)}", seen, *cells])
    for measured in images.values():
        if len(measured) > 1:
            raise UserError(f"{folder}: robustness of different images: {'; '.join(sorted(measured))}")
    part = "some images"
    all_measured = list(chain.from_iterable(images.values()))
    if len(all_measured) == 1:
        data = all_measured[0]
        count = re.search(r"\d+ of \d+ images", data)
        part = count[0] if count else data
    header = ["teacher", f"{ASSISTED} last {MIOU}", f"{ASSISTED} mIoU %, {part}"]
    return [*header, "mIoU % shown zeros, same images", "follows wrong labels, % of pixels"], rows


def list_scores(conditions: Sequence[Mapping[str, Any]], name: str) -> list[float]:
    """Return the scores under the conditions of this name, each the mean over the draws of its label noise."""
    return [float(np.mean(record["miou"])) for record in conditions if record["name"] == name]


def list_followed_shares(conditions: Sequence[Mapping[str, Any]]) -> list[float]:
    """Return how far each teacher follows a label in which every region has a wrong class.

    That is the share of the pixels that it predicts as the class they are shown as.
    """
    shares = []
    for record in conditions:
        if record["name"] == "wrong regions" and record["share"] == 1 and record["follows_wrong"] is not None:
            shares.append(record["follows_wrong"])
    return shares


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
