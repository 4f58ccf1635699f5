"""Load batches in an order that depends on the iteration alone, not on workers, ranks or earlier batches."""

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from functools import partial
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Semaphore

import cv2
import torch
from torch.utils.data import DataLoader, Dataset, default_collate

from engine.lockstep import STOP_SIGNALS
from engine.runtime import Runtime
from utils.descriptors import require_descriptors, require_sockets
from utils.errors import UserError, get_first_line

MAX_WORKERS = 4
START_SECONDS = 60  # in which workers begin; they need a few milliseconds
START_ATTEMPTS = 3


def count_default_workers() -> int:
    """Return how many loader workers a rank has by default: its share of this job's cores, from 1 to MAX_WORKERS."""
    cores = len(os.sched_getaffinity(0))
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return min(MAX_WORKERS, max(1, cores // ranks))


def choose_worker_count(workers: int | None) -> int:
    """Return the number of loader workers that ``--workers`` gives, or the default where it gives none."""
    return count_default_workers() if workers is None else workers


def load_train_batches(
    stream: Dataset, start: int, stop: int, batch_size: int, workers: int | None, runtime: Runtime
) -> Generator:
    """Yield ``(image, label)`` on the device for iterations ``start .. stop - 1``.

    ``stream[position]`` is sample number ``position`` of an endless training sequence. Iteration i of a global batch
    of B takes positions i*B .. i*B + B - 1, split over the ranks in order.
    """
    images = batch_size // runtime.size  # of this rank
    firsts = range(start * batch_size + runtime.rank * images, stop * batch_size, batch_size)
    batches = [range(first, first + images) for first in firsts]
    return _iterate_batches(stream, batches, workers, runtime.device)


def load_eval_batches(dataset: Dataset, workers: int | None, runtime: Runtime, batch_size: int = 1) -> Generator:
    """Yield ``(image, label, indices)`` of this rank's images, which are every ``runtime.size``-th.

    Of ``batch_size`` successive images, those of equal size come together. The indices stay on the host.
    """
    own = range(runtime.rank, len(dataset), runtime.size)
    batches = [own[first : first + batch_size] for first in range(0, len(own), batch_size)]
    return _iterate_batches(dataset, batches, workers, runtime.device)


def _iterate_batches(
    dataset: Dataset, batches: Sequence[Iterable[int]], workers: int | None, device: torch.device
) -> Generator:
    """Yield the samples of each batch, collated, on the device.

    Raises:
        UserError: a sample cannot be read, or the workers do not begin or may not open what they need.
        RuntimeError: a worker has died.
    """
    workers = min(choose_worker_count(workers), len(batches))
    require_descriptors(workers)
    require_sockets(workers)
    iterator = _start_workers(dataset, batches, workers, pin_memory=device.type == "cuda")
    try:
        for image, label, *rest in _receive_batches(iterator):
            yield [image.to(device, non_blocking=True), label.to(device, non_blocking=True), *rest]
    finally:
        # ends the workers now, also when the consumer stops early or the traceback of a failure holds the iterator
        if workers:
            _end_workers(iterator)


def _start_workers(dataset: Dataset, batches: Sequence[Iterable[int]], workers: int, pin_memory: bool) -> Iterator:
    """Start the workers, and return the iterator over their collated batches.

    Workers are forked: they share the image cache, and start quickly. A forked process inherits the locks of all
    threads as they are. In Python before 3.10.15, 3.11.10 and 3.12 it then waits for ever if a thread of gloo was just
    taking a lock of the interpreter (CPython issue 112275). Such workers never begin, and are started again.

    Raises:
        UserError: the workers did not begin, START_ATTEMPTS times in a row.
    """
    make_loader = partial(DataLoader, dataset, batch_sampler=batches, collate_fn=_collate, pin_memory=pin_memory)
    if not workers:
        return iter(make_loader())
    fork = multiprocessing.get_context("fork")
    what = f"the {workers} loader workers did not begin within {START_SECONDS} s"
    for attempt in range(START_ATTEMPTS):
        if attempt:
            print(f"warning: {what}: they are started again", file=sys.stderr)
        start_count = fork.Semaphore(0)  # of the workers that have begun
        initialise = partial(_init_worker, start_count)
        loader = make_loader(num_workers=workers, worker_init_fn=initialise, multiprocessing_context=fork)
        iterator = _make_iterator(loader)
        have_begun = False
        try:
            have_begun = _wait_for_start(iterator, start_count)
        finally:
            if not have_begun:  # after an interrupt, too: such workers would outlive it
                _end_workers(iterator, at_once=True)
        if have_begun:
            return iterator
    advice = "fewer --workers, or a Python with the fix of CPython issue 112275 (3.12 or newer has it)"
    raise UserError(f"{what}, {START_ATTEMPTS} times in a row: {advice}")


def _make_iterator(loader: DataLoader) -> Iterator:
    """Return the iterator of a loader, without torch's handler of SIGCHLD.

    That handler raises the death of a worker anywhere, in a save as well. Asking for a batch finds it, too.
    """
    handler = signal.getsignal(signal.SIGCHLD)
    try:
        return iter(loader)
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGCHLD, handler)


def _wait_for_start(iterator: Iterator, start_count: Semaphore) -> bool:
    """Wait until all workers have begun. Return whether they have within START_SECONDS.

    If one has died before it began, return True at once. Whoever asks for a batch then gets the error.
    """
    deadline = time.monotonic() + START_SECONDS
    for _ in iterator._workers:
        while not start_count.acquire(timeout=0.1):
            if not all(worker.is_alive() for worker in iterator._workers):
                return True
            if time.monotonic() > deadline:
                return False
    return True


def _end_workers(iterator: Iterator, at_once: bool = False) -> None:
    """Ask the workers to end, and kill those that do not. If one is dead, kill all of them without asking.

    at_once: kill all of them without asking, because they have done nothing yet.
    """
    if at_once or not all(worker.is_alive() for worker in iterator._workers):
        _kill_workers(iterator._workers)
        iterator._workers_done_event = threading.Event()  # a dead one may hold the lock of theirs for ever
    iterator._shutdown_workers()
    _kill_workers(iterator._workers)


def _kill_workers(workers: Sequence[BaseProcess]) -> None:
    """End processes, which ignore SIGTERM."""
    for worker in workers:
        worker.kill()
        worker.join()


def _receive_batches(iterator: Iterator) -> Iterator[list[object]]:
    """Yield the batches that ``_collate`` made.

    Raises:
        UserError: a sample could not be read.
        RuntimeError: a worker has died.
    """
    while True:
        try:
            groups = next(iterator, None)
        except (ConnectionError, EOFError) as error:  # its socket is closed before the system calls it dead
            raise RuntimeError(f"DataLoader worker: {get_first_line(error)}") from error
        if groups is None:
            return
        if isinstance(groups, Exception):
            raise groups
        yield from groups


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


def _init_worker(start_count: Semaphore, _: int) -> None:
    """Leave signals to the main process, which saves and then ends the workers; use one thread a worker.

    start_count: is raised by one at the end.
    """
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    start_count.release()
