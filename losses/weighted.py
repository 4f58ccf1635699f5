"""The weighted sum of distillation losses, between student and teacher or between the two paths of a teacher."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from losses.interface import get_part_weights, reads_auxiliary_logits
from utils.bilinear import resize
from utils.errors import UserError
from utils.precision import widen_to_float32
from utils.types import Output


class WeightedLosses(nn.Module):
    """Compute several distillation losses and their weighted sum, at least in float32.

    The teacher's logits and features are resized to the student's. The teacher gets no gradient, even if a loss does
    not stop it: in the teacher's consistency, one network is both student and teacher. A loss of weight 0 is computed,
    too, so that it is logged.

    A loss returns its value or a dict of parts. The value is then the sum of the parts, weighted by the attribute
    ``part_weights`` of the loss.
    """

    def __init__(self, losses: Mapping[str, nn.Module], weights: Mapping[str, float]) -> None:
        super().__init__()
        self.losses = nn.ModuleDict(losses)
        self.weights = dict(weights)

    def forward(self, student: Output, teacher: Output, label: Tensor) -> tuple[Tensor | float, dict[str, Tensor]]:
        """Return the weighted sum (0.0 without losses) and all unweighted terms by name; parts are ``name_part``.

        label: ``[B, H, W]``, at the size of the image.

        Raises:
            UserError: teacher and student differ in the number of classes, a loss does not return a single number, or
                ``part_weights`` lacks a part.
        """
        student_classes = student.logits.shape[1]
        teacher_classes = teacher.logits.shape[1]
        if student_classes != teacher_classes:
            counts = f"the student has {student_classes} classes, its teacher {teacher_classes}"
            raise UserError(f"{counts}: they must be the same")
        with torch.autocast(student.logits.device.type, enabled=False):
            student = student.map(widen_to_float32)
            teacher = _match_student(teacher, student)
            terms: dict[str, Tensor] = {}
            for name, loss in self.losses.items():
                value = loss(student, teacher, label)
                if isinstance(value, Mapping):
                    terms |= {f"{name}_{part}": term for part, term in value.items()}
                    value = _sum_parts(name, loss, value)
                _require_number(name, value)
                terms[name] = value
        total = sum((weight * terms[name] for name, weight in self.weights.items()), start=0.0)
        return total, terms

    def reads_auxiliary_logits(self) -> bool:
        """Return whether a loss reads the auxiliary logits."""
        return any(reads_auxiliary_logits(loss) for loss in self.losses.values())

    def apply_weights(self, terms: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return what each of the unweighted terms adds to the sum, as ``name_weighted``."""
        factors = dict(self.weights)
        for name, loss in self.losses.items():
            for part, weight in get_part_weights(loss).items():
                factors[f"{name}_{part}"] = self.weights[name] * weight
        return {f"{name}_weighted": factors[name] * term for name, term in terms.items()}


def _match_student(teacher: Output, student: Output) -> Output:
    """Return the teacher's output in float32, without gradient, and resized to the student's logits and features."""
    teacher = teacher.map(widen_to_float32).map(Tensor.detach)
    logits = resize(teacher.logits, student.logits.shape[-2:])
    feat = resize(teacher.feat, student.feat.shape[-2:])
    return teacher._replace(logits=logits, feat=feat)


def _sum_parts(name: str, loss: nn.Module, parts: Mapping[str, Tensor]) -> Tensor:
    """Sum the parts of a loss with their weights.

    Raises:
        UserError: a part has no weight.
    """
    weights = get_part_weights(loss)
    if parts.keys() - weights.keys():
        raise UserError(f"the loss {name} returned {', '.join(parts)}: part_weights must have all")
    return sum(weights[part] * term for part, term in parts.items())


def _require_number(name: str, value: object) -> None:
    """Check that the value of a loss is a single number.

    Raises:
        UserError: the value is not a tensor without dimensions.
    """
    if isinstance(value, Tensor) and value.ndim == 0:
        return
    description = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
    raise UserError(f"the loss {name} returned no single number but {description}")
