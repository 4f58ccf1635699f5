"""What watches over a training loop: losses that are not finite, batches too small, signals that ask it to stop."""

import math
import signal
import time
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from utils.errors import UserError
from utils.training.runtime import Runtime
from utils.types import Draw

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
STOP_SECONDS = 1.0  # between two looks at the signals of all processes
STOPPED_STATUS = 3  # exit status of a run that a signal stopped after saving itself


class NotFinite(UserError):
    """The weights are lost; nothing may be saved."""


def forward(step: nn.Module, image: Tensor, label: Tensor, draw: Draw, valid: Tensor) -> dict[str, Tensor]:
    """One forward pass of a step.

    Raises:
        UserError: BatchNorm on a single value.
    """
    try:
        return step(image, label, draw, valid)
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise UserError(
            f"BatchNorm sees one value per channel: this network pools to a 1x1 map, which needs at least 2 images a "
            f"process (here {len(image)}); raise --batch-size, use fewer processes, or --freeze-bn"
        ) from error


class FiniteWatch:
    """Stops at a non-finite loss. On CUDA it looks one iteration late, so that the host never waits for the device;
    ``check`` looks at once, before anything is validated or saved.
    """

    def __init__(self, message: Callable[[str, int, Mapping[str, float]], str]) -> None:
        self.message, self.pending = message, None

    def watch(self, iteration: int, terms: Mapping[str, Tensor]) -> None:
        names = list(terms)
        values = torch.stack([terms[name].detach().float() for name in names])
        copied = None
        if values.is_cuda:
            values, copied = values.to("cpu", non_blocking=True), torch.cuda.Event()
            copied.record()
            self.check()
        self.pending = iteration, names, values, copied
        if copied is None:
            self.check()

    def check(self, weights: Sequence[Tensor] = ()) -> None:
        """Raises NotFinite when the last watched loss, or one of the weights it led to, is not finite."""
        if self.pending is not None:
            iteration, names, values, copied = self.pending
            self.pending = None
            if copied is not None:
                copied.synchronize()
            self.seen = iteration, dict(zip(names, values.tolist(), strict=True))
            if not math.isfinite(self.seen[1]["loss"]):
                raise NotFinite(self.message("the loss is not finite", *self.seen))
        if weights and not torch.stack(torch._foreach_norm(weights, math.inf)).isfinite().all():
            raise NotFinite(self.message("the gradient is not finite", *self.seen))


class StopRequest:
    """Remembers SIGTERM, SIGINT and SIGUSR1 so that the loop can save before it ends."""

    def __init__(self, start: int = 0) -> None:
        self.received, self.asked, self.last, self.next = False, time.monotonic(), start, start
        self.previous = {number: signal.signal(number, self._receive) for number in STOP_SIGNALS}

    def _receive(self, number: int, frame: object) -> None:
        if self.received and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = True

    def requested(self, done: int, runtime: Runtime) -> bool:
        """Whether any process was asked to stop: the same answer in all, at iterations that all know.

        They are STOP_SECONDS apart by the pace of the slowest process, so that a launcher's patience is not used up.
        """
        if runtime.size == 1 or done < self.next:
            return self.received and runtime.size == 1
        pace = (time.monotonic() - self.asked) / max(done - self.last, 1)
        received, pace = runtime.reduce(torch.tensor([float(self.received), pace]), "max").tolist()
        self.asked, self.last, self.next = time.monotonic(), done, done + max(1, int(STOP_SECONDS / max(pace, 1e-9)))
        return bool(received)

    def restore(self) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)
