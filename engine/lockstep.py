"""Stop a run: signals and failed loads end all ranks at the same batch."""

import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

import torch

from utils.distributed import all_reduce
from utils.errors import ANOTHER, UserError

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
STOPPED_STATUS = 3  # exit status of a run that a signal stopped after saving itself
DONE, MORE, STOP, FAILED = range(4)  # the votes of a rank before each batch; the largest of all ranks decides


class Stopped(SystemExit):
    """End the run, because a signal asked for it."""


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

    def __enter__(self) -> "StopRequest":
        return self

    def __exit__(self, *_: object) -> None:
        """Give the signals back to their handlers."""
        for number, handler in self.previous_handlers.items():
            signal.signal(number, handler)


class Lockstep:
    """Iterate over batches in lockstep: if one rank stops or cannot fetch a batch, every rank stops before that batch.

    A failed fetch, a request to stop, and a failure that the body hands over (``stop_all_ranks``) are shared. Of any
    other error in the body of the loop, the other ranks learn only when their next collective operation fails.

    all_ranks_stopped: True after a shared stop or failure. All ranks have then left the loop before the same batch,
    so they can save together. It is False after a normal end and after an error in the body.
    """

    def __init__(self, batches: Iterator, should_stop: Callable[[], bool] = lambda: False) -> None:
        """should_stop: whether this rank is asked to stop."""
        self.batches = batches
        self.should_stop = should_stop
        self.all_ranks_stopped = False
        self.failure: Exception | None = None  # of the body, on this rank

    def stop_all_ranks(self, error: Exception) -> None:
        """Have all ranks stop before the next batch, for an error of this rank that left nothing half done."""
        self.failure = error

    def __iter__(self) -> Iterator[Any]:
        """Yield the batches of this rank. A rank that has no more still votes until all ranks have none.

        Raises:
            Stopped: a rank was asked to stop.
            UserError: another rank failed. This rank's own failure is raised as it is.
        """
        while True:
            batch, failure = self._fetch()
            vote = torch.tensor(float(self._vote(batch, failure)))
            decision = int(all_reduce(vote, "max"))
            if decision == DONE:
                return
            self.all_ranks_stopped = decision in (STOP, FAILED)
            if decision == STOP:
                raise Stopped(STOPPED_STATUS)
            if decision == FAILED:
                raise failure or UserError(f"{ANOTHER} failed; its own message says why")
            if batch is not None:
                yield batch

    def _fetch(self) -> tuple[Any, Exception | None]:
        """Return the next batch, None after the last, and this rank's failure, None if there is none."""
        if self.failure is not None:
            return None, self.failure
        try:
            return next(self.batches, None), None
        except Exception as error:
            return None, error

    def _vote(self, batch: object, failure: Exception | None) -> int:
        """Return what this rank tells the others. A rank without a batch does not ask to stop."""
        if failure is not None:
            return FAILED
        if batch is None:
            return DONE
        return STOP if self.should_stop() else MORE
