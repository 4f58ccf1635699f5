"""Run folders as records, and groups of runs that differ in nothing but the seed."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml

from utils.errors import UserError

# settings that do not make two runs different experiments: the seed, and what changes nothing that is computed
SAME_EXPERIMENT = {
    "seed", "recipe", "save_dir", "resume", "overwrite", "workers", "cache_gb", "device", "log_iter", "skip_val",
    "val_per_iters", "save_per_iters",
}  # fmt: skip
CHECKPOINT_SETTINGS = ("pretrained", "teacher_pretrained")


class View(NamedTuple):
    """What a score is of: scores of different views are not compared."""

    checkpoint: str  # "last", "best", or another file's stem
    dataset: str
    split: str
    protocol: str


@dataclass(frozen=True)
class Run:
    """A folder that train_teacher.py or train_student.py wrote, with the scores that eval.py left in it.

    scores: eval.py's JSON by view. areas: by view, image name -> int64 ``[3, K]`` (pixels of intersection, label and
    prediction). curves: records of metrics.jsonl by event. notes: what is missing or does not fit, for the reader.
    """

    folder: Path
    name: str
    config: dict[str, Any]
    curves: dict[str, list[dict[str, Any]]]
    scores: dict[View, dict[str, Any]]
    areas: dict[View, dict[str, np.ndarray]]
    notes: list[str]

    @property
    def seed(self) -> int:
        return self.config.get("seed", 0)

    def assisted(self, view: View) -> bool:
        """Whether the score is that of a network that reads the label."""
        return bool(self.scores.get(view, {}).get("label_assisted"))


def read_run(folder: Path, name: str) -> Run:
    """Raises UserError when the folder is no run, or a file in it is damaged."""
    path = folder / "config.yaml"
    if not path.is_file():
        raise UserError(f"{folder} is no run folder: it has no config.yaml")
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is no plain yaml: {' '.join(str(error).split())}") from error
    if not isinstance(config, dict):
        raise UserError(f"{path} holds no settings")
    notes: list[str] = []
    curves = _curves(folder / "metrics.jsonl")
    scores = _scores(folder)
    if not curves.get("train"):
        notes.append("no metrics.jsonl with training records: not in the curves")
    if not scores:
        scores = _logged_scores(curves, config)
        notes.append("no JSON of eval.py: scores are those of the training log" if scores else "no scores at all")
    return Run(folder, name, config, curves, scores, _areas(folder, scores, notes), notes)


def _curves(path: Path) -> dict[str, list[dict[str, Any]]]:
    """Records by event, sorted by iteration; a last line that a kill cut off is left out."""
    curves: dict[str, list[dict[str, Any]]] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        curves.setdefault(record["event"], []).append(record)
    return {event: sorted(records, key=lambda r: r["iteration"]) for event, records in curves.items()}


def _scores(folder: Path) -> dict[View, dict[str, Any]]:
    """Every JSON file of eval.py in the folder."""
    scores = {}
    for path in sorted(folder.glob("*.json")):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise UserError(f"{path} is damaged: {error}") from error
        if isinstance(content, dict) and {"miou", "iou", "checkpoint", "protocol"} <= content.keys():
            # a teacher's mark is told by "label_assisted"; without it the score stands next to the students'
            protocol = ", ".join(part for part in content["protocol"].split(", ") if part != "LABEL-ASSISTED")
            stem = Path(content["checkpoint"]).stem
            scores[View(stem, content["dataset"], content["split"], protocol)] = content
    return scores


def _logged_scores(curves: dict[str, list[dict[str, Any]]], config: dict[str, Any]) -> dict[View, dict[str, Any]]:
    """The last and the best validation of the training log, as far as they go: mIoU, accuracy and IoU."""
    iou = {record["iteration"]: record for record in curves.get("val_iou", ())}
    rows = [record for record in curves.get("val", ()) if record.get("miou") is not None]
    assisted = any(record.get("card", {}).get("label_noise") for record in curves.get("start", ()))
    scores = {}
    for stem, row in (("last", rows[-1]), ("best", max(rows, key=lambda r: r["miou"]))) if rows else ():
        classes = {k.removeprefix("iou/"): v for k, v in iou.get(row["iteration"], {}).items() if k.startswith("iou/")}
        view = View(stem, str(config.get("dataset", "")), "val", "validation during training")
        scores[view] = {"miou": row["miou"], "pixel_accuracy": row.get("pixel_accuracy"), "iou": classes}
        scores[view]["label_assisted"] = assisted
    return scores


def _areas(folder: Path, scores: dict[View, dict[str, Any]], notes: list[str]) -> dict[View, dict[str, np.ndarray]]:
    """Per-image pixel counts, each file under the views whose mIoU it reproduces."""
    found: dict[View, dict[str, np.ndarray]] = {}
    files = sorted(folder.glob("per_image*.npz"))
    if not files:
        notes.append("no per_image.npz (eval.py --per-image): no paired test")
    for path in files:
        try:
            with np.load(path, allow_pickle=False) as content:
                counts = np.stack([content[key] for key in ("intersection", "label", "prediction")], 1)
                names = content["names"].tolist()
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"{path} is no file of eval.py --per-image: {error}") from error
        if len(set(names)) < len(names):  # the same file name in several folders
            names = [f"{i} {name}" for i, name in enumerate(names)]
        areas = dict(zip(names, counts.astype(np.int64), strict=True))
        value = miou(counts.sum(0))
        matching = [view for view, score in scores.items() if score["miou"] and abs(score["miou"] - value) < 1e-9]
        if not matching:
            notes.append(f"{path.name} (mIoU {100 * value:.2f} %) is of none of the scores: left out")
        found |= dict.fromkeys(matching, areas)
    return found


def miou(areas: np.ndarray) -> np.ndarray:
    """Pixel counts ``[..., 3, K]`` -> mIoU ``[...]``; a class in neither labels nor predictions is left out."""
    intersection = areas[..., 0, :].astype(np.float64)
    union = areas[..., 1, :] + areas[..., 2, :] - intersection
    iou = np.divide(intersection, union, out=np.zeros_like(intersection), where=union > 0)
    return iou.sum(-1) / np.maximum((union > 0).sum(-1), 1)


def read_groups(folders: Sequence[str], named: Sequence[str]) -> dict[str, list[Run]]:
    """Groups by name: those written out as ``name=RUN,RUN``, then the other folders by their settings.

    Raises:
        UserError: no runs, a run given twice, or a group that is not ``name=RUN,RUN``.
    """
    explicit: dict[str, list[Path]] = {}
    for text in named:
        name, equals, members = text.partition("=")
        if not (name and equals and all(members.split(","))) or name in explicit:
            raise UserError(f"--group {text}: write name=RUN,RUN, each name once")
        explicit[name] = [Path(member).expanduser() for member in members.split(",")]
    loose = [Path(folder).expanduser() for folder in folders]
    every = [path for paths in explicit.values() for path in paths] + loose
    if not every:
        raise UserError("no runs given: compare.py RUN.. or --group name=RUN,RUN")
    resolved = [path.resolve() for path in every]
    twice = [str(path) for path, full in zip(every, resolved, strict=True) if resolved.count(full) > 1]
    if twice:
        raise UserError(f"{twice[0]} is given twice")
    bases = [path.name for path in resolved]
    names = [full.name if bases.count(full.name) == 1 else f"{full.parent.name}/{full.name}" for full in resolved]
    runs = {path: read_run(path, name) for path, name in zip(every, names, strict=True)}
    groups = {name: [runs[path] for path in paths] for name, paths in explicit.items()}
    alike: dict[str, list[Run]] = {}
    for path in loose:
        settings = experiment(runs[path].config, path.resolve().parent)
        alike.setdefault(json.dumps(settings, sort_keys=True), []).append(runs[path])
    for members in alike.values():
        name = _common_name(members)
        groups[name if name not in groups else members[0].name] = members
    for members in groups.values():
        for run in members:
            if sum(run.seed == other.seed for other in members) > 1:
                run.notes.append(f"shares seed {run.seed} with another run of its group: they are not independent")
    return groups


def experiment(config: dict[str, Any], beside: Path | None = None) -> dict[str, Any]:
    """The settings that tell experiments apart. A checkpoint counts by the experiment it comes from, where its run
    folder is at hand, or one of that name in ``beside``, so that students of teachers that differ in the seed alone
    belong together.
    """
    settings = {key: value for key, value in config.items() if key not in SAME_EXPERIMENT}
    for key in CHECKPOINT_SETTINGS:
        origin = Path(settings.get(key) or "").expanduser()
        places = (origin.parent, beside / origin.parent.name) if beside else (origin.parent,)
        source = next((place / "config.yaml" for place in places if (place / "config.yaml").is_file()), None)
        if source is not None and origin.name:
            content = yaml.safe_load(source.read_text(encoding="utf-8"))
            settings[key] = [origin.name, experiment(content, source.parent.parent)]
    return settings


def _common_name(runs: Sequence[Run]) -> str:
    """What the names of seeds have in common: student-0, student-1 -> student."""
    if len(runs) == 1:
        return runs[0].name
    alike = takewhile(lambda letters: len(set(letters)) == 1, zip(*(run.name for run in runs), strict=False))
    prefix = "".join(letters[0] for letters in alike).rstrip("0123456789")
    return prefix.rstrip("-_. ").removesuffix("seed").rstrip("-_. ") or runs[0].name
