"""Compare runs: means over seeds, gains with a paired test, plots. Runs that differ only in seed form a group.

    python scripts/study/compare.py runs/baseline-0 runs/baseline-1 runs/lad-0 runs/lad-1 --baseline baseline

What a run folder should hold: config.yaml and metrics.jsonl (training), JSON files of eval.py --json (one for each
checkpoint and protocol), per_image.npz (--per-image: the paired test), pred/ (--save-pred: the gained/lost map).
What is missing is named and its part left out. Writes compare.md, compare.json and PNG files into --output; --html FILE
has all of it in one page, with robustness.json of teachers (teacher_robustness.py --output RUN).
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np

from scripts.study.analysis import charts, page, report, style
from scripts.study.analysis.groups import read_groups
from scripts.study.analysis.paired import Gain, align, bootstrap
from scripts.study.analysis.pictures import change_pictures, confusions, file_name, robustness_pictures
from scripts.study.analysis.runs import Run, View
from utils.errors import UserError, lookup, run_main
from utils.options import option, parse_flags

Groups = dict[str, list[Run]]


@dataclass(frozen=True)
class CompareConfig:
    runs: tuple[str, ...] = option((), "run folders; those that differ only in seed form a group", positional=True)
    baseline: str = option("", "group that gains are against")
    samples: int = option(10000, "resamples of the paired bootstrap", minimum=100)
    seed: int = option(0, "of the bootstrap", minimum=0)
    maps: int = option(6, "images in a gained/lost map", minimum=1)
    output: str = option("runs/compare", "folder to write to")
    html: str = option("", "one page with everything, to read in a browser or to pass on")


def views_of(groups: Groups) -> list[View]:
    """Every view some run has a score for; those of most groups first, "last" before "best" among equals.

    ``best`` is the checkpoint picked by its score on these very images, so it flatters.
    """
    views = dict.fromkeys(view for runs in groups.values() for run in runs for view in run.scores)
    count = {view: sum(any(view in run.scores for run in runs) for runs in groups.values()) for view in views}
    return sorted(views, key=lambda v: (-count[v], v.checkpoint != "last", v))


def row(name: str, runs: Sequence[Run], view: View, base: Sequence[Run]) -> dict[str, Any] | None:
    """The scores of a group in a view, and its gain over ``base`` where both have one; None without a score.

    The score of a network that reads the label is no gain over one that does not.
    """
    scores = [run.scores[view] for run in runs if view in run.scores and run.scores[view]["miou"] is not None]
    if not scores:
        return None
    result: dict[str, Any] = {
        "group": name,
        "view": view._asdict(),
        "runs": [str(run.folder) for run in runs if view in run.scores],
        "miou": [score["miou"] for score in scores],
        "pixel_accuracy": [s["pixel_accuracy"] for s in scores if s["pixel_accuracy"] is not None],
        "label_assisted": any(run.assisted(view) for run in runs),
    }
    others = {
        run.seed: run.scores[view]["miou"]
        for run in base
        if view in run.scores and run.assisted(view) == result["label_assisted"]
    }
    if others and base is not runs:
        result["gain"] = float(np.mean(result["miou"]) - np.mean(list(others.values())))
        own = {run.seed: run.scores[view]["miou"] for run in runs if view in run.scores}
        result["gain_by_seed"] = {seed: own[seed] - others[seed] for seed in sorted(own.keys() & others.keys())}
    return result


def paired(runs: Sequence[Run], base: Sequence[Run], view: View, config: CompareConfig) -> Gain | str:
    """The gain with its interval, or why there is none."""
    own, other = ([run.areas[view] for run in side if view in run.areas] for side in (runs, base))
    if not (own and other):
        return "no per-image counts on one side"
    try:
        counts = align([*own, *other])
    except UserError as error:
        return str(error)
    return bootstrap(counts[: len(own)], counts[len(own) :], config.samples, config.seed)


def main(argv: Sequence[str] | None = None) -> None:
    config = CompareConfig(**parse_flags(CompareConfig, __doc__, argv))
    groups = read_groups(config.runs)
    base = lookup(groups, config.baseline, "group in --baseline") if config.baseline else []
    views = views_of(groups)
    if not views:
        raise UserError("none of the runs has a score: eval.py --json RUN/eval.json, or a training log with validation")
    output = Path(config.output).expanduser()
    notes = [f"{run.name}: {note}" for runs in groups.values() for run in runs for note in run.notes]
    rows = [r for view in views for name, runs in groups.items() if (r := row(name, runs, view, base))]
    for r in rows if base else ():
        name, view = r["group"], View(**r["view"])
        if name == config.baseline:
            continue
        if "gain" not in r:
            what = "reads the label" if r["label_assisted"] else f"{config.baseline} has no such score"
            notes.append(f"{name}, {view.checkpoint}, {view.protocol}: no gain: {what}")
            continue
        test = paired(groups[name], base, view, config)
        if isinstance(test, Gain):
            r["test"] = test._asdict()
        else:
            notes.append(f"{name}, {view.checkpoint}: no paired test: {test}")

    main_view = views[0]
    style.save_figure(charts.class_bars(groups, main_view, config.baseline), output / "per_class.png")
    curves = charts.training_curves(groups)
    if curves is not None:
        style.save_figure(curves, output / "curves.png")
    named = confusions(groups, main_view, output)
    shares: dict[str, Any] = {}
    if base:
        shares, more = change_pictures(groups, main_view, config.baseline, config.maps, output)
        notes += more
    result = {
        "groups": {name: [str(run.folder) for run in runs] for name, runs in groups.items()},
        "baseline": config.baseline or None,
        "rows": rows,
        "gained_lost": shares,
        "top_confusions": named,
        "notes": notes,
    }
    text = report.report(result, views, config.samples)
    style.save_json(result, output / "compare.json")
    style.save_text(text, output / "compare.md")
    if config.html:
        pictures = {
            "Training curves": ["curves.png"] if curves else [],
            "IoU by class": ["per_class.png"],
            "Pixels gained and lost": [f"gained_lost-{file_name(name)}.png" for name in shares],
            "Confusions": [f"confusion-{file_name(name)}.png" for name in named],
            "Robustness of the teachers": [path.name for path in robustness_pictures(groups, output)],
        }
        shown = {heading: [output / name for name in names] for heading, names in pictures.items()}
        style.save_text(page.html(text, shown), Path(config.html).expanduser())
    print(text)


if __name__ == "__main__":
    run_main(main)
