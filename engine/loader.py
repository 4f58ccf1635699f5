"""Load batches in an order that depends on the iteration alone, not on workers, ranks or earlier batches."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Generator, Iterable, Iterator, Sequence

import cv2
import torch
from torch.utils.data import DataLoader, Dataset, default_collate

from engine.lockstep import STOP_SIGNALS
from engine.runtime import Runtime
from utils.descriptors import require_descriptors
from utils.errors import first_line

MAX_WORKERS = 4


def count_default_workers() -> int:
    """Return how many loader workers a rank has by default: at most its share of the cores given to this job."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return min(MAX_WORKERS, max(1, cores // ranks))


def load_train_batches(
    stream: Dataset, start: int, stop: int, batch_size: int, workers: int | None, runtime: Runtime
) -> Generator:
    """Yield ``(image, label)`` on the device for iterations ``start .. stop - 1``.

    ``stream[position]`` is sample number ``position`` of an endless training sequence. Iteration i of a global batch
    of B takes positions i*B .. i*B + B - 1, split over the ranks in order.
    """
    share = batch_size // runtime.size
    firsts = range(start * batch_size + runtime.rank * share, stop * batch_size, batch_size)
    return _load(stream, [range(first, first + share) for first in firsts], workers, runtime.device)


def load_eval_batches(dataset: Dataset, workers: int | None, runtime: Runtime, batch_size: int = 1) -> Generator:
    """Yield ``(image, label, indices)`` of every ``size``-th image from ``rank``, the indices on the host.

    Of ``batch_size`` successive images, those of equal size come together.
    """
    own = range(runtime.rank, len(dataset), runtime.size)
    batches = [own[first : first + batch_size] for first in range(0, len(own), batch_size)]
    return _load(dataset, batches, workers, runtime.device)


def _load(dataset: Dataset, batches: Sequence[Iterable[int]], workers: int | None, device: torch.device) -> Generator:
    """Yield the samples of each batch, collated, on the device.

    Workers are forked where the system can: they share the image cache, and start quickly.
    """
    workers = min(count_default_workers() if workers is None else workers, len(batches))
    can_fork = "fork" in multiprocessing.get_all_start_methods()
    require_descriptors(workers)
    loader = DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=_collate,
        worker_init_fn=_init_worker,
        pin_memory=device.type == "cuda",
        multiprocessing_context="fork" if workers and can_fork else None,
    )
    handler = signal.getsignal(signal.SIGCHLD)
    iterator = iter(loader)
    if threading.current_thread() is threading.main_thread():
        # torch's handler raises the death of a worker anywhere, in a save as well; asking for a batch finds it, too
        signal.signal(signal.SIGCHLD, handler)
    try:
        while groups := _receive(iterator):
            if isinstance(groups, Exception):
                raise groups
            for image, label, *rest in groups:
                yield [image.to(device, non_blocking=True), label.to(device, non_blocking=True), *rest]
    finally:
        # joins the workers now, also when the consumer stops early or the traceback of a failure holds the iterator
        if workers:
            iterator._shutdown_workers()


def _receive(iterator: Iterator) -> object:
    """Return the next item, or None at the end. Raise one clear error if a loader worker has died."""
    try:
        return next(iterator, None)
    except (ConnectionError, EOFError) as error:  # its socket is closed before the system calls it dead
        raise RuntimeError(f"DataLoader worker: {first_line(error)}") from error


def _collate(samples: list[object]) -> object:
    """Return a list of batches, one for each image size among the samples.

    A sample that could not be read is returned as the exception itself: its message reaches the user unwrapped.
    """
    groups: dict[tuple[int, ...], list[object]] = {}
    for sample in samples:
        if isinstance(sample, Exception):
            return sample
        groups.setdefault(tuple(sample[0].shape), []).append(sample)
    return [default_collate(group) for group in groups.values()]


def _init_worker(_: int) -> None:
    """Leave signals to the main process, which saves and then ends the workers; use one thread a worker."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
