"""Time several ways of doing the same, in alternation."""

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch

from engine.runtime import Runtime
from utils.options import option


@dataclass(frozen=True)
class BenchmarkConfig:
    """Hold the settings of benchmark.py."""

    only: tuple[str, ...] = option((), "comparisons to run (default: all)", positional=True)
    rounds: int = option(5, "alternating rounds of each way", minimum=3)
    device: str = option("cpu", "where labels, steps and metric are computed", choices=("auto", "cpu", "cuda"))
    amp: str = option("none", "precision of our steps; the plain ones are float32", choices=("none", "bf16"))
    compile: bool = option(False, "compile our networks by torch.compile")
    json: str = option("", "file for the result")

    def make_runtime(self, device: torch.device) -> Runtime:
        """Return the way in which our steps compute."""
        return Runtime(device, amp=self.amp, channels_last=True, compile=self.compile)


@dataclass
class Comparison:
    """Hold the times of several ways, and how well their results agree.

    seconds: the median time of a sample by way; ratios are against the first way. check: measures of the agreement.
    num_classes: where it matters. peak_mib: the most GPU memory besides both networks by way, in MiB.
    """

    what: str
    seconds: dict[str, float]
    check: dict[str, float] = field(default_factory=dict)
    num_classes: int | None = None
    peak_mib: dict[str, float] = field(default_factory=dict)

    def format_lines(self) -> Iterator[str]:
        """Yield the lines that are printed."""
        yield self.what if self.num_classes is None else f"{self.what}, {self.num_classes} classes"
        first = next(iter(self.seconds.values()), 0)
        for way, seconds in self.seconds.items():
            yield f"  {way:<44} {1000 * seconds:10.2f} ms   {first / seconds:5.2f}x"
        for name, value in self.check.items():
            yield f"  {name}: {value:.6g}"
        for way, mib in self.peak_mib.items():
            yield f"  MiB at most besides both networks, {way}: {mib:.6g}"


def read_clock(device: torch.device) -> float:
    """Return the processor time, which neighbours disturb least; on a GPU the time of day, its queue empty."""
    if device.type == "cpu":
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()


def measure_medians(
    ways: dict[str, Callable[[int], object]], rounds: int, count: int, device: torch.device
) -> dict[str, float]:
    """Return the seconds of one call ``way(i)``: the median over the rounds of the mean over ``count`` calls."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(1 + rounds):  # the first round warms up
        for name, way in ways.items():
            start = read_clock(device)
            for i in range(count):
                way(i)
            if number:
                times[name].append((read_clock(device) - start) / count)
    return {name: statistics.median(values) for name, values in times.items()}
