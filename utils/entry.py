"""Start and end the process of an entry script."""

import atexit
import io
import os
import sys
import time
import traceback
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

from utils.distributed import is_launched
from utils.errors import ANOTHER, UserError, explain_error

TRACEBACK = "LAD_TRACEBACK"


def run_main(main: Callable[[], None]) -> None:
    """Call an entry script's ``main`` and turn known errors into one line on stderr and exit status 2.

    The environment variable LAD_TRACEBACK=1 shows the traceback of such an error as well. When the reader of the output
    goes away (``| head``), the status is 141, as of SIGPIPE; after an interrupt it is 130.
    """
    _prepare_streams()
    status = _run_and_get_status(main)
    _flush_streams()
    if is_launched():
        _end_without_finalization(status)
    if status:
        sys.exit(status)


def _run_and_get_status(main: Callable[[], None]) -> int:
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
        _redirect_to_nowhere(sys.stdout)
        _print_last("ended: nothing reads the output any more")
        return 141
    except KeyboardInterrupt:
        _print_last("ended: interrupted")
        return 130
    except Exception as error:
        known = explain_error(error)
        if known is not None:
            _print_error(known)
            if is_launched():
                _end_at_once(2)
            return 2
        if is_launched():
            sys.excepthook(type(error), error, error.__traceback__)
            _end_at_once(1)
        raise
    return 0


def _read_status(code: object) -> int:
    """Return the exit status of a SystemExit. A code that is no number is a message, which is printed."""
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
    """Print a line on stderr. If stderr cannot be written to, the exit status alone tells what happened."""
    try:
        print(text, file=sys.stderr, flush=True)
    except OSError:
        _redirect_to_nowhere(sys.stderr)


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
    """Write out what is buffered. What cannot be written is dropped, so that the exit status does not change."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except OSError:
            _redirect_to_nowhere(stream)


def _redirect_to_nowhere(stream: TextIO) -> None:
    """Let a stream write to nowhere. Otherwise Python would fail to flush it at exit, and change the exit status."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _prepare_streams() -> None:
    """Make printing safe: open closed streams to nowhere, and escape characters that a stream cannot print."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            nowhere = os.open(os.devnull, os.O_RDWR)  # takes the lowest free descriptor: most likely the stream's own
            setattr(sys, name, os.fdopen(nowhere, "r" if number == 0 else "w"))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _was_printed(message: str) -> bool:
    """Return whether another rank has printed a message. If none has, note that this rank prints it.

    For a message that only points at another rank's, return whether any rank has printed a message.
    """
    error_file = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if not error_file:
        return False
    folder = Path(error_file).parents[1]  # torchrun makes it for all processes of one launch on one machine
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
