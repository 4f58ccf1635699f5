"""Errors for people: one line that says what was wrong, where, and what to do."""

import difflib
import os
import sys
import time
import zlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TypeVar

import torch

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


def first_line(error: BaseException) -> str:
    """Of an error's message, or its kind when it has none."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def run_main(main: Callable[[], None]) -> None:
    """Call an entry script's ``main``, turning a UserError into one line on stderr and exit status 2.

    When the reader of its output goes away (``| head``) it says so and ends with status 141, as of SIGPIPE.
    """
    try:
        main()
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left unwritten has no reader
        print("ended: nothing reads the output any more", file=sys.stderr)
        sys.exit(141)
    except UserError as error:
        sys.exit(_fail(str(error)))
    except torch.OutOfMemoryError as error:
        sys.exit(_fail(f"{first_line(error)} Try a smaller --batch-size or --crop-size, or --amp bf16."))
    except RuntimeError:
        time.sleep(1)  # one that lost its peers is a second ahead of their message at most
        if not (_mates() and any(_mates().glob("said-*"))):
            raise
        sys.exit(2)


def _fail(message: str) -> int:
    if not _said(message):
        print(f"error: {message}", file=sys.stderr, flush=True)
    return 2


def _said(message: str) -> bool:
    """Whether another process of this launch has said the same."""
    try:
        if _mates():
            (_mates() / f"said-{zlib.crc32(message.encode())}").touch(exist_ok=False)
    except FileExistsError:
        return True
    except OSError:
        pass  # rather twice than not at all
    return False


def _mates() -> Path | None:
    """The folder that torchrun and scripts/processes.py give the processes of one launch on one machine."""
    error_file = os.environ.get("TORCHELASTIC_ERROR_FILE")
    return Path(error_file).parents[1] if error_file else None
