r"""Train an image-only student, with distillation from a frozen teacher or (--kd none) as the baseline.

    python train_student.py --recipe toy --teacher-pretrained runs/teacher-toy-stdc-tf_efficientnet_lite0/last.pth
    torchrun --nproc-per-node 2 train_student.py --recipe voc --data VOCdevkit/VOC2012 --pretrained BASELINE \
        --teacher-pretrained TEACHER

The teacher may be label-assisted (train_teacher.py) or an ordinary network (train_student.py --kd none).
Settings: default < recipe < flag. The run goes to --save-dir: last.pth, best.pth, config.yaml, metrics.jsonl, events.
"""

from utils.environment import require_packages

require_packages()

from collections.abc import Sequence

import torch
from torch import Tensor

from datasets.base import DatasetSpec
from datasets.network_classes import require_classes
from engine.class_weights import resolve_class_weights
from engine.fit_to_data import fit_to_data
from engine.resolve_settings import TRAINING_SCRIPTS, make_settings
from engine.run_folder import read_saved_settings
from engine.runtime import start_runtime
from engine.settings import StudentConfig
from engine.step import Step
from engine.task_loss import build_task_loss
from engine.trainer import load_data, train
from losses import WeightedLosses, build_kd, parse_losses
from losses.task import TaskLoss
from models import build_model
from models.checkpoints.loading import LoadedNetwork, from_checkpoint, read_network_name
from models.label_noise import LabelNoise
from models.segmentor import Segmentor
from models.user_networks import is_user_network
from utils.entry import run_main
from utils.errors import UserError
from utils.options import get_flag, parse_flags
from utils.pixels import CONVENTIONS, PixelConvention
from utils.seeding import RowGenerator
from utils.types import Output

LABEL_FLAGS = ("label_codes", "label_std", "label_scale", "code_std")  # what an assisted teacher is shown


