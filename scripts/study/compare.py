"""Compare runs: means over seeds, gains with a paired test, plots. Runs that differ only in seed form a group.

    python scripts/study/compare.py runs/baseline-0 runs/baseline-1 runs/lad-0 runs/lad-1 --baseline baseline

What a run folder should hold: config.yaml and metrics.jsonl (training), JSON files of eval.py --json (one for each
checkpoint and protocol), per_image.npz (--per-image: the paired test), pred/ (--save-pred: the gained/lost map).
What is missing is named and its part left out. Writes compare.md, compare.json and PNG files into --output; --html FILE
has all of it in one page, with robustness.json of teachers (teacher_robustness.py --output RUN).
"""

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from utils.environment import require_packages

require_packages()

import numpy as np

from scripts.study.analysis import charts, page, style
from scripts.study.analysis.charts import Groups
from scripts.study.analysis.groups import read_groups
from scripts.study.analysis.output import save_json, save_text
from scripts.study.analysis.paired import bootstrap_gain, compute_p_over_seeds, stack_counts
from scripts.study.analysis.report import (
    describe_pictures,
    draw_confusions,
    draw_gained_lost_maps,
    draw_robustness_of_teachers,
    make_file_name,
    make_report,
)
from scripts.study.analysis.runs import Run, View, list_scored_runs
from utils.entry import run_main
from utils.errors import UserError, require_known
from utils.options import option, parse_flags


@dataclass(frozen=True)
class CompareConfig:
    """Hold the settings of compare.py."""

    runs: tuple[str, ...] = option(
        (), "run folders or record files; those that differ in seed are a group", positional=True
    )
    baseline: str = option("", "group that gains are against")
    samples: int = option(10000, "resamples of the paired bootstrap", minimum=100)
    seed: int = option(0, "of the bootstrap", minimum=0)
    maps: int = option(6, "images in a gained/lost map", minimum=1)
    output: str = option("runs/compare", "folder to write to")
    html: str = option("", "one page with everything, to read in a browser or to pass on")


def list_views(groups: Groups) -> list[View]:
    """List the views in which any run has a score: those of most groups first, and "last" before "best".

    The best checkpoint was chosen by its score on these very images. So its score is too high.
    """
    counts: Counter[View] = Counter()
    for runs in groups.values():
        views = {view for run in runs for view in run.scores}
        counts.update(view for view in views if list_scored_runs(runs, view))
    return sorted(counts, key=lambda view: (-counts[view], view.checkpoint != "last", view))


def find_group(groups: Groups, name: str) -> str:
    """Return the group of this name. A group of one run, called student-0, is also found as student.

    Raises:
        UserError: no group has this name.
    """
    if name not in groups:
        for group, runs in groups.items():
            if all(run.name == f"{name}-{run.seed}" for run in runs):
                return group
    require_known(name, groups, "group in --baseline")
    return name


def make_rows(groups: Groups, views: Sequence[View], config: CompareConfig, notes: list[str]) -> list[dict[str, Any]]:
    """Collect the scores of each group in each view. notes: takes a line for each gain or test that is missing."""
    rows = []
    for view in views:
        for name in groups:
            row = make_row(name, groups, view, config, notes)
            if row is not None:
                rows.append(row)
    return rows


def make_row(name: str, groups: Groups, view: View, config: CompareConfig, notes: list[str]) -> dict[str, Any] | None:
    """Collect the scores of a group in a view, and its gain over the baseline if both were scored.

    Return None where no run of the group has a score. A network that reads the label has no gain over one that does
    not. notes: takes a line for each gain or test that is missing, and why.
    """
    runs = list_scored_runs(groups[name], view)
    if not runs:
        return None
    row = collect_scores(name, runs, view)
    if not config.baseline or name == config.baseline:
        return row
    assisted = row["label_assisted"]
    base = [run for run in list_scored_runs(groups[config.baseline], view) if run.is_assisted(view) == assisted]
    if not base:
        what = "reads the label" if assisted else f"{config.baseline} has no such score"
        notes.append(f"{name}, {view.checkpoint}, {view.protocol}: no gain: {what}")
        return row
    row |= compute_gain(runs, base, view)
    try:
        row["test"] = make_paired_test(runs, base, view, config)
    except UserError as error:
        notes.append(f"{name}, {view.checkpoint}: no paired test: {error}")
    return row


