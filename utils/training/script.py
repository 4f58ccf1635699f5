"""What every training script does besides building its Step."""

from collections.abc import Callable
from typing import Any

import torch

from utils.pixels import CONVENTIONS
from utils.training.configuration import TrainConfig
from utils.training.engine import fit
from utils.training.evaluation import Predictor
from utils.training.runs import open_run
from utils.training.runtime import start


def train(config: TrainConfig, load: Callable[..., Any], build: Callable[..., Any], begin: Callable[..., Any]) -> None:
    """A training run, from its settings to its end.

    load: ``config -> (spec, train, val)``, a data set's record, endless training sequence, and validation images.
    build: ``(config, spec) -> (step, noise)``; noise makes the planes that ``step.model`` is shown besides the image.
    begin: ``(model, spec, config, noise, state) -> card``, initialises the network unless a state is continued.
    """
    with start(config) as runtime:
        torch.manual_seed(config.seed)
        data = load(config)
        step, noise = build(config, data.spec)
        run = open_run(config, runtime)
        run = run._replace(card=begin(step.model, data.spec, config, noise, run.state))
        predict = Predictor(step.model, CONVENTIONS[config.pixels], noise, runtime=runtime)
        fit(step, data, predict, run, config, runtime)
