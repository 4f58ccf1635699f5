"""A comparison of losses again, every arm cut or lengthened to the same training time.

    python scripts/study/equal_time.py losses
    python scripts/study/experiment.py losses_time --data data/camvid_half --seeds 0 --output runs/losses \
        --records results/losses

The budget is what --reference takes for its own number of iterations. Each student NAME becomes NAME_time, with the
iterations that the time of its step (loss_cost.py; of the student with the same --kd where only that was measured) fits
into the budget, so that its learning rate decays to the end: <experiment>_time.yaml, beside the experiment's. One whose
step takes the reference's time, to --tolerance, is not trained again (but the baseline): the times are not known any
better. Teachers stay as they are.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from utils.environment import require_packages

require_packages()

import yaml

from scripts.study.analysis import style
from scripts.study.experiments.definition import read_experiment
from scripts.study.experiments.files import merged
from scripts.study.experiments.losses_table import read_costs, timed
from utils.errors import UserError, run_main
from utils.options import option, parse_flags


@dataclass(frozen=True)
class TimeConfig:
    experiment: str = option("", "name of a file in scripts/study/experiments, or a path", positional=True)
    costs: str = option("", "what loss_cost.py measured (default: results/<experiment>/cost.json)")
    reference: str = option("kd_plain", "the student whose training time is everybody's")
    tolerance: float = option(0.1, "share of the reference's time by which a step may differ from it", minimum=0)


def main(argv: Sequence[str] | None = None) -> None:
    config = TimeConfig(**parse_flags(TimeConfig, __doc__, argv))
    experiment = read_experiment(config.experiment)
    students = experiment.students
    path = Path(config.costs or f"results/{experiment.name}/cost.json").expanduser()
    measured = read_costs(path)
    alike = {students[name].settings["kd"]: seconds for name, (seconds, _) in measured.items() if name in students}
    steps = {name: alike[arm.settings["kd"]] for name, arm in students.items() if arm.settings["kd"] in alike}
    for name in (experiment.baseline, config.reference):
        if name not in steps:
            raise UserError(f"{path} has no cost of {name}: run scripts/study/loss_cost.py first")
    reference, runs = students[config.reference].settings["max_iterations"], {}
    written = merged(experiment.path)["runs"]
    for name, seconds in steps.items():
        share = seconds / steps[config.reference]
        if name != experiment.baseline and abs(share - 1) <= config.tolerance:
            continue
        settings = {**written[name].get("settings", {}), "max_iterations": max(1, round(reference / share))}
        runs[f"{name}_time"] = {"title": f"{students[name].title}, equal time", "settings": settings}
    content = {
        "include": experiment.name,
        "title": f"{experiment.title}, equal time",
        "baseline": f"{experiment.baseline}_time",
        "runs": runs,
        "only": list(runs),
    }
    style.save_text(yaml.safe_dump(content, sort_keys=False), timed(experiment))
    print(f"{len(runs)} of {len(steps)} students with another number of iterations")


if __name__ == "__main__":
    run_main(main)
