"""What watches over a training loop: losses that are not finite, batches too small, failures and signals in one of
several processes."""

import math
import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from engine.runtime import Runtime
from utils.distributed import all_reduce
from utils.errors import ANOTHER, UserError
from utils.types import Draw

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
STOPPED_STATUS = 3  # exit status of a run that a signal stopped after saving itself
DONE, MORE, STOP, FAILED = range(4)  # what a process has to say before each batch; the largest counts


class NotFinite(UserError):
    """The weights are lost; nothing may be saved."""


class Stopped(SystemExit):
    """A signal asked to stop."""


def forward(step: nn.Module, image: Tensor, label: Tensor, draw: Draw, valid: Tensor) -> dict[str, Tensor]:
    """One forward pass of a step. Raises UserError: BatchNorm on a single value."""
    try:
        return step(image, label, draw, valid)
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise UserError(
            f"BatchNorm sees one value per channel: this network or a loss pools to a 1x1 map, which needs at least 2 "
            f"images a process at a time (here {len(image)}): raise --batch-size, lower --accumulate, start fewer "
            f"processes, or --freeze-bn"
        ) from error


class FiniteWatch:
    """Stops at a non-finite loss. On CUDA it looks one iteration late, so that the host never waits for the device;
    ``check`` looks at once, before anything is validated or saved.
    """

    def __init__(self, message: Callable[[str, int, Mapping[str, float]], str]) -> None:
        self.message, self.pending, self.seen = message, None, (0, {})

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

    def check(self, state: Sequence[Tensor] = ()) -> None:
        """Raises NotFinite when the last watched loss is not finite, or one of the tensors that are to be saved."""
        if self.pending is not None:
            iteration, names, values, copied = self.pending
            self.pending = None
            if copied is not None:
                copied.synchronize()
            self.seen = iteration, dict(zip(names, values.tolist(), strict=True))
            if not math.isfinite(self.seen[1]["loss"]):
                raise NotFinite(self.message("the loss is not finite", *self.seen))
        if state and not torch.stack(torch._foreach_norm(state, math.inf)).isfinite().all():
            raise NotFinite(self.message("the gradient is not finite", *self.seen))


def hear(handler: Callable[[int, Any], None]) -> dict[int, Any]:
    """Have ``handler`` called at the signals that ask to stop; what handled each before.

    nohup has SIGHUP ignored: that is left as it is.
    """
    numbers = [n for n in STOP_SIGNALS if n != signal.SIGHUP or signal.getsignal(n) != signal.SIG_IGN]
    return {number: signal.signal(number, handler) for number in numbers}


class StopRequest:
    """Remembers the signals that ask to stop, so that the loop can save before it ends.

    The end of torchrun's agent is one of them: nobody would watch over this process any more.
    """

    def __init__(self) -> None:
        self.received = False
        self.agent = os.getppid() if "TORCHELASTIC_RUN_ID" in os.environ else None
        self.previous = hear(self._receive)

    def _receive(self, number: int, frame: object) -> None:
        if self.received and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = True

    def __call__(self) -> bool:
        """Whether this process was asked to stop."""
        return self.received or self.agent not in (None, os.getppid())

    def leave(self, runtime: Runtime) -> None:
        """Before a process ends as asked: have the agent that restarts failed ones end, too."""
        first = os.environ.get("LOCAL_RANK") == "0" and os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0") != "0"
        if first and self.agent == os.getppid():
            os.kill(self.agent, signal.SIGTERM)
        runtime.barrier()

    def restore(self) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)


class InStep:
    """Batches of all processes in step: they leave the loop before the same one, whatever happens in one of them.

    asked: whether this process is asked to stop. ``left``: all processes have left the loop before its end.
    """

    def __init__(self, batches: Iterator, asked: Callable[[], bool] = lambda: False) -> None:
        self.batches, self.asked, self.left = batches, asked, False

    def __iter__(self) -> Iterator[Any]:
        """Raises Stopped, or this process's failure, or a UserError when it is another's, in every process."""
        while True:
            batch = problem = None
            try:
                batch = next(self.batches, None)
            except Exception as error:
                problem = error
            own = FAILED if problem else DONE if batch is None else STOP if self.asked() else MORE
            agreed = int(all_reduce(torch.tensor(float(own)), "max"))
            if agreed == DONE:
                return
            self.left = agreed > MORE
            if agreed == STOP:
                raise Stopped(STOPPED_STATUS)
            if agreed == FAILED:
                raise problem or UserError(f"{ANOTHER} failed; its own message says why")
            if batch is not None:
                yield batch
