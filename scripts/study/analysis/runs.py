"""Read run folders, on the disk or in a record file, into records."""

import io
import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from engine.metrics import ASSISTED
from scripts.study.analysis.record_files import Folder, list_files
from utils.errors import UserError
from utils.files import parse_yaml

CHECKPOINT_SETTINGS = ("pretrained", "teacher_pretrained")
EVAL_KEYS = {"miou", "pixel_accuracy", "iou", "checkpoint", "dataset", "split", "protocol"}  # tell eval.py's JSON


def _is_share(value: object) -> bool:
    """Return whether a value is a number, or None for a score that is not defined."""
    return value is None or (type(value) in (int, float) and math.isfinite(value))


def _is_score(value: object) -> bool:
    return value is not None and _is_share(value)


def _is_text(value: object) -> bool:
    return isinstance(value, str)


# for each key that is read from eval.py's JSON, whether its value is of the right kind
KINDS: dict[str, Callable[[Any], bool]] = {
    "miou": _is_share,
    "pixel_accuracy": _is_share,
    "checkpoint": _is_text,
    "dataset": _is_text,
    "split": _is_text,
    "protocol": _is_text,
    "iou": lambda value: isinstance(value, dict) and all(map(_is_share, value.values())),
    "label_assisted": lambda value: isinstance(value, bool),
    "images": lambda value: type(value) is int,
    "iteration": lambda value: value is None or type(value) is int,
    "model": lambda value: isinstance(value, dict) and {"arch", "backbone"} <= value.keys(),
}


def read_score(content: Any, path: Folder, keys: Iterable[str]) -> dict[str, Any]:
    """Check that the ``keys`` of a JSON file are what eval.py writes. Return its content.

    path: the file, for the message.

    Raises:
        UserError: a key is missing, or its value is of another kind.
    """
    for key in sorted(keys):
        if not isinstance(content, dict) or key not in content:
            raise UserError(f"{path} is no result of eval.py, or of another version: it has no {key}")
        if not KINDS[key](content[key]):
            raise UserError(f"{path} is no result of eval.py: {key} is {str(content[key])[:60]}")
    return content


class View(NamedTuple):
    """Identify what a score was measured on. Scores of different views are not compared."""

    checkpoint: str  # "last", "best", or another file's stem
    dataset: str
    split: str
    protocol: str
    # these two tell folders of images apart, whose data set is always called "folder"
    classes: tuple[str, ...]
    images: int | None  # None: the score does not say it

    def describe_data(self) -> str:
        """Name the data set and the split. For a folder of images, add the number of images and the classes."""
        text = f"{self.dataset} {self.split}"
        if self.dataset != "folder":
            return text
        classes = ", ".join(self.classes)
        return f"{text} ({classes})" if self.images is None else f"{text} ({self.images} images: {classes})"


@dataclass(frozen=True)
class Run:
    """What one training left in its folder: settings, training log, and the scores of eval.py. It is read, never run.

    scores: eval.py's JSON by view. areas: by view, image name -> int64 ``[3, K]`` (pixels of intersection, label and
    prediction). curves: records of metrics.jsonl by event. notes: what is missing or does not fit, for the reader.
    """

    folder: Folder
    name: str
    config: dict[str, Any]
    curves: dict[str, list[dict[str, Any]]]
    scores: dict[View, dict[str, Any]]
    areas: dict[View, dict[str, np.ndarray]]
    notes: list[str]

    @property
    def seed(self) -> int:
        return self.config.get("seed", 0)

    def is_assisted(self, view: View) -> bool:
        """Return whether the score is that of a network that reads the label."""
        return bool(self.scores.get(view, {}).get("label_assisted"))


def list_scored_runs(runs: Sequence[Run], view: View) -> list[Run]:
    """List the runs that have an mIoU in a view. eval.py gives none where no pixel is labelled."""
    scored = []
    for run in runs:
        if view in run.scores and run.scores[view]["miou"] is not None:
            scored.append(run)
    return scored


def read_config(path: Folder) -> dict[str, Any]:
    """Return the settings in a run's config.yaml.

    Raises:
        UserError: the file is damaged.
    """
    config = parse_yaml(path.read_bytes(), str(path))
    if not isinstance(config, dict):
        raise UserError(f"{path} holds no settings")
    return config


def read_run(folder: Folder, name: str) -> Run:
    """Read a run folder.

    Raises:
        UserError: the folder is no run, or a file in it is damaged.
    """
    path = folder / "config.yaml"
    if not path.is_file():
        raise UserError(f"{folder} is no run folder: it has no config.yaml")
    config = read_config(path)
    notes: list[str] = []
    curves = _read_curves(folder / "metrics.jsonl")
    scores = _read_scores(folder, _find_checkpoint_iterations(curves), notes)
    if not curves.get("train"):
        notes.append("no metrics.jsonl with training records: not in the curves")
    if not scores:
        scores = _take_logged_scores(curves, config)
        notes.append("no JSON of eval.py: scores are those of the training log" if scores else "no scores at all")
    return Run(folder, name, config, curves, scores, _read_areas(folder, scores, notes), notes)


def _read_curves(path: Folder) -> dict[str, list[dict[str, Any]]]:
    """Read the records of a training log by event, sorted by iteration. A damaged or cut-off line is left out."""
    if not path.is_file():
        return {}
    curves: dict[str, list[dict[str, Any]]] = {}
    for line in path.read_bytes().splitlines():
        try:
            record = json.loads(line)
            is_whole = isinstance(record["event"], str) and isinstance(record["iteration"], int)
        except (ValueError, LookupError, TypeError):
            continue
        if is_whole:
            curves.setdefault(record["event"], []).append(record)
    for records in curves.values():
        records.sort(key=lambda record: record["iteration"])
    return curves


