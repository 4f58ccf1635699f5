"""Estimate when a run will end, and warn early if that is far away."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta

LONGEST_WAIT = 20.0  # seconds after the first iteration, where no log record comes earlier
LONG = 24 * 3600.0  # seconds that a run on a CPU may take without a warning
ADVICE = "reduce --crop-size, --batch-size or --max-iterations, or take a light network (--recipe light)"


class FinishEstimate:
    """Estimate the end of a run once. The first iteration is not counted, because it takes longer than others."""

    def __init__(self, iteration: int, max_iterations: int) -> None:
        """Begin to measure a run of which ``iteration`` iterations are done."""
        self.first = iteration + 1
        self.max_iterations = max_iterations
        self.clock = 0.0
        self.is_given = False

    def estimate(self, iteration: int, is_logged: bool) -> float | None:
        """Return the seconds that are left after an iteration, once. Return None before and after that.

        is_logged: whether the iteration is logged. Only then a GPU has surely done its work.
        """
        now = time.monotonic()
        if iteration == self.first:
            self.clock = now
        elif not self.is_given and (is_logged or now - self.clock >= LONGEST_WAIT):
            self.is_given = True
            if iteration == self.max_iterations:
                return None
            return (now - self.clock) / (iteration - self.first) * (self.max_iterations - iteration)
        return None

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Leave out the time that is spent inside."""
        start = time.monotonic()
        yield
        self.clock += time.monotonic() - start


def describe_finish(seconds: float, is_cpu: bool) -> str:
    """Describe the end of a run that has so many seconds left, in one line."""
    left = timedelta(seconds=round(seconds))
    end = datetime.now() + left
    text = f"expected to finish in {left}, on {end:%Y-%m-%d at %H:%M}, without the time of validations"
    if is_cpu and seconds > LONG:
        return f"warning: {text}: on a CPU that is long, {ADVICE}"
    return text
