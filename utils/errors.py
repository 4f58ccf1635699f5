"""Errors for people: one line that says what was wrong, where, and what to do."""

import difflib
import errno
import io
import os
import re
import sys
import time
import traceback
import zlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist

T = TypeVar("T")


class UserError(Exception):
    """Bad input, named with its file, key or flag. Entry scripts print it as one line and exit with status 2."""


def nearest(name: str, choices: Iterable[str]) -> str:
    """``"; did you mean 'x'?"`` for the choice closest to ``name``, or an empty string."""
    close = difflib.get_close_matches(name, list(choices), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


def lookup(table: Mapping[str, T], name: str, what: str) -> T:
    """``table[name]``, or a UserError that names the nearest key and lists all of them."""
    if name in table:
        return table[name]
    raise UserError(f"unknown {what} {name!r}{nearest(name, table)} (choices: {', '.join(table)})")


def print_note(message: str) -> None:
    """Print a line on stderr, in the first process of a launch only."""
    if os.environ.get("RANK", "0") == "0":
        print(message, file=sys.stderr)


def first_line(error: BaseException) -> str:
    """Of an error's message, or its kind when it has none."""
    return (str(error).splitlines() or [type(error).__name__])[0]


ANOTHER = "another process of the job"  # how a message begins that only points at the one that matters
TOO_MANY_FILES = "too many open files: a higher limit (ulimit -n 4096), or fewer --workers"
# what a RuntimeError without a kind of its own says -> what it means, and what to do
MEANINGS = {
    "DataLoader worker|Pin memory thread|process pool": "a loader process was killed, most likely for want of memory: "
    "fewer --workers, no --cache-gb, or more shared memory (docker: --shm-size)",
    "Connection (closed|reset)|peer|Broken pipe|NCCL|Gloo|Timed out|TCPStore|ProcessGroup": f"{ANOTHER} "
    "ended or does not answer; its own message says why",
    "DefaultCPUAllocator|std::bad_alloc|[Cc]annot allocate memory": "out of memory: a smaller --batch-size or "
    "--crop-size, --accumulate, or fewer --workers",
    "Kernel size can't be greater": "an image, or a part of one, is too small for this network: 32 pixels a side are "
    "enough for most",
    "home directory": "a path begins with ~ and the name of nobody here",
    "Too many open files|ancdata": TOO_MANY_FILES,
    "No space left on device": "a disk or the shared memory is full (docker: --shm-size)",
}


def named(error: BaseException) -> UserError | None:
    """A failure of the machine, not of the program, in a user's words; None: it is none that is known."""
    if isinstance(error, UserError):
        return error
    if isinstance(error, torch.OutOfMemoryError):
        flags = "a smaller --batch-size or --crop-size, --accumulate 2, or --amp bf16"
        return UserError(f"{first_line(error)} Try {flags}.")
    if isinstance(error, MemoryError):
        return UserError(MEANINGS["DefaultCPUAllocator|std::bad_alloc|[Cc]annot allocate memory"])
    if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
        return UserError(TOO_MANY_FILES)
    if isinstance(error, OSError) and error.strerror:
        name = os.fsdecode(error.filename) if isinstance(error.filename, bytes) else error.filename
        return UserError(f"{f'{name}: ' if name else ''}{error.strerror}")
    if isinstance(error, RuntimeError):
        cause = str(error).partition("Last error:")[2].strip() if isinstance(error, dist.DistBackendError) else ""
        wrapped = str(error).startswith("Caught ")  # in a loader process: its traceback, the message behind it
        text = cause.replace("\n", " ") or (str(error).splitlines()[-1] if wrapped else first_line(error))
        unknown = "NCCL failed" if cause else None  # its own failure, not that of a peer
        meaning = next((meaning for pattern, meaning in MEANINGS.items() if re.search(pattern, text)), unknown)
        return UserError(f"{meaning} ({text})") if meaning else None
    return None


def run_main(main: Callable[[], None]) -> None:
    """Call an entry script's ``main``, turning what ``named`` knows into one line on stderr and exit status 2.

    When the reader of its output goes away (``| head``) it says so and ends with status 141, as of SIGPIPE; of an
    interrupt with 130. Where a failure left the process group (``utils.training.runtime.start``) it ends at once.
    """
    _ready_streams()
    try:
        main()
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left unwritten has no reader
        print("ended: nothing reads the output any more", file=sys.stderr)
        sys.exit(141)
    except KeyboardInterrupt:
        print("ended: interrupted", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        known = named(error)
        if known and not _said(str(known)):
            print(f"error: {known}", file=sys.stderr, flush=True)
        if dist.is_initialized():
            if not known:
                traceback.print_exc()
            for stream in filter(None, (sys.stdout, sys.stderr)):
                stream.flush()
            os._exit(2 if known else 1)
        if not known:
            raise
        sys.exit(2)


def _ready_streams() -> None:
    """What is printed ends no program: a stream closed by the caller leads nowhere, no character is too strange."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            nowhere = os.open(os.devnull, os.O_RDWR)  # the lowest number that is free: most likely the stream's own
            setattr(sys, name, os.fdopen(nowhere, "r" if number == 0 else "w"))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _said(message: str) -> bool:
    """Whether another process of this launch has said it, or where it only points at another, anything."""
    error_file = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if not error_file:
        return False
    folder = Path(error_file).parents[1]  # that torchrun gives the processes of one launch on one machine
    if message.startswith(ANOTHER):
        time.sleep(1)  # who lost its peers is a second ahead of their message at most
        return any(folder.glob("said-*"))
    try:
        (folder / f"said-{zlib.crc32(message.encode())}").touch(exist_ok=False)
    except FileExistsError:
        return True
    except OSError:
        return False  # rather twice than not at all
    return False
