"""A function of many files in several processes, which end with this one."""

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


def each(function: Callable[[A], B], tasks: Sequence[A], workers: int) -> Iterator[B]:
    """``function`` of each task, in their order; with 0 workers in this process."""
    if workers == 0:
        yield from map(function, tasks)
        return
    require_descriptors(workers)
    with ProcessPoolExecutor(workers, initializer=_begin) as pool:
        yield from pool.map(function, tasks, chunksize=8)


def _begin() -> None:
    cv2.setNumThreads(0)
    Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A pool waits for its tasks for ever, also where the process that gives them was killed."""
    parent_process().join()
    os._exit(1)
