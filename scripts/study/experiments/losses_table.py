"""A comparison of losses (losses.yaml, loss_cost.py, equal_time.py): what each gains and what it costs."""

import json
from pathlib import Path
from statistics import mean
from typing import NamedTuple

from scripts.study.experiments.definition import Experiment
from scripts.study.experiments.tables import Table, runs_of, scores
from utils.errors import UserError

TEACHERS = {"plain": "plain teacher", "lad": "assisted teacher"}
BUDGETS = {"": "equal iterations", "_time": "equal time"}


class Row(NamedTuple):
    """gains: over the baseline of the same budget, by the ends of a run's name. cost: time of a step over the
    baseline's, and megabytes more than it; None where it was not measured.
    """

    loss: str
    kd: str
    gains: dict[tuple[str, str], float]
    cost: tuple[float, float] | None


def read_comparison(experiment: Experiment, folder: Path) -> tuple[list[Row], set[int]]:
    """The losses and the seeds, from the records below ``folder`` and its cost.json, as far as they are there."""
    costs, seeds, rows = _costs(folder / "cost.json", experiment.baseline), set(), []
    for name, arm in experiment.arms.items():
        loss, _, teacher = name.rpartition("_")
        if teacher != "plain" or "teacher_pretrained" not in arm.origins:
            continue
        gains = {}
        for end, budget in ((end, budget) for end in TEACHERS for budget in BUDGETS):
            own = scores(runs_of(folder, f"{loss}_{end}{budget}"), "last")
            base = scores(runs_of(folder, experiment.baseline + budget), "last") if own else {}
            if common := own.keys() & base.keys():
                seeds |= common
                gains[end, budget] = mean(own[seed] - base[seed] for seed in common)
        rows.append(Row(loss, str(arm.settings["kd"]), gains, costs.get(name)))
    return rows, seeds


def losses(experiment: Experiment, folder: Path) -> Table:
    """A line for each loss; gains in points of mIoU of the last checkpoint."""
    found, seeds = read_comparison(experiment, folder)
    many = f"{len(seeds)} seed(s)" if seeds else "not run"
    columns = [(end, budget) for budget in BUDGETS for end in TEACHERS]
    header = ["loss", "`--kd`", *(f"{TEACHERS[end]}, {BUDGETS[budget]} ({many})" for end, budget in columns)]
    rows = []
    for row in found:
        gains = [f"{100 * row.gains[key]:+.2f}" if key in row.gains else "not run" for key in columns]
        cost = [f"{row.cost[0]:.2f}", f"{row.cost[1]:+.0f}"] if row.cost else ["not run"] * 2
        rows.append([row.loss, f"`{row.kd}`", *gains, *cost])
    return [*header, "time of a step, x baseline", "memory over baseline, MB"], rows


def _costs(path: Path, baseline: str) -> dict[str, tuple[float, float]]:
    if not path.is_file():
        return {}
    try:
        costs = json.loads(path.read_text(encoding="utf-8"))["costs"]
        if not (base := costs.get(baseline)):
            return {}
        return {n: (c["seconds"] / base["seconds"], c["megabytes"] - base["megabytes"]) for n, c in costs.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is no result of loss_cost.py: {error}") from error
