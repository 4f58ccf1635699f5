"""An experiment again, every arm cut or lengthened to the same training time.

    python scripts/study/equal_time.py losses
    python scripts/study/experiment.py losses_time --data data/camvid_half --seeds 0 --output runs/losses \
        --records results/losses

The budget is the training time of --reference at its own number of iterations. Each arm NAME of the
experiment that was run becomes NAME_time with the iterations that the speed of its record (validation left out) fits
into the budget, so that its learning rate decays to the end; teachers stay as they are. With the same --output and
--records those are not trained again.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import yaml

from scripts.study.analysis import style
from scripts.study.analysis.runs import Run
from scripts.study.experiments.definition import read_experiment
from scripts.study.experiments.tables import runs_of, training_minutes
from utils.errors import UserError, run_main
from utils.options import option, parse_flags


@dataclass(frozen=True)
class TimeConfig:
    experiment: str = option("", "name of a file in scripts/study/experiments, or a path", positional=True)
    records: str = option("", "folder of its records (default: results/<experiment>)")
    output: str = option("", "yaml file to write (default: scripts/study/experiments/<experiment>_time.yaml)")
    reference: str = option("kd_plain", "the run whose training time is everybody's")


def pace(runs: Sequence[Run]) -> float | None:
    """Minutes an iteration over the runs that have a record."""
    timed = [(minutes, run.config["max_iterations"]) for run in runs if (minutes := training_minutes(run))]
    return sum(minutes for minutes, _ in timed) / sum(iterations for _, iterations in timed) if timed else None


def main(argv: Sequence[str] | None = None) -> None:
    config = TimeConfig(**parse_flags(TimeConfig, __doc__, argv))
    experiment = read_experiment(config.experiment)
    folder = Path(config.records or f"results/{experiment.name}").expanduser()
    paces = {name: each for name in experiment.students if (each := pace(runs_of(folder, name)))}
    for name in (experiment.baseline, config.reference):
        if name not in paces:
            raise UserError(f"{folder} holds no finished run of {name}: run scripts/study/experiment.py first")
    minutes = paces[config.reference] * experiment.arms[config.reference].settings["max_iterations"]
    runs = {}
    for name, each in paces.items():
        arm = experiment.arms[name]
        origins = {key: f"{origin.arm}+{origin.shift}" for key, origin in arm.origins.items()}
        settings = {**arm.settings, **origins, "max_iterations": max(1, round(minutes / each))}
        plain = {key: list(value) if isinstance(value, tuple) else value for key, value in settings.items()}
        runs[f"{name}_time"] = {"title": f"{arm.title}, {minutes:.1f} minutes", "settings": plain}
    content = {
        "include": config.experiment,
        "title": f"{experiment.title}, {minutes:.1f} minutes of training each",
        "baseline": f"{experiment.baseline}_time",
        "runs": runs,
        "only": list(runs),
    }
    output = Path(config.output or f"scripts/study/experiments/{experiment.name}_time.yaml").expanduser()
    style.save_text(yaml.safe_dump(content, sort_keys=False), output)
    print(f"{output}: {len(runs)} runs of {minutes:.1f} minutes")


if __name__ == "__main__":
    run_main(main)
