"""Distillation losses by name: ``build_kd("cwd=3,kd=1:tau=4", ...)``. A new one is a file and a line in LOSSES."""

import inspect
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from losses.cirkd import CIRKD
from losses.cirkd_memory import CIRKDPixel, CIRKDRegion, share_projector
from losses.cwd import CWD
from losses.dist import DIST
from losses.kd import KD
from utils.errors import UserError, lookup, nearest
from utils.types import Output

LOSSES: dict[str, type[nn.Module]] = {
    "kd": KD,
    "cwd": CWD,
    "dist": DIST,
    "cirkd": CIRKD,
    "cirkd_pixel": CIRKDPixel,
    "cirkd_region": CIRKDRegion,
}


def parse_losses(text: str, flag: str = "--kd") -> dict[str, tuple[float, dict[str, float]]]:
    """``"cwd=3,kd=1:tau=4"`` -> ``{"cwd": (3.0, {}), "kd": (1.0, {"tau": 4.0})}``; ``"none"`` -> ``{}``.

    Raises:
        UserError: an unknown loss or option, a value that is no number, a name twice; each names ``flag``.
    """
    losses: dict[str, tuple[float, dict[str, float]]] = {}
    for part in text.split(",") if text.strip() != "none" else []:
        (name, weight), *options = [item.strip().partition("=")[::2] for item in part.split(":")]
        known = set(inspect.signature(lookup(LOSSES, name, f"loss in {flag}")).parameters)
        known -= {"student_channels", "teacher_channels", "num_classes"}
        for option, _ in options:
            if option not in known:
                raise UserError(f"{flag} {text}: {name} has no option {option!r}{nearest(option, known)}")
        if name in losses:
            raise UserError(f"{flag} {text}: {name} is given twice")
        try:
            losses[name] = float(weight), {option: float(value) for option, value in options}
        except ValueError:
            raise UserError(f"{flag} {text}: write name=weight, e.g. cwd=3 or kd=1:tau=4") from None
    return losses


class WeightedLosses(nn.Module):
    """Several distillation losses with their weights, in full precision, on maps of the student's size."""

    def __init__(self, losses: Mapping[str, nn.Module], weights: Mapping[str, float]) -> None:
        super().__init__()
        self.losses = nn.ModuleDict(losses)
        self.weights = dict(weights)

    def forward(self, student: Output, teacher: Output, label: Tensor) -> tuple[Tensor | float, dict[str, Tensor]]:
        """The weighted sum (0.0 without losses), and every unweighted term by name."""
        with torch.autocast(student.logits.device.type, enabled=False):
            student, teacher = student.full_precision(), teacher.full_precision()
            teacher = teacher._replace(
                logits=_resize(teacher.logits, student.logits), feat=_resize(teacher.feat, student.feat)
            )
            terms = {name: loss(student, teacher, label) for name, loss in self.losses.items()}
        return sum((self.weights[name] * term for name, term in terms.items()), start=0.0), terms


def _resize(teacher: Tensor, student: Tensor) -> Tensor:
    size = student.shape[-2:]
    return teacher if teacher.shape[-2:] == size else F.interpolate(teacher, size, mode="bilinear")


def build_kd(
    text: str, student_channels: int, teacher_channels: int, num_classes: int, flag: str = "--kd"
) -> WeightedLosses:
    """The losses of a ``--kd`` value; channels are those of the networks' ``feat``."""
    parsed = parse_losses(text, flag)
    losses = {
        name: LOSSES[name](student_channels, teacher_channels, num_classes, **options)
        for name, (_, options) in parsed.items()
    }
    share_projector(losses.values())
    return WeightedLosses(losses, {name: weight for name, (weight, _) in parsed.items()})
