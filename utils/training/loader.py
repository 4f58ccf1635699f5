"""Batches in an order that is a function of the position alone, not of workers, processes or the past."""

import signal
import threading
from collections.abc import Generator, Iterable, Iterator, Sequence

import cv2
import torch
from torch.utils.data import DataLoader, Dataset, default_collate

from utils.descriptors import require_descriptors
from utils.errors import first_line
from utils.training.guards import STOP_SIGNALS
from utils.training.runtime import Runtime


def _collate(samples: list[object]) -> object:
    """A list of batches, one for each image size among the samples.

    A sample that could not be read travels as the exception itself: its message reaches the user unwrapped.
    """
    groups: dict[tuple[int, ...], list[object]] = {}
    for sample in samples:
        if isinstance(sample, Exception):
            return sample
        groups.setdefault(tuple(sample[0].shape), []).append(sample)
    return [default_collate(group) for group in groups.values()]


def _init_worker(_: int) -> None:
    # A signal to the whole job is for the main process: it ends its iteration, saves, and lets the workers go.
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    torch.set_num_threads(1)
    cv2.setNumThreads(0)


def _received(iterator: Iterator) -> object:
    """What it has next, None behind the last; one message for a worker found dead before or while it sent this."""
    try:
        return next(iterator, None)
    except (ConnectionError, EOFError) as error:  # its socket is closed before the system calls it dead
        raise RuntimeError(f"DataLoader worker: {first_line(error)}") from error


def _batches(dataset: Dataset, batches: Iterable[Sequence[int]], workers: int, device: torch.device) -> Generator:
    require_descriptors(workers)
    loader = DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=_collate,
        worker_init_fn=_init_worker,
        pin_memory=device.type == "cuda",
    )
    before = signal.getsignal(signal.SIGCHLD)
    iterator = iter(loader)
    if threading.current_thread() is threading.main_thread():
        # torch's handler raises the death of a worker anywhere, in a save as well; asking for a batch finds it, too
        signal.signal(signal.SIGCHLD, before)
    try:
        while groups := _received(iterator):
            if isinstance(groups, Exception):
                raise groups
            for group in groups:
                yield [part.to(device, non_blocking=True) for part in group[:2]] + group[2:]
    finally:
        # joins the workers now, also when the consumer stops early or the traceback of a failure holds the iterator
        getattr(iterator, "_shutdown_workers", bool)()


def train_batches(stream: Dataset, start: int, stop: int, batch_size: int, workers: int, runtime: Runtime) -> Generator:
    """``(image, label)`` on the device for iterations ``start .. stop - 1``.

    ``stream[position]`` is sample number ``position`` of an endless training sequence; iteration i of a global batch
    of B takes positions i*B .. i*B + B - 1, split over the processes in rank order.
    """
    share = batch_size // runtime.size
    firsts = range(start * batch_size + runtime.rank * share, stop * batch_size, batch_size)
    return _batches(stream, (range(i, i + share) for i in firsts), min(workers, len(firsts)), runtime.device)


def eval_batches(dataset: Dataset, workers: int, runtime: Runtime, batch_size: int = 1) -> Generator:
    """``(image, label, indices)``, the indices on the host: every ``size``-th image from ``rank``, each exactly once.

    Of ``batch_size`` successive images, those of equal size come together.
    """
    own = range(runtime.rank, len(dataset), runtime.size)
    batches = [own[i : i + batch_size] for i in range(0, len(own), batch_size)]
    return _batches(dataset, batches, min(workers, len(batches)), runtime.device)
