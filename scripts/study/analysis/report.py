"""Write the words and tables of scripts/study/compare.py, and draw its pictures."""

import json
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np

from datasets import build_dataset
from engine.metrics import ASSISTED
from scripts.study.analysis import charts, gained_lost, robustness, style
from scripts.study.analysis.charts import Groups
from scripts.study.analysis.runs import Run, View, list_scored_runs
from scripts.study.analysis.text import format_markdown_table, format_mean_std, format_percent
from utils.errors import UserError

CONFUSIONS_SHOWN = 3  # of a group


def make_table(rows: Sequence[dict[str, Any]]) -> str:
    """Return the table of one view in markdown: a row a group of runs."""
    lines = []
    for row in rows:
        name = row["group"]
        if row["label_assisted"]:
            name += f" ({ASSISTED})"
        seeds = len(row["miou"])
        p = row.get("p_over_seeds")
        score = format_mean_std(row["miou"])
        lines.append([name, str(seeds), score, describe_gain(row), "-" if p is None else f"{p:.2g}"])
    return format_markdown_table(["group", "seeds", "mIoU %", "gain", "p over seeds"], lines)


def describe_gain(row: dict[str, Any]) -> str:
    """Return a group's gain in points: seed by seed where seeds are shared, else the difference of the means."""
    if "gain" not in row:
        return "-"
    paired = list(row["gain_by_seed"].values())
    if not paired:
        return f"{100 * row['gain']:+.2f} (no seed in common)"
    text = format_mean_std(paired, "+")
    if len(paired) != len(row["miou"]):
        text += f" (seeds in common: {len(paired)})"
    return text


def make_report(result: dict[str, Any], views: Sequence[View], samples: int) -> str:
    """Return the content of compare.md: a table a view, changes, confusions, and what was left out."""
    parts = ["# Comparison of runs\n"]
    baseline = result["baseline"]
    for view in views:
        text = make_table([row for row in result["rows"] if row["view"] == view._asdict()])
        parts.append(f"## {view.describe_data()}, {view.checkpoint} checkpoint, {view.protocol}\n\n{text}")
    parts.append("mIoU: mean ± standard deviation over the seeds, in percent.")
    if baseline:
        parts.append(
            f"Gain: mIoU minus that of {baseline}, in points, mean ± standard deviation over the seeds that both have. "
            "p: two-sided paired t-test over these seeds; a small p says that the choice of the seed alone would "
            "rarely make such a gain. compare.json also has an interval over images "
            f"(paired bootstrap, {samples} resamples), which says nothing about other seeds."
        )
    if result["gained_lost"]:
        kinds = list(gained_lost.CHANGES)[: gained_lost.LABELLED]
        cells = []
        for name, found in result["gained_lost"].items():
            cells.append([name, *(format_percent(found[kind]) for kind in kinds)])
        header = ["group", *(f"{kind} %" for kind in kinds)]
        parts.append("## Pixels gained and lost\n\n" + format_markdown_table(header, cells))
    if result["top_confusions"]:
        cells = [[name, describe_confusions(pairs)] for name, pairs in result["top_confusions"].items()]
        table = format_markdown_table(["group", "largest, in % of the label's pixels"], cells)
        parts.append(f"## Confusions\n\n{table}")
    if result["notes"]:
        parts.append("## Left out\n\n" + "\n".join(f"- {note}" for note in result["notes"]))
    return "\n\n".join(part.rstrip("\n") for part in parts) + "\n"


def describe_confusions(pairs: Sequence[dict[str, Any]]) -> str:
    """Return the largest confusions of a group in words. pairs: of ``charts.list_top_confusions``."""
    shown = pairs[:CONFUSIONS_SHOWN]
    return "; ".join(f"{p['label']} taken for {p['prediction']} {format_percent(p['share'], 1)}" for p in shown)


def describe_pictures(result: dict[str, Any], groups: Groups, view: View) -> dict[str, str]:
    """Return a caption for each picture of the page that says what is to be seen, by the file's name."""
    captions = {
        "curves.png": "Validation mIoU and the terms of the training loss. A line is the mean over the seeds of a "
        "group, the band their range; training terms are smoothed.",
        "per_class.png": describe_classes(result, groups, view),
    }
    for name, found in result["gained_lost"].items():
        captions[f"gained_lost-{make_file_name(name)}.png"] = (
            f"{name} is right where {result['baseline']} is wrong in {format_percent(found['gained'])} % of the pixels "
            f"(blue), and wrong where it is right in {format_percent(found['lost'])} % (vermilion). "
            f"Runs: {found['run']} and {found['baseline']}."
        )
    for name, pairs in result["top_confusions"].items():
        said = f" Largest: {describe_confusions(pairs)} %." if pairs else ""
        captions[f"confusion-{make_file_name(name)}.png"] = f"{name}: rows are labels, columns predictions.{said}"
    return captions


def describe_classes(result: dict[str, Any], groups: Groups, view: View) -> str:
    """Say which group gains most over the baseline, and in which classes it gains and loses most."""
    text = "IoU of each class; whiskers are standard deviations over seeds, dashed lines the mIoU."
    gains = {}
    for row in result["rows"]:
        if row["view"] == view._asdict() and "gain" in row:
            by_seed = list(row["gain_by_seed"].values())
            gains[row["group"]] = mean(by_seed) if by_seed else row["gain"]
    if not gains:
        return text
    first = max(gains, key=gains.get)
    own = compute_mean_ious(groups[first], view)
    base = compute_mean_ious(groups[result["baseline"]], view)
    changes = {name: own[name] - base[name] for name in own.keys() & base.keys()}
    if not changes:
        return text
    most = max(changes, key=changes.get)
    least = min(changes, key=changes.get)
    gain = f"{first} has {100 * gains[first]:+.1f} points of mIoU over {result['baseline']}"
    return (
        f"{text} {gain}, most in {most} ({100 * changes[most]:+.1f}), least in {least} ({100 * changes[least]:+.1f})."
    )


