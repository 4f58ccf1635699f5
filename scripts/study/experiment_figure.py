"""Plot an experiment from its records: validation curves, and the scores of every seed.

    python scripts/study/experiment_figure.py camvid_lite        # figures/camvid_lite.png

Where it has students of teachers with different label noise, a second picture, camvid_lite_dial.png, shows their gains
beside what the teachers know; where it compares losses whose cost was measured (loss_cost.py), losses_costs.png shows
gain against cost.

Networks that see the image only; teachers that read the label are in the tables (scripts/study/results_table.py).
scripts/study/compare.py plots the same record folders in more detail.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from scripts.study.analysis import style
from scripts.study.analysis.charts import validation_curves
from scripts.study.analysis.runs import Run
from scripts.study.experiments.costs import draw_costs
from scripts.study.experiments.definition import Experiment, read_experiment
from scripts.study.experiments.dial import draw_dial
from scripts.study.experiments.losses_table import read_comparison
from scripts.study.experiments.tables import read_records, scores
from utils.errors import UserError, run_main
from utils.options import option, parse_flags

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class FigureConfig:
    experiment: str = option("", "name of a file in scripts/study/experiments, or a path", positional=True)
    records: str = option("", "folder of the records (default: results/<experiment>)")
    output: str = option("", "picture to write (default: figures/<experiment>.png)")


def draw(experiment: Experiment, groups: dict[str, Sequence[Run]]) -> Figure:
    """Left: validation mIoU against the iteration, mean and range over seeds. Right: each seed's last score."""
    titles = {experiment.arms[name].title: runs for name, runs in groups.items()}
    figure, (curves, dots) = plt.subplots(1, 2, figsize=(10, 1.6 + 0.42 * len(titles) + 1.6), layout="constrained")
    validation_curves(curves, titles)
    curves.set(title="validation during training", xlabel="iteration", ylabel="mIoU %")
    for i, (title, runs) in enumerate(titles.items()):
        values = [100 * value for value in scores(runs, "last").values()]
        dots.plot(values, [title] * len(values), style.marker(i), color=style.color(i), markersize=5, alpha=0.7)
        dots.plot([sum(values) / len(values)], [title], "|", color=style.color(i), markersize=22, markeredgewidth=2)
    dots.set(title="last checkpoint: each seed, bar = mean", xlabel="mIoU %")
    dots.set_ylim(len(titles) - 0.5, -0.5)
    dots.grid(axis="x", color="0.9")
    figure.suptitle(experiment.title, fontsize=11)
    figure.legend(*curves.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def main(argv: Sequence[str] | None = None) -> None:
    config = FigureConfig(**parse_flags(FigureConfig, __doc__, argv))
    experiment = read_experiment(config.experiment)
    folder = Path(config.records).expanduser() if config.records else ROOT / "results" / experiment.name
    records = read_records(experiment, folder)
    shown = {n: runs for n, runs in records.items() if experiment.arms[n].train == "student" and scores(runs, "last")}
    if not shown:
        raise UserError(f"{folder} holds no scored run of {experiment.name}")
    output = Path(config.output).expanduser() if config.output else ROOT / "figures" / f"{experiment.name}.png"
    style.save_figure(draw(experiment, shown), output)
    costs = draw_costs(read_comparison(experiment, folder), experiment.title)
    for name, figure in (("dial", draw_dial(experiment, folder)), ("costs", costs)):
        if figure is not None:
            style.save_figure(figure, output.with_name(f"{output.stem}_{name}{output.suffix}"))


if __name__ == "__main__":
    run_main(main)
