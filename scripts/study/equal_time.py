"""An experiment again, every arm cut or lengthened to the same training time.

    python scripts/study/equal_time.py losses
    python scripts/study/experiment.py losses_time --data data/camvid_half --seeds 0 --output runs/losses \
        --records results/losses

The budget is the training time of --reference at its own number of iterations, or --minutes. Each arm NAME of the
experiment that was run becomes NAME_time with the iterations that the speed of its record (validation left out) fits
into the budget, so that its learning rate decays to the end; teachers stay as they are. With the same --output and
--records those are not trained again.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import yaml

from scripts.study.analysis import style
from scripts.study.experiments.definition import Experiment, read_experiment
from scripts.study.experiments.tables import read_records, training_minutes
from utils.errors import UserError, lookup, run_main
from utils.options import option, parse_flags


@dataclass(frozen=True)
class TimeConfig:
    experiment: str = option("", "name of a file in scripts/study/experiments, or a path", positional=True)
    records: str = option("", "folder of its records (default: results/<experiment>)")
    output: str = option("", "yaml file to write (default: scripts/study/experiments/<experiment>_time.yaml)")
    reference: str = option("kd_plain", "the run whose training time is everybody's")
    minutes: float | None = option(None, "training time instead of the reference's", minimum=0)


def minutes_an_iteration(experiment: Experiment, folder: Path) -> dict[str, float]:
    """Of each student that has a record, over its seeds."""
    found = {}
    for name, runs in read_records(experiment, folder).items():
        if experiment.arms[name].train == "student":
            pairs = [(training_minutes(run), run.config["max_iterations"]) for run in runs]
            timed = [(minutes, iterations) for minutes, iterations in pairs if minutes]
            if timed:
                found[name] = sum(minutes for minutes, _ in timed) / sum(iterations for _, iterations in timed)
    return found


def equal_time(experiment: Experiment, source: str, pace: dict[str, float], minutes: float) -> dict[str, Any]:
    """The new experiment file. ``source``: what it includes."""
    runs = {}
    for name, each in pace.items():
        arm = experiment.arms[name]
        origins = {key: f"{o.arm}+{o.shift}" if o.shift else o.arm for key, o in arm.origins.items()}
        settings = {**arm.settings, **origins, "max_iterations": max(1, round(minutes / each))}
        plain = {key: list(value) if isinstance(value, tuple) else value for key, value in settings.items()}
        runs[f"{name}_time"] = {"title": f"{arm.title}, {minutes:.1f} minutes", "settings": plain}
    return {
        "include": source,
        "title": f"{experiment.title}, {minutes:.1f} minutes of training each",
        "baseline": f"{experiment.baseline}_time",
        "runs": runs,
        "only": list(runs),
    }


def main(argv: Sequence[str] | None = None) -> None:
    config = TimeConfig(**parse_flags(TimeConfig, __doc__, argv))
    experiment = read_experiment(config.experiment)
    folder = Path(config.records or f"results/{experiment.name}").expanduser()
    pace = minutes_an_iteration(experiment, folder)
    if experiment.baseline not in pace:
        raise UserError(
            f"{folder} holds no finished run of {experiment.baseline}: run scripts/study/experiment.py first"
        )
    minutes = config.minutes
    if minutes is None:
        each = lookup(pace, config.reference, f"run with a record in {folder}, --reference")
        minutes = each * experiment.arms[config.reference].settings["max_iterations"]
    content = equal_time(experiment, config.experiment, pace, minutes)
    output = Path(config.output or f"scripts/study/experiments/{experiment.name}_time.yaml").expanduser()
    style.save_text(yaml.safe_dump(content, sort_keys=False), output)
    print(f"{output}: {len(pace)} runs of {minutes:.1f} minutes")


if __name__ == "__main__":
    run_main(main)
