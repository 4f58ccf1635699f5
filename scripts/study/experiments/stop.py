"""When the runner of experiments ends."""

import signal
import time

from engine.lockstep import handle_stop_signals


class Stop:
    """True from the deadline or a signal on, while it is entered."""

    def __init__(self, max_minutes: float | None = None) -> None:
        self.deadline = None if max_minutes is None else time.monotonic() + 60 * max_minutes
        self.signalled = False

    def __enter__(self) -> "Stop":
        self.before = handle_stop_signals(self._signal)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _signal(self, number: int, frame: object) -> None:
        self.signalled = True

    def __bool__(self) -> bool:
        return self.signalled or (self.deadline is not None and time.monotonic() >= self.deadline)
