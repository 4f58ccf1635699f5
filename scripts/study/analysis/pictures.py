"""The pictures of a comparison."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from datasets import build_dataset
from scripts.study.analysis import charts, gained_lost, robustness, style
from scripts.study.analysis.charts import Groups
from scripts.study.analysis.runs import View
from utils.errors import UserError


def change_pictures(groups: Groups, view: View, baseline: str, maps: int, output: Path) -> tuple[dict[str, Any], list]:
    """Gained/lost maps of every group against the baseline: shares by group, and notes on those that have none."""
    shares, notes = {}, []
    for name, runs in groups.items():
        pairs = [
            (run, base)
            for run in runs
            for base in groups[baseline]
            if run is not base and all((r.folder / "pred").is_dir() for r in (run, base))
        ]
        if name == baseline:
            continue
        if not pairs:
            notes.append(f"{name}: no pred/ folder on one side: no gained/lost map")
            continue
        run, base = next((pair for pair in pairs if pair[0].seed == pair[1].seed), pairs[0])
        try:
            dataset = build_dataset(view.dataset, run.config.get("data", ""), view.split)
            changes = gained_lost.measure(dataset, run.folder / "pred", base.folder / "pred")
        except UserError as error:
            notes.append(f"{name}: no gained/lost map: {error}")
            continue
        for r, right in zip((run, base), changes.accuracies(), strict=True):
            scored = r.scores.get(view, {}).get("pixel_accuracy")
            if scored is not None and abs(scored - right) > 1e-9:
                notes.append(f"{r.name}: pred/ (accuracy {100 * right:.2f} %) is of another evaluation than the scores")
        figure = gained_lost.draw(changes, maps, run.name, base.name)
        style.save_figure(figure, output / f"gained_lost-{file_name(name)}.png")
        shares[name] = {"run": run.name, "baseline": base.name, "images": len(dataset), **changes.shares()}
    return shares, notes


def confusions(groups: Groups, view: View, output: Path) -> dict[str, list[dict[str, Any]]]:
    """A heat map for each group, summed over its seeds, and its largest confusions by name."""
    named = {}
    for name, runs in groups.items():
        scores = [run.scores[view] for run in runs if "confusion" in run.scores.get(view, {})]
        if not scores:
            continue
        total = np.sum([score["confusion"] for score in scores], 0)
        names = list(scores[0]["iou"])
        title = f"{name}: {view.dataset} {view.split}, {view.checkpoint} checkpoint"
        style.save_figure(charts.confusion_map(total, names, title), output / f"confusion-{file_name(name)}.png")
        named[name] = charts.top_confusions(total, names)
    return named


def robustness_pictures(groups: Groups, output: Path) -> list[Path]:
    """Of every run whose folder holds what teacher_robustness.py wrote."""
    pictures = []
    for run in (run for runs in groups.values() for run in runs):
        path = run.folder / "robustness.json"
        if path.is_file():
            try:
                content = json.loads(path.read_text(encoding="utf-8"))
                figure = robustness.plot(content["results"], f"{run.name}: {content['data']}")
            except (ValueError, KeyError, TypeError, IndexError) as error:
                raise UserError(f"{path} is not what teacher_robustness.py writes: {error!r}") from error
            pictures.append(output / f"robustness-{file_name(run.name)}.png")
            style.save_figure(figure, pictures[-1])
    return pictures


def file_name(name: str) -> str:
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in name)
