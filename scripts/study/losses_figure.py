"""Scatter of a comparison of losses: gain over the baseline against what a training step costs.

python scripts/study/losses_figure.py losses --records results/losses --output figures/losses.png
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from scripts.study.analysis import style
from scripts.study.experiments.definition import read_experiment
from scripts.study.experiments.losses_table import BUDGETS, TEACHERS, Comparison, Row, read_comparison
from utils.errors import UserError, run_main
from utils.options import option, parse_flags


@dataclass(frozen=True)
class FigureConfig:
    experiment: str = option("", "name of a file in scripts/study/experiments, or a path", positional=True)
    records: str = option("", "folder of the records and cost.json (default: results/<experiment>)")
    output: str = option("", "picture to write (default: figures/<experiment>.png)")


def draw(comparison: Comparison, title: str) -> Figure:
    """Columns: cost in time and in memory. Rows: the budgets that were run. Colours: the teachers."""
    shown = [budget for budget in BUDGETS if any((end, budget) in r.gains for r in comparison.rows for end in TEACHERS)]
    figure, axes = plt.subplots(len(shown), 2, figsize=(11, 4.6 * len(shown)), layout="constrained", squeeze=False)
    base = comparison.baseline
    for budget, (times, memories) in zip(shown, axes, strict=True):
        _scatter(times, comparison.rows, budget, lambda row: row.seconds / base.seconds)
        _scatter(memories, comparison.rows, budget, lambda row: row.megabytes - base.megabytes)
        times.set(xlabel="time of a training step, x baseline", ylabel="gain over the baseline, points of mIoU")
        memories.set(xlabel="peak memory over the baseline, MB")
        for ax in (times, memories):
            ax.set_title(BUDGETS[budget])
    seeds = f"{len(comparison.seeds)} seed{'s' if len(comparison.seeds) > 1 else ''}"
    figure.suptitle(f"{title}: {seeds}", fontsize=11)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def _scatter(ax: Axes, rows: Sequence[Row], budget: str, cost) -> None:
    for i, (end, teacher) in enumerate(TEACHERS.items()):
        known = [row for row in rows if (end, budget) in row.gains]
        places = [(cost(row), 100 * row.gains[end, budget]) for row in known]
        ax.plot(*zip(*places, strict=True), style.marker(i), color=style.color(i), label=teacher) if places else None
        for row, place in zip(known, places, strict=True):
            ax.annotate(row.loss, place, xytext=(3, 3), textcoords="offset points", fontsize=7, color=style.color(i))
    ax.axhline(0, color="0.6", linewidth=0.8)
    ax.margins(x=0.12)  # room for the names


def main(argv: Sequence[str] | None = None) -> None:
    config = FigureConfig(**parse_flags(FigureConfig, __doc__, argv))
    experiment = read_experiment(config.experiment)
    folder = Path(config.records or f"results/{experiment.name}").expanduser()
    comparison = read_comparison(experiment, folder)
    if not comparison.seeds:
        raise UserError(f"{folder} holds no scored runs of {experiment.name}")
    missing = [row.loss for row in (comparison.baseline, *comparison.rows) if row.seconds is None]
    if missing:
        raise UserError(
            f"{folder}/cost.json lacks {', '.join(missing)}: run scripts/study/loss_cost.py {experiment.name}"
        )
    style.save_figure(draw(comparison, experiment.title), Path(config.output or f"figures/{experiment.name}.png"))


if __name__ == "__main__":
    run_main(main)
