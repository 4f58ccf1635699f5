"""What scripts/study/compare.py says in words and tables, and its pictures."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from datasets import build_dataset
from scripts.study.analysis import charts, gained_lost, robustness, style
from scripts.study.analysis.charts import Groups
from scripts.study.analysis.runs import View
from utils.errors import UserError


def table(rows: Sequence[dict[str, Any]]) -> str:
    header = ["group", "checkpoint", "n", "mIoU %", "pixel accuracy %", "gain", "by seed", "p (seeds)"]
    header += ["95 % interval (images)", "p (images)"]
    lines = []
    for r in rows:
        name = r["group"] + (" (LABEL-ASSISTED)" if r["label_assisted"] else "")
        accuracy = style.spread(r["pixel_accuracy"]) if r["pixel_accuracy"] else "-"
        cells = [name, r["view"]["checkpoint"], str(len(r["miou"])), style.spread(r["miou"]), accuracy]
        cells.append(f"{100 * r['gain']:+.2f}" if "gain" in r else "-")
        paired, p = list(r.get("gain_by_seed", {}).values()), r.get("p_over_seeds")
        cells += [f"{style.spread(paired, '+')} (n {len(paired)})" if paired else "-", "-" if p is None else f"{p:.2g}"]
        if test := r.get("test"):
            cells.append(f"{100 * test['low']:+.2f} .. {100 * test['high']:+.2f} (n {test['images']})")
            cells.append(f"{test['p']:.2g}")
        lines.append(cells + ["-"] * (len(header) - len(cells)))
    return style.markdown(header, lines)


def report(result: dict[str, Any], views: Sequence[View], samples: int) -> str:
    """compare.md."""
    parts, baseline = ["# Comparison of runs\n"], result["baseline"]
    for view in views:
        text = table([row for row in result["rows"] if row["view"] == view._asdict()])
        parts.append(f"## {view.dataset} {view.split}, {view.checkpoint} checkpoint, {view.protocol}\n\n{text}")
    parts.append("mIoU: mean ± standard deviation over n runs, in percent.")
    if baseline:
        parts.append(
            f"Gain: mean mIoU minus that of {baseline}, in points; by seed: the same of the seeds that both have, "
            "mean ± standard deviation, and p of a paired t-test: what another seed could change. Interval and p over "
            f"images: paired bootstrap ({samples} resamples, two-sided): what another choice of images could."
        )
    if result["gained_lost"]:
        kinds, cells = list(gained_lost.CHANGES)[:4], []
        for name, found in result["gained_lost"].items():
            cells.append([name, f"{found['run']} / {found['baseline']}", *(style.percent(found[k]) for k in kinds)])
        header = ["group", "runs", *(f"{kind} %" for kind in kinds)]
        parts.append("## Pixels gained and lost\n\n" + style.markdown(header, cells))
    for name, pairs in result["top_confusions"].items():
        lines = [f"- {p['label']} taken for {p['prediction']}: {style.percent(p['share'], 1)} %" for p in pairs]
        parts.append(f"## Largest confusions of {name} (share of the label's pixels)\n\n" + "\n".join(lines))
    if result["notes"]:
        parts.append("## Left out\n\n" + "\n".join(f"- {note}" for note in result["notes"]))
    return "\n\n".join(part.rstrip("\n") for part in parts) + "\n"


def change_pictures(
    groups: Groups, view: View, baseline: str, maps: int, output: Path, notes: list[str]
) -> dict[str, Any]:
    """Gained/lost maps of every group against the baseline: shares by group; ``notes`` says who has none."""
    shares = {}
    for name, runs in groups.items():
        both = [(run, base) for run in runs for base in groups[baseline]]
        pairs = [pair for pair in both if all((run.folder / "pred").is_dir() for run in pair)]
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
    return shares


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
