"""Stop the runner of experiments at a deadline or a signal."""

import signal
import time

from engine.lockstep import handle_stop_signals


class StopCondition:
    """Say when to stop: from the deadline on, and after a signal that arrives while this is entered."""

    def __init__(self, max_minutes: float | None = None) -> None:
        self.deadline = None if max_minutes is None else time.monotonic() + 60 * max_minutes
        self.signalled = False

    def __enter__(self) -> "StopCondition":
        self.handlers_before = handle_stop_signals(self._note_signal)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.handlers_before.items():
            signal.signal(number, handler)

    def _note_signal(self, number: int, frame: object) -> None:
        """Remember that a signal asked to stop. Python calls this when the signal arrives."""
        self.signalled = True

    def is_met(self) -> bool:
        """Return whether to stop now."""
        is_late = self.deadline is not None and time.monotonic() >= self.deadline
        return self.signalled or is_late
