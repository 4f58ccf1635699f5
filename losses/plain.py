"""Losses that learn nothing: a function of one map of each network."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from torch import Tensor, nn

from utils.types import Output


class Function(nn.Module):
    """``function(student map, teacher map)`` as a module; the map is a field of ``Output``."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor], field: str) -> None:
        super().__init__()
        self.function, self.field = function, field

    def forward(self, student: Output, teacher: Output, label: Tensor) -> Tensor:
        return self.function(getattr(student, self.field), getattr(teacher, self.field))


class Plain(NamedTuple):
    """Called as the classes of other losses are; its options are the function's, behind the two maps."""

    function: Callable[..., Tensor]
    field: str  # "logits" or "feat"

    def __call__(self, student_channels: int, teacher_channels: int, num_classes: int, **options: float) -> Function:
        return Function(partial(self.function, **options), self.field)
