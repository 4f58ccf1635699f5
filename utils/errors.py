"""Turn failures into errors for people: one line that says what was wrong, where, and what to do."""

import atexit
import difflib
import errno
import io
import os
import re
import sys
import time
import traceback
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO, TypeVar

import torch
import torch.distributed as dist

from utils.distributed import is_launched

T = TypeVar("T")


class UserError(Exception):
    """Bad input, named with its file, key or flag. Entry scripts print it as one line and exit with status 2."""


class OutOfMemory(UserError):
    """A computation needs more memory than the CPU or a GPU has."""


def nearest(name: str, choices: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the choice closest to ``name``, or an empty string."""
    close = difflib.get_close_matches(name, list(choices), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


def lookup(table: Mapping[str, T], name: str, what: str) -> T:
    """Return ``table[name]``.

    Raises:
        UserError: there is no such key; it names the nearest one and lists all of them.
    """
    if name in table:
        return table[name]
    raise UserError(f"unknown {what} {name!r}{nearest(name, table)} (choices: {', '.join(table)})")


def print_note(message: str) -> None:
    """Print a line on stderr, on rank 0 only."""
    if os.environ.get("RANK", "0") == "0":
        print(message, file=sys.stderr)


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its kind when it has none."""
    return (str(error).splitlines() or [type(error).__name__])[0]


TRACEBACK = "LAD_TRACEBACK"
ANOTHER = "another process of the job"  # so begins a message that only points at the one that matters
TOO_MANY_FILES = "too many open files: a higher limit (ulimit -n 4096), or fewer --workers"
OUT_OF_MEMORY = "out of memory: a smaller --batch-size or --crop-size, --accumulate, or fewer --workers"
CPU_MEMORY = "DefaultCPUAllocator|std::bad_alloc|[Cc]annot allocate memory|Storage size calculation overflowed"
GPU_MEMORY = "CUDA error: out of memory|CU(BLAS|DNN)_STATUS_ALLOC_FAILED"  # not raised as torch.OutOfMemoryError
# a pattern of a RuntimeError's message -> what it means, and what to do
MEANINGS = {
    "DataLoader worker|Pin memory thread|process pool": "a loader process was killed, most likely for want of memory: "
    "fewer --workers, no --cache-gb, or more shared memory (docker: --shm-size)",
    "Connection (closed|reset)|peer|Broken pipe|NCCL|Gloo|Timed out|TCPStore|ProcessGroup": f"{ANOTHER} "
    "ended or does not answer; its own message says why",
    f"{CPU_MEMORY}|{GPU_MEMORY}": OUT_OF_MEMORY,
    "Kernel size can't be greater": "an image, or a part of one, is too small for this network: 32 pixels a side are "
    "enough for most",
    "home directory": "a path begins with ~ and the name of nobody here",
    "Too many open files|ancdata": TOO_MANY_FILES,
    "No space left on device": "a disk or the shared memory is full (docker: --shm-size)",
}


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether the memory of the CPU or of a GPU was too small."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return bool(re.search(f"{CPU_MEMORY}|{GPU_MEMORY}", str(error)))


@contextmanager
def explain_out_of_memory(message: str) -> Iterator[None]:
    """Raise ``OutOfMemory(message)`` where what is done inside needs more memory than there is."""
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
        flags = "a smaller --batch-size or --crop-size, --accumulate 2, or --amp bf16"
        return UserError(f"{first_line(error)} Try {flags}.")
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
    """Explain an error that only its message tells from others."""
    cause = ""
    if isinstance(error, dist.DistBackendError):
        cause = str(error).partition("Last error:")[2].strip()
    if cause:
        text = cause.replace("\n", " ")
    elif str(error).startswith("Caught "):  # in a loader worker: its traceback, and the message at the end
        text = str(error).splitlines()[-1]
    else:
        text = first_line(error)
    for pattern, meaning in MEANINGS.items():
        if re.search(pattern, text):
            return UserError(f"{meaning} ({text})")
    if cause:  # its own failure, not that of a peer
        return UserError(f"NCCL failed ({text})")
    return None


def run_main(main: Callable[[], None]) -> None:
    """Call an entry script's ``main`` and turn known errors into one line on stderr and exit status 2.

    The environment variable LAD_TRACEBACK=1 shows the traceback of such an error as well. When the reader of the output
    goes away (``| head``), the status is 141, as of SIGPIPE; after an interrupt it is 130.
    """
    _prepare_streams()
    status = _call(main)
    _flush_streams()
    if is_launched():
        _end_without_finalization(status)
    if status:
        sys.exit(status)


def _call(main: Callable[[], None]) -> int:
    """Call ``main``, print what it raises, and return the exit status of the process.

    In a process of a process group, an error ends the process here and now.
    """
    try:
        main()
        if sys.stdout is not None:
            sys.stdout.flush()
    except SystemExit as ending:
        return _read_status(ending.code)
    except BrokenPipeError:
        _drop(sys.stdout)
        _print_last("ended: nothing reads the output any more")
        return 141
    except KeyboardInterrupt:
        _print_last("ended: interrupted")
        return 130
    except Exception as error:
        known = explain_error(error)
        if known is not None:
            _print_error(known)
        elif is_launched():
            sys.excepthook(type(error), error, error.__traceback__)
        if is_launched():
            _end_at_once(2 if known is not None else 1)
        if known is None:
            raise
        return 2
    return 0


def _read_status(code: object) -> int:
    """Return the status of a SystemExit. A code that is no number is a message, as in Python."""
    if code is None or isinstance(code, int):
        return code or 0
    _print_last(str(code))
    return 1


def _print_error(known: UserError) -> None:
    """Print an error in one line, unless another process of this launch has printed it."""
    if os.environ.get(TRACEBACK):
        traceback.print_exc()
    if not _was_printed(str(known)):
        _print_last(f"error: {known}")


def _print_last(text: str) -> None:
    """Print a line on stderr, if that can be written to. If not, the exit status has to say it."""
    try:
        print(text, file=sys.stderr, flush=True)
    except OSError:
        _drop(sys.stderr)


def _end_at_once(status: int) -> None:
    """End this process at once. An ordinary exit would wait for the other ranks of its process group."""
    _flush_streams()
    os._exit(status)


def _end_without_finalization(status: int) -> None:
    """End a process of a process group as Python would, but do not take the interpreter down.

    Under DistributedDataParallel, gloo's threads outlive ``destroy_process_group``. One that lets go of its last tensor
    while the interpreter is taken down ends the process by SIGABRT, though its work is done (pytorch issue 190489).
    """
    atexit._run_exitfuncs()
    _end_at_once(status)


def _flush_streams() -> None:
    """Write out what is buffered. What cannot be written is dropped, so that the exit status stays what it is."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except OSError:
            _drop(stream)


def _drop(stream: TextIO) -> None:
    """Have a stream write to nowhere. Python would fail when it flushes the rest at exit, with a status of its own."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _prepare_streams() -> None:
    """Make printing safe: open closed streams to nowhere, and escape characters that a stream cannot print."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            nowhere = os.open(os.devnull, os.O_RDWR)  # the lowest number that is free: most likely the stream's own
            setattr(sys, name, os.fdopen(nowhere, "r" if number == 0 else "w"))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _was_printed(message: str) -> bool:
    """Return whether another rank has printed a message.

    For a message that only points at another rank's, return whether any rank has printed one.
    """
    error_file = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if not error_file:
        return False
    folder = Path(error_file).parents[1]  # that torchrun gives the processes of one launch on one machine
    if message.startswith(ANOTHER):
        time.sleep(1)  # a rank that lost its peers is at most a second ahead of their message
        return any(folder.glob("printed-*"))
    try:
        (folder / f"printed-{zlib.crc32(message.encode())}").touch(exist_ok=False)
    except FileExistsError:
        return True
    except OSError:
        return False  # better twice than not at all
    return False
