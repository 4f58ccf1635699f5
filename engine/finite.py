"""Notice losses and gradients that are not finite, without making the host wait for the device."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from utils.errors import UserError


class LossNotFinite(UserError):
    """A loss or gradient is not finite: training cannot go on, and nothing of it may be saved."""


class Watched(NamedTuple):
    """Hold the terms of an iteration while they are copied from the device."""

    iteration: int
    names: list[str]
    values: Tensor
    copied: torch.cuda.Event | None  # the end of the copy; None on the CPU


class FiniteWatch:
    """Stop this rank at a non-finite loss of its own. Ranks do not communicate about it.

    On CUDA ``watch`` looks one iteration late, so that the host does not wait for the device. ``check`` looks at once,
    before anything is validated or saved.
    """

    def __init__(self, explain: Callable[[str, int, Mapping[str, float]], str]) -> None:
        """explain: makes the message from what is not finite, the iteration, and its terms."""
        self.explain = explain
        self.pending: Watched | None = None
        self.last_iteration = 0
        self.last_terms: dict[str, float] = {}

    def watch(self, iteration: int, terms: Mapping[str, Tensor]) -> None:
        """Note the terms of an iteration.

        Raises:
            LossNotFinite: its loss, or on CUDA that of the iteration before, is not finite.
        """
        values = torch.stack([term.detach().float() for term in terms.values()])
        if not values.is_cuda:
            self.pending = Watched(iteration, list(terms), values, None)
            self.check()
            return
        values = values.to("cpu", non_blocking=True)
        copied = torch.cuda.Event()
        copied.record()
        self.check()
        self.pending = Watched(iteration, list(terms), values, copied)

    def check(self, tensors: Sequence[Tensor] = ()) -> None:
        """Check the last watched loss, and tensors that would be saved: a bad gradient has ruined them.

        Raises:
            LossNotFinite: the loss or a tensor is not finite.
        """
        self._check_pending()
        if not tensors:
            return
        largest = torch.stack(torch._foreach_norm(tensors, math.inf))
        if not largest.isfinite().all():
            raise LossNotFinite(self.explain("the gradient is not finite", self.last_iteration, self.last_terms))

    def _check_pending(self) -> None:
        """Check the loss that was watched last.

        Raises:
            LossNotFinite: it is not finite.
        """
        if self.pending is None:
            return
        iteration, names, values, copied = self.pending
        self.pending = None
        if copied is not None:
            copied.synchronize()
        self.last_iteration = iteration
        self.last_terms = dict(zip(names, values.tolist(), strict=True))
        if not math.isfinite(self.last_terms["loss"]):
            raise LossNotFinite(self.explain("the loss is not finite", iteration, self.last_terms))
