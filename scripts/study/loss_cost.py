"""What a loss costs: time of a training step and peak memory, each measured in a process of its own.

    python scripts/study/loss_cost.py losses --json results/losses/cost.json

The students of an experiment that have no teacher or a plain one, with its networks, crops and batch; weights, images
and labels are random. On a CPU: one thread, its processor time, the process's largest resident memory; on a GPU: wall
time, and the largest memory that torch allocated. Median over --steps, after one that does not count.
"""

import multiprocessing
import resource
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from utils.environment import require_packages

require_packages()

import torch

from datasets import DATASETS
from datasets.base import DatasetSpec
from engine.logger import describe_environment
from engine.settings import load_recipe
from losses import build_kd, parse_losses
from losses.task import TaskLoss
from models import build_model
from scripts.study.analysis import style
from scripts.study.benchmarks.steps import step as training_step
from scripts.study.benchmarks.timing import medians
from scripts.study.experiments.definition import read_experiment
from train_student import RECIPES, StudentStep
from utils.errors import UserError, lookup, run_main
from utils.options import option, parse_flags


@dataclass(frozen=True)
class CostConfig:
    experiment: str = option("", "name of a file in scripts/study/experiments, or a path", positional=True)
    only: tuple[str, ...] = option((), "its runs to measure (default: those without an assisted teacher)")
    steps: int = option(7, "training steps that count", minimum=1)
    device: str = option("auto", "where to run", choices=("auto", "cpu", "cuda"))
    json: str = option("", "file for the result")


def measure(settings: Mapping[str, Any], classes: int, steps: int, device: str) -> dict[str, float]:
    """Seconds of a step, megabytes at the peak. Without a loss (kd none) there is no teacher either.

    In a fresh process: the peak is that of its whole life.
    """
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model, teacher = (build_model(settings["model"], settings["backbone"], classes) for _ in range(2))
    width = model.feature_channels
    kd = build_kd(settings["kd"], width, width, classes) if parse_losses(settings["kd"]) else None
    task = TaskLoss(model.supervision, settings.get("aux_weight"))
    step = StudentStep(model, task, teacher if kd else None, None, kd).to(device).train()
    shape = settings["batch_size"], *settings["crop_size"]
    image = torch.randn(shape[0], 3, *shape[1:], device=device)
    label = torch.randint(0, classes, shape, device=device)
    run = training_step(lambda _: step(image, label)["loss"], step)
    seconds = medians({"": run}, steps, 1, torch.device(device))[""]
    on_gpu = device == "cuda"
    peak = torch.cuda.max_memory_allocated() if on_gpu else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"seconds": seconds, "megabytes": peak / 1e6}


def main(argv: Sequence[str] | None = None) -> None:
    config = CostConfig(**parse_flags(CostConfig, __doc__, argv))
    experiment = read_experiment(config.experiment)
    recipe = load_recipe(experiment.recipe, "student", RECIPES)
    spec = DATASETS[recipe["dataset"]]
    if not isinstance(spec, DatasetSpec):
        raise UserError(f"the number of classes of {recipe['dataset']} is not known without its data")
    students, assisted = experiment.students, {name for name, arm in experiment.arms.items() if arm.train == "teacher"}
    plain = [n for n, arm in students.items() if not any(origin.arm in assisted for origin in arm.origins.values())]
    device = ("cuda" if torch.cuda.is_available() else "cpu") if config.device == "auto" else config.device
    costs = {}
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), max_tasks_per_child=1) as pool:
        for name in config.only or plain:
            settings = recipe | lookup(students, name, "student in --only").settings
            costs[name] = pool.submit(measure, settings, len(spec.names), config.steps, device).result()
            print(name, "{seconds:.3f} s, {megabytes:.0f} MB".format(**costs[name]), flush=True)
    if config.json:
        content = {"environment": describe_environment(torch.device(device)), "steps": config.steps, "costs": costs}
        style.save_json(content, Path(config.json).expanduser())


if __name__ == "__main__":
    run_main(main)
