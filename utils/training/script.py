"""What every training script does besides building its Step."""

from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import torch

from utils.pixels import CONVENTIONS
from utils.training.class_weights import resolve_class_weights
from utils.training.configuration import TrainConfig
from utils.training.engine import fit
from utils.training.evaluation import Predictor
from utils.training.inputs import inputs_of
from utils.training.runs import Run, open_run
from utils.training.runtime import start
from utils.training.state import TrainingState


def train(config: TrainConfig, load: Callable, build: Callable, begin: Callable, located: Callable) -> None:
    """A training run, from its settings to its end.

    load: of data sets, ``train_and_val``. build: ``(config, spec) -> (step, noise)``; noise makes the planes that
    ``step.model`` is shown besides the image. begin: of networks, their initialisation and their checkpoints' card.
    located: of files, by what a setting says.
    """
    with start(config) as runtime:
        torch.manual_seed(config.seed)
        data = load(
            config.dataset,
            config.data,
            config.classes,
            augmentation=config.augmentation,
            crop_size=config.crop_size,
            pad_color=CONVENTIONS[config.pixels].pad_color,
            seed=config.seed,
            cache_gb=config.cache_gb,
        )
        config = resolve_class_weights(config, data.train.dataset, runtime)
        step, noise = build(config, data.spec)

        def usable(state: dict[str, Any]) -> None:
            TrainingState(step, Run(Path(), dict(state), None), config, runtime)

        run = open_run(config, runtime, lambda: inputs_of(config, data, located), usable)
        with closing(run):
            start_of = run.state["start"] if run.state else ""
            about = data.spec.names, data.spec.palette, config.dataset, config.data, config.pixels, noise
            card = begin(step.model, *about, config.pretrained_base, config.pretrained, start_of)
            predict = Predictor(step.model, CONVENTIONS[config.pixels], noise, runtime=runtime)
            fit(step, data, predict, run._replace(card=card.entries()), config, runtime)
