"""The tables of an experiment, from the records of its runs: what is not there says "not run"."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from scripts.analysis import style
from scripts.analysis.experiment import Experiment
from scripts.analysis.paired import Gain, align, bootstrap
from scripts.analysis.runs import Run, View, read_run
from utils.errors import UserError

SAMPLES = 10000  # of the paired bootstrap
Table = tuple[list[str], list[list[str]]]


def read_records(experiment: Experiment, folder: Path) -> dict[str, list[Run]]:
    """The runs of each arm below ``folder``, by seed; an arm without any has an empty list."""
    runs = {}
    for name in experiment.arms:
        found = [read_run(path, path.name) for path in folder.glob(f"{name}-*") if path.name[len(name) + 1 :].isdigit()]
        runs[name] = sorted(found, key=lambda run: run.seed)
    return runs


def view_of(run: Run, checkpoint: str) -> View | None:
    """Of the run's last or best checkpoint's score by eval.py."""
    return next((view for view in run.scores if view.checkpoint == checkpoint and view in run.areas), None)


def scores(runs: Sequence[Run], checkpoint: str) -> dict[int, float]:
    """mIoU by seed."""
    views = {run.seed: (run, view_of(run, checkpoint)) for run in runs}
    return {seed: run.scores[view]["miou"] for seed, (run, view) in views.items() if view}


def training_minutes(run: Run) -> float:
    """Validation and start are not counted, nor are iterations that were lost to an interruption."""
    seconds, before = 0.0, 0
    for record in run.curves.get("train", ()):
        seconds += (record["iteration"] - before) * run.config["batch_size"] / record["images_per_second"]
        before = record["iteration"]
    return seconds / 60


def paired_gain(runs: Sequence[Run], base: Sequence[Run], checkpoint: str) -> Gain | None:
    """Of the seeds that both sides have."""
    seeds = sorted(scores(runs, checkpoint).keys() & scores(base, checkpoint).keys())
    if not seeds or runs is base:
        return None
    sides = [
        {run.seed: run.areas[view_of(run, checkpoint)] for run in side if run.seed in seeds} for side in (runs, base)
    ]
    counts = align([side[seed] for side in sides for seed in seeds])
    return bootstrap(counts[: len(seeds)], counts[len(seeds) :], SAMPLES, seed=0)


def students(experiment: Experiment, folder: Path) -> Table:
    """The networks that see the image only: scores of last and best, gains of the last over the baseline."""
    header = ["run", "arm", "last mIoU %", "best mIoU %", "n", "gain", "gain by seed", "95 % interval over images, p"]
    records, rows = read_records(experiment, folder), []
    base = records[experiment.baseline]
    for arm in experiment.arms.values():
        if arm.train != "student":
            continue
        runs = records[arm.name]
        last, best = scores(runs, "last"), scores(runs, "best")
        gain = paired_gain(runs, base, "last")
        cells = [f"`{arm.name}`", arm.title, *(_spread(values) for values in (last, best)), str(len(last))]
        if gain is None:
            cells += ["-", "-", "-"]
        else:
            differences = [100 * (last[seed] - value) for seed, value in scores(base, "last").items() if seed in last]
            cells += [f"{100 * gain.difference:+.2f}", ", ".join(f"{value:+.2f}" for value in differences)]
            cells.append(f"{100 * gain.low:+.2f} .. {100 * gain.high:+.2f}, p {gain.p:.2g}")
        rows.append(cells + _footing(runs, folder))
    return [*header, "minutes", "logs"], rows


def teachers(experiment: Experiment, folder: Path) -> Table:
    """The networks that read the label: scores that are no segmentation results, and what happens to them without."""
    header = ["run", "teacher", "last mIoU %, assisted", "n", "as trained", "fixed codes", "no label"]
    header += ["follows wrong labels %"]
    records, rows, images = read_records(experiment, folder), [], set()
    for arm in experiment.arms.values():
        if arm.train != "teacher":
            continue
        runs = records[arm.name]
        last = scores(runs, "last")
        probes = [probe for run in runs if (probe := _robustness(run.folder / "robustness.json"))]
        images |= {probe["data"] for probe in probes}
        results = [next(iter(probe["results"].values())) for probe in probes]
        rows.append(
            [f"`{arm.name}`", arm.title, _spread(last), str(len(last))]
            + [
                _condition(results, name, value)
                for name, value in (("as trained", ""), ("codes", "fixed"), ("no label", ""))
            ]
            + [_followed(results)]
            + _footing(runs, folder)
        )
    if len(images) > 1:
        raise UserError(f"{folder}: robustness of different images: {'; '.join(sorted(images))}")
    return [*header, "minutes", "logs"], rows


TABLES = {"students": students, "teachers": teachers}


def _spread(values: dict[int, float]) -> str:
    return style.spread(list(values.values())) if values else "not run"


def _footing(runs: Sequence[Run], folder: Path) -> list[str]:
    """Mean training time, and links to the logs."""
    minutes = f"{np.mean([training_minutes(run) for run in runs]):.1f}" if runs else "-"
    links = (f"[{run.seed}](results/{run.folder.relative_to(folder.parent)}/metrics.jsonl)" for run in runs)
    return [minutes, " ".join(links) or "-"]


def _robustness(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def _condition(results: Sequence[list[dict[str, Any]]], name: str, value: str) -> str:
    """Mean over runs of the mean over draws."""
    found = [
        np.mean(r["miou"]) for records in results for r in records if r["name"] == name and value in ("", r["value"])
    ]
    return style.spread([float(x) for x in found]) if found else "-"


def _followed(results: Sequence[list[dict[str, Any]]]) -> str:
    """Of pixels whose whole region was shown as another class, the share predicted as the shown class."""
    shown = [r for records in results for r in records if r["name"] == "wrong regions" and r["share"] == 1]
    values = [r["follows_wrong"] for r in shown if r["follows_wrong"] is not None]
    return style.spread(values) if values else "-"