def collect_scores(name: str, runs: Sequence[Run], view: View) -> dict[str, Any]:
    """Collect the scores of a group's runs in a view."""
    scores = [run.scores[view] for run in runs]
    return {
        "group": name,
        "view": view._asdict(),
        "runs": [str(run.folder) for run in runs],
        "miou": [score["miou"] for score in scores],
        "pixel_accuracy": [score["pixel_accuracy"] for score in scores if score["pixel_accuracy"] is not None],
        "label_assisted": any(run.is_assisted(view) for run in runs),
    }


def compute_gain(runs: Sequence[Run], base: Sequence[Run], view: View) -> dict[str, Any]:
    """Compute the gain of runs over those of the baseline: the mean over the seeds that both have.

    If they have no seed in common, it is the difference of the means.
    """
    own = {run.seed: run.scores[view]["miou"] for run in runs}
    other = {run.seed: run.scores[view]["miou"] for run in base}
    by_seed = {seed: own[seed] - other[seed] for seed in sorted(own.keys() & other.keys())}
    if by_seed:
        gain = np.mean(list(by_seed.values()))
    else:
        gain = np.mean([run.scores[view]["miou"] for run in runs]) - np.mean(list(other.values()))
    return {
        "gain": float(gain),
        "gain_by_seed": by_seed,
        "p_over_seeds": compute_p_over_seeds(list(by_seed.values())),
    }


def make_paired_test(runs: Sequence[Run], base: Sequence[Run], view: View, config: CompareConfig) -> dict[str, Any]:
    """Compare two groups by a bootstrap over the images.

    Raises:
        UserError: one side has no counts of single images, or they are of different images or labels.
    """
    own = [run.areas[view] for run in runs if view in run.areas]
    other = [run.areas[view] for run in base if view in run.areas]
    if not own or not other:
        raise UserError("no per-image counts on one side")
    counts = stack_counts([*own, *other])
    gain = bootstrap_gain(counts[: len(own)], counts[len(own) :], config.samples, config.seed)
    return gain._asdict()


def collect_pictures(
    result: dict[str, Any], groups: Groups, view: View, output: Path, has_curves: bool
) -> dict[str, list[page.Picture]]:
    """Return the pictures of the page with their captions, by heading. Draw those of the teachers' robustness.

    result: as compare.json has it. output: the folder of the pictures. has_curves: whether it holds training curves.
    """
    files = {
        "IoU by class": ["per_class.png"],
        "Training curves": ["curves.png"] if has_curves else [],
        "Pixels gained and lost": [f"gained_lost-{make_file_name(name)}.png" for name in result["gained_lost"]],
        "Confusions": [f"confusion-{make_file_name(name)}.png" for name in result["top_confusions"]],
    }
    captions = describe_pictures(result, groups, view)
    of_teachers = draw_robustness_of_teachers(groups, output)
    files["Robustness of the teachers"] = list(of_teachers)
    captions |= of_teachers
    pictures = {}
    for heading, names in files.items():
        pictures[heading] = [page.Picture(output / name, captions[name]) for name in names]
    return pictures


def main(argv: Sequence[str] | None = None) -> None:
    config = CompareConfig(**parse_flags(CompareConfig, __doc__, argv))
    groups = read_groups(config.runs)
    if config.baseline:
        config = replace(config, baseline=find_group(groups, config.baseline))
    views = list_views(groups)
    if not views:
        raise UserError("none of the runs has a score: eval.py --json RUN/eval.json, or a training log with validation")
    output = Path(config.output).expanduser()
    notes = [f"{run.name}: {note}" for runs in groups.values() for run in runs for note in run.notes]
    rows = make_rows(groups, views, config, notes)
    style.save_figure(charts.draw_class_bars(groups, views[0], config.baseline), output / "per_class.png")
    curves = charts.draw_training_curves(groups)
    if curves is not None:
        style.save_figure(curves, output / "curves.png")
    gained_lost = {}
    top_confusions = draw_confusions(groups, views[0], output)
    if config.baseline:
        gained_lost = draw_gained_lost_maps(groups, views[0], config.baseline, config.maps, output, notes)
    result = {
        "groups": {name: [str(run.folder) for run in runs] for name, runs in groups.items()},
        "baseline": config.baseline or None,
        "rows": rows,
        "gained_lost": gained_lost,
        "top_confusions": top_confusions,
        "notes": notes,
    }
    text = make_report(result, views, config.samples)
    save_json(result, output / "compare.json")
    save_text(text, output / "compare.md")
    if config.html:
        pictures = collect_pictures(result, groups, views[0], output, has_curves=curves is not None)
        save_text(page.make_html_page(text, pictures), Path(config.html).expanduser())
    print(text)


if __name__ == "__main__":
    run_main(main)