def compute_mean_ious(runs: Sequence[Run], view: View) -> dict[str, float]:
    """Return the mean IoU over the runs of each class that occurs in all of them."""
    tables = [run.scores[view]["iou"] for run in list_scored_runs(runs, view)]
    if not tables:
        return {}
    means = {}
    for name in tables[0]:
        values = [table.get(name) for table in tables]
        if None not in values:
            means[name] = sum(values) / len(values)
    return means


def draw_gained_lost_maps(
    groups: Groups, view: View, baseline: str, maps: int, output: Path, notes: list[str]
) -> dict[str, Any]:
    """Draw gained/lost maps of every group against the baseline. Return the shares of pixels by group.

    notes: takes a line for each group that has no map, and why.
    """
    shares = {}
    for name, runs in groups.items():
        if name == baseline:
            continue
        pair = choose_pair_with_predictions(runs, groups[baseline])
        if pair is None:
            notes.append(f"{name}: no pred/ folder on one side: no gained/lost map")
            continue
        run, base = pair
        try:
            dataset = build_dataset(view.dataset, run.config.get("data", ""), view.split)
            changes = gained_lost.count_changes(dataset, run.folder / "pred", base.folder / "pred")
        except UserError as error:
            notes.append(f"{name}: no gained/lost map: {error}")
            continue
        new_accuracy, old_accuracy = changes.compute_accuracies()
        note_other_evaluation(run, view, new_accuracy, notes)
        note_other_evaluation(base, view, old_accuracy, notes)
        figure = gained_lost.draw_change_grid(changes, maps, run.name, base.name)
        style.save_figure(figure, output / f"gained_lost-{make_file_name(name)}.png")
        shares[name] = {"run": run.name, "baseline": base.name, "images": len(dataset), **changes.compute_shares()}
    return shares


def choose_pair_with_predictions(runs: Sequence[Run], base_runs: Sequence[Run]) -> tuple[Run, Run] | None:
    """Choose a run and a run of the baseline that both have predictions, of the same seed where there are such.

    Return None where one side has no predictions.
    """
    candidates = [run for run in runs if (run.folder / "pred").is_dir()]
    base_candidates = [run for run in base_runs if (run.folder / "pred").is_dir()]
    if not candidates or not base_candidates:
        return None
    for run in candidates:
        for base in base_candidates:
            if run.seed == base.seed:
                return run, base
    return candidates[0], base_candidates[0]


def note_other_evaluation(run: Run, view: View, accuracy: float, notes: list[str]) -> None:
    """Add a note where the predictions of a run are not those that its score is of.

    accuracy: the pixel accuracy of the predictions.
    """
    scored = run.scores.get(view, {}).get("pixel_accuracy")
    if scored is not None and abs(scored - accuracy) > 1e-9:
        notes.append(f"{run.name}: pred/ (accuracy {100 * accuracy:.2f} %) is of another evaluation than the scores")


def draw_confusions(groups: Groups, view: View, output: Path) -> dict[str, list[dict[str, Any]]]:
    """Draw a confusion matrix for each group, summed over its seeds. Return its largest confusions by its name."""
    confusions = {}
    for name, runs in groups.items():
        scores = [run.scores[view] for run in runs if "confusion" in run.scores.get(view, {})]
        if not scores:
            continue
        total = np.sum([score["confusion"] for score in scores], 0)
        names = list(scores[0]["iou"])
        title = f"{name}: {view.describe_data()}, {view.checkpoint} checkpoint"
        figure = charts.draw_confusion(total, names, title)
        style.save_figure(figure, output / f"confusion-{make_file_name(name)}.png")
        confusions[name] = charts.list_top_confusions(total, names)
    return confusions


def draw_robustness_of_teachers(groups: Groups, output: Path) -> dict[str, str]:
    """Draw the robustness of every run whose folder holds what teacher_robustness.py wrote.

    Return the caption of each picture by the file's name.

    Raises:
        UserError: a file has other content.
    """
    captions = {}
    for run in chain.from_iterable(groups.values()):
        path = run.folder / "robustness.json"
        if not path.is_file():
            continue
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            figure = robustness.draw_robustness(content["results"], f"{run.name}: {content['data']}")
            caption = describe_robustness(run.name, content["results"])
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise UserError(f"{path} is not what teacher_robustness.py writes: {error!r}") from error
        name = f"robustness-{make_file_name(run.name)}.png"
        captions[name] = caption
        style.save_figure(figure, output / name)
    return captions


def describe_robustness(run: str, results: dict[str, list[dict[str, Any]]]) -> str:
    """Say how much a teacher's score depends on its label. results: records by teacher, of teacher_robustness.py."""
    records, *_ = results.values()  # the file of a run has one teacher
    scores = {record["name"]: format_mean_std(record["miou"]) for record in records}
    return f"{run} has {scores['as trained']} % mIoU with its label and {scores['no label']} % with a plane of zeros."


def make_file_name(name: str) -> str:
    """Turn the name of a group into one that a file may have."""
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in name)
