"""Alternating measurement of several ways of the same work."""

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch

from utils.options import option


@dataclass(frozen=True)
class BenchmarkConfig:
    only: tuple[str, ...] = option((), "comparisons to run (default: all)", positional=True)
    rounds: int = option(5, "alternating rounds of each way", minimum=3)
    device: str = option("cpu", "where labels, steps and metric are computed", choices=("auto", "cpu", "cuda"))
    amp: str = option("none", "precision of our steps; the plain ones are float32", choices=("none", "bf16"))
    json: str = option("", "file for the result")


@dataclass
class Comparison:
    """``seconds[way]``: medians a sample; ratios are against the first way. ``check``: how the results agree."""

    what: str
    seconds: dict[str, float]
    check: dict[str, float] = field(default_factory=dict)

    def lines(self) -> Iterator[str]:
        yield self.what
        first = next(iter(self.seconds.values()), 0)
        for way, seconds in self.seconds.items():
            yield f"  {way:<44} {1000 * seconds:10.2f} ms   {first / seconds:5.2f}x"
        for name, value in self.check.items():
            yield f"  {name}: {value:.6g}"


def now(device: torch.device) -> float:
    """Processor time of this process, which neighbours disturb least; on a GPU the time of day, its queue empty."""
    if device.type == "cpu":
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()


def medians(
    ways: dict[str, Callable[[int], object]], rounds: int, count: int, device: torch.device
) -> dict[str, float]:
    """Seconds of one call ``way(i)``: median over the rounds of the mean over ``count`` calls."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(1 + rounds):  # the first round warms up
        for name, way in ways.items():
            start = now(device)
            for i in range(count):
                way(i)
            if number:
                times[name].append((now(device) - start) / count)
    return {name: statistics.median(values) for name, values in times.items()}
