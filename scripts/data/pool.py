"""Apply a function to many files in several processes, which end with this one."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import parent_process
from threading import Thread
from typing import TypeVar

import cv2

from utils.descriptors import require_descriptors

A = TypeVar("A")
B = TypeVar("B")


def map_in_processes(function: Callable[[A], B], tasks: Sequence[A], workers: int) -> Iterator[B]:
    """Yield what ``function`` returns for each task, in order. With 0 workers, this process does the work.

    Raises:
        UserError: the system allows too few open files for so many workers.
    """
    if workers == 0:
        yield from map(function, tasks)
        return
    require_descriptors(workers)
    with ProcessPoolExecutor(workers, initializer=_start_worker) as pool:
        yield from pool.map(function, tasks, chunksize=8)


def _start_worker() -> None:
    """Prepare a worker: OpenCV starts no threads of its own, and the worker ends with its parent."""
    cv2.setNumThreads(0)
    Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End this worker when its parent has ended: else it would wait for ever for tasks of a killed process."""
    parent_process().join()
    os._exit(1)
