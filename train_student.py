"""Train an image-only student, with distillation from a frozen teacher or (--kd none) as the baseline.

    python train_student.py --recipe toy --teacher-pretrained runs/teacher-toy-stdc-tf_efficientnet_lite0/last.pth
    torchrun --nproc-per-node 2 train_student.py --recipe voc --data VOCdevkit/VOC2012 --pretrained BASELINE \
        --teacher-pretrained TEACHER

The teacher may be label-assisted (train_teacher.py) or an ordinary network (train_student.py --kd none).
Settings: default < recipe < flag. The run goes to --save-dir: last.pth, best.pth, config.yaml, metrics.jsonl, events.
"""

from utils.environment import require_packages

require_packages()

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from datasets import require_classes, train_and_val
from datasets.base import DatasetSpec
from losses import WeightedLosses, build_kd, parse_losses
from losses.task import TaskLoss
from models import build_model
from models.checkpoints.imagenet import implied_settings
from models.checkpoints.loading import Loaded, begin, from_checkpoint
from models.checkpoints.reading import located
from models.label_noise import LabelNoise
from models.segmentor import Segmentor
from utils.errors import UserError, run_main
from utils.options import flag_of, parse_flags
from utils.pixels import CONVENTIONS, PixelConvention
from utils.training.configuration import StudentConfig, parse
from utils.training.script import train
from utils.training.step import Step
from utils.types import Draw, Output

LABEL_FLAGS = ("label_codes", "label_std", "label_scale", "code_std")  # what an assisted teacher is shown
RECIPES = Path(__file__).resolve().parent / "scripts" / "recipes"


class StudentStep(Step):
    """One training step of the student (the paper's distillation stage; LAD train_baseline.py:438-491).

    L = CE(z_S, y) + aux_weight * CE(a_S, y) + sum over losses i of w_i * KD_i(z_S, z_T)

    where z_T = teacher(image, noise(y)) in eval mode without gradient, or teacher(image) when it has no ``noise``.
    Without a teacher it is the baseline.
    """

    def __init__(
        self,
        model: Segmentor,
        task: TaskLoss,
        teacher: Segmentor | None = None,
        noise: LabelNoise | None = None,
        kd: WeightedLosses | None = None,
        pixels: tuple[PixelConvention, PixelConvention] | None = None,
    ) -> None:
        """pixels: the conventions of the image and of what the teacher is to be shown; None where they are one."""
        super().__init__()
        self.model, self.task, self.noise, self.kd = model, task, noise, kd
        self.pixels = pixels
        self.teacher = teacher and teacher.eval().requires_grad_(False)
        self.teacher_aux = any(getattr(loss, "reads_aux", False) for loss in kd.losses.values()) if kd else False

    def networks(self) -> list[nn.Module]:
        return [network for network in (self.model, self.teacher) if network is not None]

    def train(self, mode: bool = True) -> "StudentStep":
        """The teacher stays in eval mode."""
        super().train(mode)
        if self.teacher is not None:
            self.teacher.eval()
        return self

    def forward(
        self, image: Tensor, label: Tensor, draw: Draw | None = None, valid: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Normalised image ``[B, 3, H, W]``, label ``[B, H, W]`` -> loss, ce, aux, and each KD term, unweighted and as
        ``name_weighted``.

        Without a ``draw`` the noise follows torch's global random state. valid: of ``TaskLoss``.
        """
        output = self.model(image)
        terms = self.task(output, label, valid)
        loss = terms.pop("task")
        if self.teacher is not None:
            distilled, kd_terms = self.kd(output, self.teach(image, label, draw), label)
            loss = loss + distilled
            terms |= kd_terms | self.kd.weighted(kd_terms)
        return {"loss": loss, **terms}

    @torch.no_grad()
    def teach(self, image: Tensor, label: Tensor, draw: Draw | None) -> Output:
        if self.pixels is not None:
            own, other = self.pixels
            image = own.translate(image, other)
        if self.noise is not None:
            draw = draw or Draw(int(torch.randint(2**62, ())))
            image = self.noise.beside(image, label, draw)
        return self.teacher(image, with_aux=self.teacher_aux)


def load_teacher(config: StudentConfig, spec: DatasetSpec, label_flags: Sequence[str] = ()) -> Loaded:
    """Load the teacher; an assisted one has the label noise of the student phase.

    label_flags: those of the label plane that the user gave.

    Raises UserError: no teacher given, one of other classes, or label flags for one that sees the image only.
    """
    path = config.teacher_pretrained
    if not path:
        raise UserError(f"--kd {config.kd} needs --teacher-pretrained FILE (--kd none trains the baseline)")
    teacher = from_checkpoint(path, assisted=True)
    require_classes(teacher.card, spec, config.dataset, f"--teacher-pretrained {path}", config.other_class_names)
    if teacher.card.label_noise is None and label_flags:
        raise UserError(f"{', '.join(label_flags)}: --teacher-pretrained {path} sees the image only: leave them out")
    if teacher.card.label_noise is None:
        return teacher
    noise = {"codes": config.label_codes, "pixel_std": config.label_std, "code_std": config.code_std}
    return teacher.shown(**noise, scale=config.label_scale)


def build(config: StudentConfig, spec: DatasetSpec, label_flags: Sequence[str] = ()) -> tuple[StudentStep, None]:
    """Build the step; its network is shown the image only. label_flags: of ``load_teacher``."""
    model = build_model(config.model, config.backbone, len(spec.names))
    model.set_dropout(config.dropout)
    task = TaskLoss(
        model.supervision, config.aux_weight, config.label_smoothing, config.task_loss, config.ignored_in_mean
    )
    if not parse_losses(config.kd):
        if label_flags:
            raise UserError(f"{', '.join(label_flags)}: --kd none trains without a teacher: leave them out")
        return StudentStep(model, task), None
    loaded = load_teacher(config, spec, label_flags)
    teacher, pixels = loaded.model, (CONVENTIONS[config.pixels], loaded.convention)
    widths = model.main.head.out_channels, teacher.main.head.out_channels
    return StudentStep(model, task, teacher, loaded.noise, build_kd(config.kd, *widths, len(spec.names)), pixels), None


def main(argv: Sequence[str] | None = None) -> None:
    config = parse(StudentConfig, "student", __doc__, RECIPES, argv, implied_settings)
    given = parse_flags(StudentConfig, __doc__, argv)
    label_flags = [flag_of(name) for name in LABEL_FLAGS if name in given]
    train(config, train_and_val, partial(build, label_flags=label_flags), begin, located)


if __name__ == "__main__":
    run_main(main)
