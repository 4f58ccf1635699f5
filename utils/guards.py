"""What watches over a training loop: losses that are not finite, signals that ask it to stop."""

import math
import signal
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from utils.distributed import World, any_process
from utils.errors import UserError

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
STOPPED_STATUS = 3  # exit status of a run that a signal stopped after saving itself


class NotFinite(UserError):
    """The weights are lost with the loss; nothing may be saved."""


class FiniteWatch:
    """Stops at a non-finite loss. On CUDA it looks one iteration late, so that the host never waits for the device;
    ``check`` looks at once, before anything is validated or saved.
    """

    def __init__(self, message: Callable[[int, Mapping[str, float]], str]) -> None:
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

    def check(self) -> None:
        """Raises NotFinite when the last watched loss is not finite."""
        if self.pending is None:
            return
        iteration, names, values, copied = self.pending
        self.pending = None
        if copied is not None:
            copied.synchronize()
        terms = dict(zip(names, values.tolist(), strict=True))
        if not math.isfinite(terms["loss"]):
            raise NotFinite(self.message(iteration, terms))


class StopRequest:
    """Remembers SIGTERM, SIGINT and SIGUSR1 so that the loop can save before it ends."""

    def __init__(self) -> None:
        self.received = False
        self.previous = {number: signal.signal(number, self._receive) for number in STOP_SIGNALS}

    def _receive(self, number: int, frame: object) -> None:
        if self.received and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = True

    def requested(self, ask_everyone: bool, world: World) -> bool:
        """The same answer in every process; asked only at iterations where ``ask_everyone`` is true in all."""
        return ask_everyone and any_process(self.received, world.device)

    def restore(self) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)