def _find_checkpoint_iterations(curves: dict[str, list[dict[str, Any]]]) -> dict[str, int]:
    """Return the iteration that each checkpoint, "last" and "best", has at least, as the training log says."""
    logged = [record["iteration"] for record in (*curves.get("train", ()), *curves.get("val", ()))]
    iterations = {"last": max(logged, default=0)}
    validations = [record for record in curves.get("val", ()) if _is_score(record.get("miou"))]
    if validations:
        best = max(validations, key=lambda record: record["miou"])
        iterations["best"] = best["iteration"]
    return iterations


def _read_scores(folder: Folder, iterations: dict[str, int], notes: list[str]) -> dict[View, dict[str, Any]]:
    """Read every JSON file of eval.py in the folder.

    Scores of checkpoints that the training has replaced since are left out, and of two files of one view the first.

    iterations: the iteration that a checkpoint has by now. notes: takes a line for each score that is left out.
    """
    scores: dict[View, dict[str, Any]] = {}
    files: dict[View, str] = {}
    for path in list_files(folder, "*.json"):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise UserError(f"{path} is damaged: {error}") from error
        if not isinstance(content, dict) or not content.keys() >= EVAL_KEYS:
            continue  # another script's
        # a teacher's mark is told by "label_assisted"; without it the score stands next to the students'
        read_score(content, path, EVAL_KEYS | {"label_assisted"})
        stem = Path(content["checkpoint"]).stem
        iteration = content.get("iteration")
        if type(iteration) is int and iteration < iterations.get(stem, 0):
            now = f"it has {iterations[stem]} by now: score it again"
            notes.append(f"the score of {stem}.pth is of iteration {iteration}, {now}")
            continue
        protocol = ", ".join(part for part in content["protocol"].split(", ") if part != ASSISTED)
        view = View(stem, content["dataset"], content["split"], protocol, tuple(content["iou"]), content.get("images"))
        if view in scores and format_score(scores[view]) != format_score(content):
            both = f"{files[view]} ({format_score(scores[view])}) and {path.name} ({format_score(content)})"
            notes.append(f"{both} are both of {stem}.pth with the same flags: {files[view]} is left out")
        scores[view] = content
        files[view] = path.name
    return scores


def format_score(score: dict[str, Any]) -> str:
    """Write the mIoU of a result of eval.py as it is printed."""
    return "no mIoU" if score["miou"] is None else f"{100 * score['miou']:.2f} %"


def _take_logged_scores(curves: dict[str, list[dict[str, Any]]], config: dict[str, Any]) -> dict[View, dict[str, Any]]:
    """Take mIoU, accuracy and IoU of the last and the best validation from the training log, if it has any."""
    rows = [record for record in curves.get("val", ()) if _is_score(record.get("miou"))]
    if not rows:
        return {}
    best = max(rows, key=lambda row: row["miou"])
    iou_records = {record["iteration"]: record for record in curves.get("val_iou", ())}
    assisted = any(record.get("card", {}).get("label_noise") for record in curves.get("start", ()))
    dataset = str(config.get("dataset", ""))
    scores = {}
    for stem, row in (("last", rows[-1]), ("best", best)):
        iou = {}
        for key, value in iou_records.get(row["iteration"], {}).items():
            if key.startswith("iou/"):
                iou[key.removeprefix("iou/")] = value
        view = View(stem, dataset, "val", "validation during training", tuple(iou), images=None)
        scores[view] = {
            "miou": row["miou"],
            "pixel_accuracy": row.get("pixel_accuracy"),
            "iou": iou,
            "label_assisted": assisted,
        }
    return scores


def _read_areas(
    folder: Folder, scores: dict[View, dict[str, Any]], notes: list[str]
) -> dict[View, dict[str, np.ndarray]]:
    """Read the pixel counts by image. Each file belongs to the views whose mIoU its counts give."""
    found: dict[View, dict[str, np.ndarray]] = {}
    files = list_files(folder, "per_image*.npz")
    if not files:
        notes.append("no per_image.npz (eval.py --per-image): no paired test")
    for path in files:
        try:
            with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as content:
                counts = np.stack([content[key] for key in ("intersection", "label", "prediction")], 1)
                names = content["names"].tolist()
        except Exception as error:  # of broken bytes numpy raises nearly anything
            raise UserError(f"{path} is no file of eval.py --per-image: {error}") from error
        if len(set(names)) < len(names):  # the same file name in several folders
            names = [f"{i} {name}" for i, name in enumerate(names)]
        areas = dict(zip(names, counts.astype(np.int64), strict=True))
        value = compute_miou(counts.sum(0))
        matching = []
        for view, score in scores.items():
            if score["miou"] is not None and abs(score["miou"] - value) < 1e-9:
                matching.append(view)
        if not matching:
            notes.append(f"{path.name} (mIoU {100 * value:.2f} %) is of none of the scores: left out")
        found |= dict.fromkeys(matching, areas)
    return found


def compute_miou(areas: np.ndarray) -> np.ndarray:
    """Compute the mIoU ``[...]`` from pixel counts ``[..., 3, K]``.

    A class that occurs in neither labels nor predictions is left out of the mean.
    """
    intersection = areas[..., 0, :].astype(np.float64)
    union = areas[..., 1, :] + areas[..., 2, :] - intersection
    iou = np.divide(intersection, union, out=np.zeros_like(intersection), where=union > 0)
    return iou.sum(-1) / np.maximum((union > 0).sum(-1), 1)
