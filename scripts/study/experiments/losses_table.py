"""Read what a training step of each loss costs, as it was measured for equal_time.py."""

import json
from pathlib import Path

from scripts.study.experiments.definition import Experiment
from utils.errors import UserError


def read_costs(path: Path) -> dict[str, tuple[float, float]]:
    """Return the seconds of a step and the megabytes at its peak, by run.

    Raises:
        UserError: there is no such file, or it has other content.
    """
    try:
        costs = json.loads(path.read_text(encoding="utf-8"))["costs"]
        return {name: (float(cost["seconds"]), float(cost["megabytes"])) for name, cost in costs.items()}
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} holds no costs of runs: {error!r}") from error


def timed(experiment: Experiment) -> Path:
    """Return the file of the same experiment at equal time, which equal_time.py writes."""
    return experiment.path.with_name(f"{experiment.name}_time.yaml")
