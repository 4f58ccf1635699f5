"""A comparison of losses (losses.yaml, loss_cost.py, equal_time.py): what each gains and what it costs."""

import json
from pathlib import Path
from statistics import mean
from typing import NamedTuple

from scripts.study.experiments.definition import Experiment, read_experiment
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
    """The losses and the seeds, from the records below ``folder`` and its cost.json, as far as they are there.

    At equal time, what the experiment of equal_time.py does not train again is what was trained.
    """
    path = folder / "cost.json"
    costs, seeds, rows = read_costs(path) if path.is_file() else {}, set(), []
    again = read_experiment(str(timed(experiment))).arms if timed(experiment).is_file() else {}
    base_cost = costs.get(experiment.baseline)
    for name, arm in experiment.arms.items():
        loss, _, teacher = name.rpartition("_")
        if teacher != "plain" or "teacher_pretrained" not in arm.origins:
            continue
        gains = {}
        for end, budget in ((end, budget) for end in TEACHERS for budget in BUDGETS):
            names = [arm + budget * (arm + budget in again) for arm in (f"{loss}_{end}", experiment.baseline)]
            own, base = (scores(runs_of(folder, name), "last") if again or not budget else {} for name in names)
            if common := own.keys() & base.keys():
                seeds |= common
                gains[end, budget] = mean(own[seed] - base[seed] for seed in common)
        relative = None
        if base_cost and name in costs:
            relative = costs[name][0] / base_cost[0], costs[name][1] - base_cost[1]
        rows.append(Row(loss, str(arm.settings["kd"]), gains, relative))
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


def read_costs(path: Path) -> dict[str, tuple[float, float]]:
    """What loss_cost.py measured: seconds of a step and megabytes, by run.

    Raises UserError: no such file, or of other content.
    """
    try:
        costs = json.loads(path.read_text(encoding="utf-8"))["costs"]
        return {name: (float(cost["seconds"]), float(cost["megabytes"])) for name, cost in costs.items()}
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}; loss_cost.py --json writes it") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is no result of loss_cost.py: {error!r}") from error


def timed(experiment: Experiment) -> Path:
    """The file of the same experiment at equal time, which equal_time.py writes."""
    return experiment.path.with_name(f"{experiment.name}_time.yaml")
