"""Turn failures into errors for people: one line that says what was wrong, where, and what to do."""

import difflib
import errno
import os
import re
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar

import torch
import torch.distributed as dist

from utils.distributed import is_launched

T = TypeVar("T")


class UserError(Exception):
    """Bad input, named with its file, key or flag. Entry scripts print it as one line and exit with status 2."""


class OutOfMemory(UserError):
    """A computation needs more memory than the CPU or a GPU has."""


def suggest_nearest(name: str, choices: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the choice closest to ``name``, or an empty string."""
    close = difflib.get_close_matches(name, list(choices), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


def lookup(table: Mapping[str, T], name: str, what: str) -> T:
    """Return ``table[name]``.

    Raises:
        UserError: the table has no such name. The message names the nearest one, and lists all of them.
    """
    require_known(name, table, what)
    return table[name]


def require_known(name: str, choices: Collection[str], what: str) -> None:
    """Check that a name is one of the choices.

    Raises:
        UserError: the name is unknown. The message names the nearest choice, and lists all of them.
    """
    if name not in choices:
        raise UserError(f"unknown {what} {name!r}{suggest_nearest(name, choices)} (choices: {', '.join(choices)})")


def print_note(message: str) -> None:
    """Print a line on stderr, on rank 0 only."""
    if os.environ.get("RANK", "0") == "0":
        print(message, file=sys.stderr)


def get_first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its kind when it has none."""
    return (str(error).splitlines() or [type(error).__name__])[0]


ANOTHER = "another process of the job"  # begins a message that only points at the message of another rank
TOO_MANY_FILES = "too many open files: a higher limit (ulimit -n 4096), or fewer --workers"
OUT_OF_MEMORY = "out of memory: a smaller --batch-size or fewer --workers; in training --crop-size or --accumulate, too"
CPU_MEMORY = "DefaultCPUAllocator|std::bad_alloc|[Cc]annot allocate memory|Storage size calculation overflowed"
GPU_MEMORY = "CUDA error: out of memory|CU(BLAS|DNN)_STATUS_ALLOC_FAILED"  # not raised as torch.OutOfMemoryError
PEER = "Connection (closed|reset)|peer|Broken pipe|NCCL|Gloo|Timed out|TCPStore|ProcessGroup"  # only if there are ranks
# regular expression for the message of a RuntimeError -> what it means, and what to do
MEANINGS = {
    "DataLoader worker|Pin memory thread|process pool": "a loader process was killed, most likely because the memory "
    "was full: fewer --workers, no --cache-gb, or more shared memory (docker: --shm-size)",
    PEER: f"{ANOTHER} ended or does not answer; its own message says why",
    f"{CPU_MEMORY}|{GPU_MEMORY}": OUT_OF_MEMORY,
    "Kernel size can't be greater": "an image, or a part of one, is too small for this network: 32 pixels a side are "
    "enough for most",
    "Expected to have finished reduction": "a parameter of the network or of a loss took no part in a step, which "
    "several processes do not allow: leave it out, freeze it, or add 0 * parameter.sum() to the loss",
    "home directory": "a path begins with ~ and the name of nobody here",
    "Too many open files|ancdata": TOO_MANY_FILES,
    "No space left on device": "a disk or the shared memory is full (docker: --shm-size)",
}


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that the memory of the CPU or of a GPU was too small."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return bool(re.search(f"{CPU_MEMORY}|{GPU_MEMORY}", str(error)))


@contextmanager
def explain_out_of_memory(message: str) -> Iterator[None]:
    """Raise ``OutOfMemory(message)`` if the code inside this block runs out of memory."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemory(message) from error


def explain_error(error: BaseException) -> UserError | None:
    """Explain a failure of the machine in a user's words. Return None for an error of the program."""
    if isinstance(error, UserError):
        return error
    if isinstance(error, torch.OutOfMemoryError):
        flags = "a smaller --batch-size or --amp bf16; in training a smaller --crop-size or --accumulate 2, too"
        return UserError(f"{get_first_line(error)} Try {flags}.")
    if isinstance(error, MemoryError):
        return UserError(OUT_OF_MEMORY)
    if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
        return UserError(TOO_MANY_FILES)
    if isinstance(error, OSError) and error.strerror:
        name = os.fsdecode(error.filename) if isinstance(error.filename, bytes) else error.filename
        return UserError(f"{name}: {error.strerror}" if name else error.strerror)
    if isinstance(error, RuntimeError):
        return _explain_runtime_error(error)
    return None


def _explain_runtime_error(error: RuntimeError) -> UserError | None:
    """Explain a RuntimeError by its message. Return None if the message is not known.

    Torch raises RuntimeError for failures of many kinds, which only the message tells apart.
    """
    nccl_cause = ""
    if isinstance(error, dist.DistBackendError):
        nccl_cause = str(error).partition("Last error:")[2].strip()
    if nccl_cause:
        text = nccl_cause.replace("\n", " ")
    elif str(error).startswith("Caught "):  # from a loader worker: the message is the last line of its traceback
        text = str(error).splitlines()[-1]
    else:
        text = get_first_line(error)
    for pattern, meaning in MEANINGS.items():
        if pattern == PEER and not is_launched():
            continue
        if re.search(pattern, text):
            return UserError(f"{meaning} ({text})")
    if nccl_cause:  # a failure of this rank; one of a peer matches PEER
        return UserError(f"NCCL failed ({text})")
    return None
