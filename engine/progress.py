"""Measure the speed of training, and estimate when it will end."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta

LONG = 24 * 3600.0  # seconds that a run on a CPU may take without a warning
ADVICE = "reduce --crop-size, --batch-size or --max-iterations, or take a light network (--recipe light)"


class Progress:
    """Measure the time of training. What runs inside ``pause``, a validation, is left out."""

    def __init__(self, iteration: int, max_iterations: int, batch_size: int) -> None:
        """Begin to measure a run of which ``iteration`` iterations are done."""
        self.first = iteration + 1
        self.max_iterations = max_iterations
        self.batch_size = batch_size
        self.paused_seconds = 0.0
        self.paused_cpu_seconds = 0.0
        self.end_of_first: float | None = None  # when the first iteration was done, which takes longer than others
        self.start_interval(iteration)

    def read_clock(self) -> float:
        """Return the seconds since some moment, without pauses."""
        return time.monotonic() - self.paused_seconds

    def read_cpu_clock(self) -> float:
        """Return the processor seconds of this process, without pauses."""
        return time.process_time() - self.paused_cpu_seconds

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Leave out the time that is spent inside."""
        start = time.monotonic()
        cpu_start = time.process_time()
        yield
        self.paused_seconds += time.monotonic() - start
        self.paused_cpu_seconds += time.process_time() - cpu_start

    def start_interval(self, iteration: int) -> None:
        """Let ``measure_interval`` measure from here on; ``iteration`` iterations are done."""
        self.interval_iteration = iteration
        self.interval_start = self.read_clock()
        self.interval_cpu_start = self.read_cpu_clock()

    def measure_interval(self, iteration: int) -> dict[str, float]:
        """Return the images a second, and the processor seconds, since the start of the interval."""
        images = self.batch_size * (iteration - self.interval_iteration)
        return {
            "images_per_second": images / (self.read_clock() - self.interval_start),
            "cpu_seconds": self.read_cpu_clock() - self.interval_cpu_start,
        }

    def note_iteration(self, iteration: int) -> None:
        """Note that an iteration is done."""
        if iteration == self.first:
            self.end_of_first = self.read_clock()

    def get_seconds_since_first(self) -> float:
        """Return the seconds since the first iteration was done, 0 before that."""
        return 0.0 if self.end_of_first is None else self.read_clock() - self.end_of_first

    def estimate_seconds_left(self, iteration: int) -> float | None:
        """Return how many seconds of training are left after an iteration, None up to the first of this process."""
        if iteration <= self.first:
            return None
        return self.get_seconds_since_first() / (iteration - self.first) * (self.max_iterations - iteration)


def describe_finish(seconds: float, is_cpu: bool) -> str:
    """Describe the end of a run that has so many seconds left, in one line."""
    left = timedelta(seconds=round(seconds))
    end = datetime.now() + left
    text = f"expected to finish in {left}, on {end:%Y-%m-%d at %H:%M}, without the time of validations"
    if is_cpu and seconds > LONG:
        return f"warning: {text}: on a CPU that is long, {ADVICE}"
    return text
