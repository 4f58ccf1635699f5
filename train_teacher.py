"""Train a label-assisted teacher: a light network that sees the image and a noised copy of the label.

    python train_teacher.py --recipe toy
    torchrun --nproc-per-node 2 train_teacher.py --recipe voc --data VOCdevkit/VOC2012

Settings: default < recipe < flag. The run goes to --save-dir: last.pth, best.pth, config.yaml, metrics.jsonl, events.
The mIoU in the log is that of the teacher, which reads the label: it is no segmentation result.
"""

from utils.environment import require_packages

require_packages()

from collections.abc import Sequence

import torch
from torch import Tensor

from datasets.base import DatasetSpec
from engine.class_weights import resolve_class_weights
from engine.fit_to_data import fit_to_data
from engine.resolve_settings import TRAINING_SCRIPTS, make_settings
from engine.run_folder import read_saved_settings
from engine.runtime import start_runtime
from engine.settings import TeacherConfig
from engine.step import Step
from engine.task_loss import build_task_loss
from engine.trainer import load_data, train
from losses import WeightedLosses, build_kd, parse_losses
from losses.consistency import Consistency
from losses.task import TaskLoss
from models import build_model
from models.label_noise import LabelNoise
from models.segmentor import Segmentor
from utils.entry import run_main
from utils.errors import UserError
from utils.options import parse_flags
from utils.pixels import CONVENTIONS
from utils.seeding import RowGenerator


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
        label_dropout: float = 0.0,
    ) -> None:
        """label_dropout: the share of images whose label plane is zero, in both paths."""
        super().__init__()
        self.model = model
        self.label_noise = noise
        self.task = task
        self.label_dropout = label_dropout
        self.paths = 1 if single_path else 2
        self.consistency = None
        if self.paths == 2 and distance.weights:
            self.consistency = Consistency(distance)

    def forward(
        self,
        image: Tensor,
        label: Tensor,
        generator: RowGenerator | None = None,
        avg_factor: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Return loss, task1 and, with two paths, task2 and consistency (unweighted) of one batch.

        image: normalised, ``[B, 3, H, W]``. label: ``[B, H, W]``. generator: draws the label noise. None: one is made
        from torch's global random state. avg_factor: see ``TaskLoss``.
        """
        if generator is None:
            generator = RowGenerator.from_global_state()
        inputs = [
            self.label_noise.add_planes(image, label, generator, path, self.label_dropout) for path in range(self.paths)
        ]
        outputs = [self.model(x) for x in inputs]
        terms = {f"task{p}": self.task(z, label, avg_factor)[0] for p, z in enumerate(outputs, 1)}
        loss = sum(terms.values())
        if self.consistency is not None:
            weighted, terms["consistency"] = self.consistency(*outputs, label)
            loss = loss + weighted
        return {"loss": loss, **terms}


def build_step(config: TeacherConfig, spec: DatasetSpec) -> TeacherStep:
    """Build the teacher's network, its label noise and its losses.

    Raises:
        UserError: an unknown architecture, backbone, loss or kind of label codes, or a bad option of one.
    """
    scale = config.label_scale
    if scale is None:
        scale = CONVENTIONS[config.pixels].label_scale
    noise = LabelNoise(len(spec.names), config.label_codes, config.label_std, scale, config.code_std)
    model = build_model(config.model, config.backbone, len(spec.names), in_channels=3 + noise.planes)
    model.set_dropout(config.dropout)
    width = model.feature_channels
    distance = build_kd(config.consistency, width, width, len(spec.names), "--consistency")
    task = build_task_loss(model, config)
    return TeacherStep(model, noise, task, distance, config.single_path, config.label_dropout)


def main(argv: Sequence[str] | None = None) -> None:
    flags = parse_flags(TeacherConfig, __doc__, argv, TRAINING_SCRIPTS)
    settings = make_settings(TeacherConfig, "teacher", flags)
    if settings.single_path and "consistency" in flags and parse_losses(settings.consistency, "--consistency"):
        raise UserError(f"--consistency {settings.consistency} compares two paths, and --single-path has one")
    with start_runtime(settings) as runtime:
        torch.manual_seed(settings.seed)
        saved = runtime.on_rank0(read_saved_settings, settings)  # of the run that is resumed, if there is one
        settings = fit_to_data(settings, flags, saved, runtime)
        data = load_data(settings)
        settings = resolve_class_weights(settings, data.train.dataset, saved, runtime)
        step = build_step(settings, data.spec)
        train(step, data, settings, runtime)


if __name__ == "__main__":
    run_main(main)
