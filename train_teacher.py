"""Train a label-assisted teacher: a light network that sees the image and a noised copy of the label.

    python train_teacher.py --recipe toy
    torchrun --nproc-per-node 2 train_teacher.py --recipe voc --data VOCdevkit/VOC2012

Settings: default < recipe < flag. The run goes to --save-dir: last.pth, best.pth, config.yaml, metrics.jsonl, events.
Its mIoU is that of a network that reads the label: it measures the teacher, not segmentation.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from datasets import train_and_val
from datasets.base import DatasetSpec
from losses import WeightedLosses, build_kd
from losses.consistency import Consistency
from losses.task import TaskLoss
from models import build_model
from models.checkpoints.imagenet import implied_settings
from models.checkpoints.loading import begin
from models.checkpoints.reading import located
from models.label_noise import LabelNoise
from models.segmentor import Segmentor
from utils.errors import run_main
from utils.pixels import CONVENTIONS
from utils.training.class_weights import parse_class_weights
from utils.training.configuration import TeacherConfig, parse
from utils.training.script import train
from utils.training.step import Step
from utils.types import Draw

RECIPES = Path(__file__).resolve().parent / "scripts" / "recipes"


class TeacherStep(Step):
    """One training step of LAD's teacher (the paper's dual-path training; LAD train_baseline.py:387-434).

    L = sum over paths p of [CE(z_p, y) + aux_weight * CE(a_p, y)] + w * [D(z_1, sg z_2) + D(z_2, sg z_1)]

    where z_p, a_p = model(image, noise_p(y)): each path has its own codes and pixel noise. Two forward passes, not one
    of a doubled batch: BatchNorm statistics are per path. A single path has no D.
    """

    def __init__(
        self,
        model: Segmentor,
        noise: LabelNoise,
        task: TaskLoss,
        distance: WeightedLosses,
        single_path: bool = False,
    ) -> None:
        super().__init__()
        self.model, self.noise, self.task = model, noise, task
        self.paths = 1 if single_path else 2
        self.consistency = Consistency(distance) if self.paths == 2 and distance.weights else None

    def forward(
        self, image: Tensor, label: Tensor, draw: Draw | None = None, labelled_per_rank: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Normalised image ``[B, 3, H, W]``, label ``[B, H, W]`` -> loss, task1, task2, consistency (unweighted).

        Without a ``draw`` the noise follows torch's global random state. labelled_per_rank: see ``TaskLoss``.
        """
        draw = draw or Draw(int(torch.randint(2**62, ())))
        outputs = [self.model(self.noise.beside(image, label, draw, path)) for path in range(self.paths)]
        terms = {f"task{p}": self.task(z, label, labelled_per_rank)["task"] for p, z in enumerate(outputs, 1)}
        loss = sum(terms.values())
        if self.consistency is not None:
            weighted, terms["consistency"] = self.consistency(*outputs, label)
            loss = loss + weighted
        return {"loss": loss, **terms}


def build(config: TeacherConfig, spec: DatasetSpec) -> tuple[TeacherStep, LabelNoise]:
    """The step, and the noise that its network is shown."""
    scale = CONVENTIONS[config.pixels].label_scale if config.label_scale is None else config.label_scale
    noise = LabelNoise(len(spec.names), config.label_codes, config.label_std, scale, config.code_std)
    model = build_model(config.model, config.backbone, len(spec.names), in_channels=3 + noise.planes)
    model.set_dropout(config.dropout)
    width = model.main.head.out_channels
    distance = build_kd(config.consistency, width, width, len(spec.names), "--consistency")
    task = TaskLoss(
        model.supervision,
        config.aux_weight,
        config.label_smoothing,
        config.task_loss,
        config.ignored_in_mean,
        parse_class_weights(config.class_weights),
    )
    return TeacherStep(model, noise, task, distance, config.single_path), noise


def main(argv: Sequence[str] | None = None) -> None:
    config = parse(TeacherConfig, "teacher", __doc__, RECIPES, argv, implied_settings)
    train(config, train_and_val, build, begin, located)


if __name__ == "__main__":
    run_main(main)
