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
    """gains: over the baseline of the same budget, by the ends of a run's name; seconds, megabytes: of a step."""

    loss: str
    kd: str
    gains: dict[tuple[str, str], float]
    seconds: float | None
    megabytes: float | None


class Comparison(NamedTuple):
    rows: list[Row]
    baseline: Row
    seeds: set[int]


def read_comparison(experiment: Experiment, folder: Path) -> Comparison:
    """From the records below ``folder`` and its cost.json, as far as they are there."""
    costs, seeds, rows = _costs(folder / "cost.json"), set(), []
    base = {budget: _scores(folder, experiment.baseline + budget) for budget in BUDGETS}
    for name, arm in experiment.arms.items():
        loss, _, teacher = name.rpartition("_")
        if teacher != "plain" or arm.train != "student":
            continue
        gains = {}
        for end in TEACHERS:
            for budget in BUDGETS:
                own = _scores(folder, f"{loss}_{end}{budget}")
                common = own.keys() & base[budget].keys()
                seeds |= common
                if common:
                    gains[end, budget] = mean(own[seed] - base[budget][seed] for seed in common)
        rows.append(Row(loss, str(arm.settings["kd"]), gains, *costs.get(name, (None, None))))
    baseline = Row(experiment.baseline, "none", {}, *costs.get(experiment.baseline, (None, None)))
    return Comparison(rows, baseline, seeds)


def losses(experiment: Experiment, folder: Path) -> Table:
    """A line for each loss; gains in points of mIoU of the last checkpoint."""
    comparison = read_comparison(experiment, folder)
    many = f"{len(comparison.seeds)} seed(s)" if comparison.seeds else "not run"
    columns = [(end, budget) for budget in BUDGETS for end in TEACHERS]
    header = ["loss", "`--kd`", *(f"{TEACHERS[end]}, {BUDGETS[budget]} ({many})" for end, budget in columns)]
    rows = []
    for row in comparison.rows:
        gains = [f"{100 * row.gains[key]:+.2f}" if key in row.gains else "not run" for key in columns]
        rows.append([row.loss, f"`{row.kd}`", *gains, *_cost_cells(row, comparison.baseline)])
    return [*header, "time of a step, x baseline", "memory over baseline, MB"], rows


def _cost_cells(row: Row, baseline: Row) -> list[str]:
    if row.seconds is None or baseline.seconds is None:
        return ["not run", "not run"]
    return [f"{row.seconds / baseline.seconds:.2f}", f"{row.megabytes - baseline.megabytes:+.0f}"]


def _scores(folder: Path, name: str) -> dict[int, float]:
    """mIoU of the last checkpoint by seed."""
    return scores(runs_of(folder, name), "last")


def _costs(path: Path) -> dict[str, tuple[float, float]]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))["costs"]
        return {name: (float(cost["seconds"]), float(cost["megabytes"])) for name, cost in content.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is no result of loss_cost.py: {error}") from error