class StudentStep(Step):
    """One training step of the student (the paper's distillation stage; LAD train_baseline.py:438-491).

    L = CE(z_S, y) + aux_weight * CE(a_S, y) + sum over losses i of w_i * KD_i(z_S, z_T)

    where z_T = teacher(image, noise(y)) in eval mode without gradient, or teacher(image) where the teacher sees the
    image only. Without a teacher it is the baseline.
    """

    network_names = ("model", "teacher")

    def __init__(
        self,
        model: Segmentor,
        task: TaskLoss,
        teacher: Segmentor | None = None,
        teacher_noise: LabelNoise | None = None,
        kd: WeightedLosses | None = None,
        pixels: PixelConvention | None = None,
        teacher_pixels: PixelConvention | None = None,
    ) -> None:
        """Freeze the teacher and hold the losses.

        teacher_noise: makes the label planes that the teacher sees beside the image. pixels, teacher_pixels: the
        conventions of the student's and of the teacher's input. Without them the teacher sees the same image.
        """
        super().__init__()
        self.model = model
        self.task = task
        self.teacher_noise = teacher_noise
        self.kd = kd
        self.pixels = pixels
        self.teacher_pixels = teacher_pixels
        self.teacher = None
        if teacher is not None:
            self.teacher = teacher.eval().requires_grad_(False)
        self.needs_teacher_aux = kd is not None and kd.reads_auxiliary_logits()

    def train(self, mode: bool = True) -> "StudentStep":
        """Put the step into train mode, but for the teacher, which stays in eval mode."""
        super().train(mode)
        if self.teacher is not None:
            self.teacher.eval()
        return self

    def forward(
        self,
        image: Tensor,
        label: Tensor,
        generator: RowGenerator | None = None,
        avg_factor: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Return loss, the terms of ``TaskLoss``, and each KD term as ``name`` and ``name_weighted``.

        image: normalised, ``[B, 3, H, W]``. label: ``[B, H, W]``. generator: draws the label noise. None: one is made
        from torch's global random state. avg_factor: see ``TaskLoss``.
        """
        output = self.model(image)
        loss, task_terms = self.task(output, label, avg_factor)
        if self.teacher is None:
            return {"loss": loss, **task_terms}
        teacher_output = self.teach(image, label, generator)
        distilled, kd_terms = self.kd(output, teacher_output, label)
        weighted_terms = self.kd.apply_weights(kd_terms)
        return {"loss": loss + distilled, **task_terms, **kd_terms, **weighted_terms}

    @torch.no_grad()
    def teach(self, image: Tensor, label: Tensor, generator: RowGenerator | None) -> Output:
        """Return the teacher's output for a batch, in its own pixel convention and with its label noise."""
        if self.pixels is not None:
            image = self.pixels.translate(image, self.teacher_pixels)
        if self.teacher_noise is not None:
            if generator is None:
                generator = RowGenerator.from_global_state()
            image = self.teacher_noise.add_planes(image, label, generator)
        return self.teacher(image, with_aux=self.needs_teacher_aux)


def load_teacher(config: StudentConfig, spec: DatasetSpec, label_flags: Sequence[str]) -> LoadedNetwork:
    """Load the teacher; an assisted one gets the label noise of the student phase.

    label_flags: the flags of the label plane that the user gave.

    Raises:
        UserError: no teacher is given, it cannot be read, it has other classes, or it sees the image only and label
            flags were given.
    """
    path = config.teacher_pretrained
    if not path:
        raise UserError(f"--kd {config.kd} needs --teacher-pretrained FILE (--kd none trains the baseline)")
    teacher_model = config.teacher_model
    if not teacher_model and is_user_network(config.model) and read_network_name(path) == config.model:
        teacher_model = config.model
    teacher = from_checkpoint(path, assisted=True, model=teacher_model, model_flag="--teacher-model")
    require_classes(teacher.card, spec, config.dataset, f"--teacher-pretrained {path}", config.other_class_names)
    if teacher.card.reads_label:
        return teacher.with_label_noise(
            codes=config.label_codes,
            pixel_std=config.label_std,
            code_std=config.code_std,
            scale=config.label_scale,
        )
    if label_flags:
        raise UserError(f"{', '.join(label_flags)}: --teacher-pretrained {path} sees the image only: leave them out")
    return teacher


def build_step(config: StudentConfig, spec: DatasetSpec, label_flags: Sequence[str] = ()) -> StudentStep:
    """Build the student's network and losses, and load its teacher unless it is the baseline.

    label_flags: the flags of the label plane that the user gave.

    Raises:
        UserError: an unknown architecture, backbone or loss, a bad option of one, or a teacher that does not fit.
    """
    model = build_model(config.model, config.backbone, len(spec.names))
    model.set_dropout(config.dropout)
    task = build_task_loss(model, config)
    if not parse_losses(config.kd):
        if label_flags:
            raise UserError(f"{', '.join(label_flags)}: --kd none trains without a teacher: leave them out")
        if config.teacher_pretrained:
            raise UserError(f"--teacher-pretrained {config.teacher_pretrained}: --kd none trains without a teacher")
        return StudentStep(model, task)
    loaded = load_teacher(config, spec, label_flags)
    teacher = loaded.model
    kd = build_kd(config.kd, model.feature_channels, teacher.feature_channels, len(spec.names))
    teacher_noise = loaded.build_label_noise()
    return StudentStep(model, task, teacher, teacher_noise, kd, CONVENTIONS[config.pixels], loaded.convention)


def main(argv: Sequence[str] | None = None) -> None:
    flags = parse_flags(StudentConfig, __doc__, argv, TRAINING_SCRIPTS)
    settings = make_settings(StudentConfig, "student", flags)
    label_flags = [get_flag(name) for name in LABEL_FLAGS if name in flags]
    with start_runtime(settings) as runtime:
        torch.manual_seed(settings.seed)
        saved = runtime.on_rank0(read_saved_settings, settings)  # of the run that is resumed, if there is one
        settings = fit_to_data(settings, flags, saved, runtime)
        data = load_data(settings)
        settings = resolve_class_weights(settings, data.train.dataset, saved, runtime)
        step = build_step(settings, data.spec, label_flags)
        train(step, data, settings, runtime)


if __name__ == "__main__":
    run_main(main)
