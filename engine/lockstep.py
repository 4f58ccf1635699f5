"""Stop a run. Signals and failed loads end all ranks at the same batch; a non-finite loss ends its own rank."""

import math
import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from utils.distributed import all_reduce
from utils.errors import ANOTHER, UserError

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
STOPPED_STATUS = 3  # exit status of a run that a signal stopped after saving itself
DONE, MORE, STOP, FAILED = range(4)  # the votes of a rank before each batch; the largest of all ranks decides


class LossNotFinite(UserError):
    """A loss or gradient is not finite: training cannot go on, and nothing of it may be saved."""


class Stopped(SystemExit):
    """End the run, because a signal asked for it."""


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


def handle_stop_signals(handler: Callable[[int, Any], None]) -> dict[int, Any]:
    """Call ``handler`` at the signals that ask to stop, from now on. Return the handlers that were there before.

    SIGHUP is left alone where it is ignored, as nohup does.
    """
    numbers = [n for n in STOP_SIGNALS if n != signal.SIGHUP or signal.getsignal(n) != signal.SIG_IGN]
    return {number: signal.signal(number, handler) for number in numbers}


class StopRequest:
    """Remember the signals that ask to stop, so that the loop can save before it ends.

    The end of torchrun's agent counts as such a signal, because nobody watches over this process any more.
    """

    def __init__(self) -> None:
        self.received = False
        self.agent = os.getppid() if "TORCHELASTIC_RUN_ID" in os.environ else None
        self.previous_handlers = handle_stop_signals(self._receive)

    def _receive(self, number: int, frame: object) -> None:
        """Note a signal. A second Ctrl-C ends the process at once."""
        if self.received and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = True

    def __call__(self) -> bool:
        """Return whether this process was asked to stop."""
        return self.received or self.agent not in (None, os.getppid())

    def end_agent(self) -> None:
        """End torchrun's agent where it would start this process again."""
        is_first = os.environ.get("LOCAL_RANK") == "0"
        agent_restarts = os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0") != "0"
        if is_first and agent_restarts and self.agent == os.getppid():
            os.kill(self.agent, signal.SIGTERM)

    def restore_handlers(self) -> None:
        """Give the signals back to their handlers."""
        for number, handler in self.previous_handlers.items():
            signal.signal(number, handler)


class Lockstep:
    """Iterate over batches in lockstep: if one rank stops or cannot fetch a batch, every rank stops before that batch.

    A failed fetch, a request to stop, and a failure that the body hands over (``fail_before_next``) are shared. Of any
    other error in the body of the loop, the other ranks learn only when their next collective operation fails.

    left_together: True after a shared stop or failure. All ranks have then left the loop before the same batch,
    so they can save together. It is False after a normal end and after an error in the body.
    """

    def __init__(self, batches: Iterator, should_stop: Callable[[], bool] = lambda: False) -> None:
        """should_stop: whether this rank is asked to stop."""
        self.batches = batches
        self.should_stop = should_stop
        self.left_together = False
        self.failure: Exception | None = None  # of the body, on this rank

    def fail_before_next(self, error: Exception) -> None:
        """Have all ranks stop before the next batch, for an error of this rank that left nothing half done."""
        self.failure = error

    def __iter__(self) -> Iterator[Any]:
        """Yield the batches of this rank. A rank that has no more still votes until all ranks have none.

        Raises:
            Stopped: a rank was asked to stop.
            UserError: another rank failed. This rank's own failure is raised as it is.
        """
        while True:
            batch = None
            failure = self.failure
            if failure is None:
                try:
                    batch = next(self.batches, None)
                except Exception as error:
                    failure = error
            vote = torch.tensor(float(self._vote(batch, failure)))
            decision = int(all_reduce(vote, "max"))
            if decision == DONE:
                return
            self.left_together = decision in (STOP, FAILED)
            if decision == STOP:
                raise Stopped(STOPPED_STATUS)
            if failure is not None:
                raise failure
            if decision == FAILED:
                raise UserError(f"{ANOTHER} failed; its own message says why")
            if batch is not None:
                yield batch

    def _vote(self, batch: object, failure: Exception | None) -> int:
        """Return what this rank tells the others. A rank without a batch does not ask to stop."""
        if failure is not None:
            return FAILED
        if batch is None:
            return DONE
        return STOP if self.should_stop() else MORE
