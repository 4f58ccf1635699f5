"""File descriptors: loader workers send each tensor as one through a socket, and a process may have few."""

import os
import resource
import tempfile
from multiprocessing.connection import Listener

from utils.errors import UserError

SPARE = 24  # what a process opens besides: logs, checkpoints, and files that are open for a moment only
A_WORKER = 12  # what one worker takes: its pipes, its socket, and the image and label tensors of two batches


def count_open_files() -> int:
    """Count the file descriptors of this process."""
    return len(os.listdir("/proc/self/fd"))


def require_descriptors(workers: int) -> None:
    """Make sure that a process may open enough files for its loader workers; raise its own limit where it can.

    Raises:
        UserError: the system's limit is too low. Workers would fail in the middle of a run, or wait for ever.
    """
    if not workers:
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = count_open_files() + SPARE + A_WORKER * workers
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    if hard == resource.RLIM_INFINITY or hard >= needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
        return
    raise UserError(
        f"--workers {workers} need {needed} open files, this process may have {hard}: a higher limit (ulimit -n 4096; "
        "docker: --ulimit nofile=4096), or fewer --workers (0 needs none)"
    )


def require_sockets(workers: int) -> None:
    """Make sure that loader workers can make the sockets through which they send tensors.

    Each makes them in a folder of its own below TMPDIR. A worker that cannot make one only prints a traceback, and the
    main process waits for ever.

    Raises:
        UserError: no socket can be made there, for instance because its path is longer than about 100 characters.
    """
    if not workers:
        return
    try:
        # names as long as those that Python gives the folder and the sockets of a worker
        with tempfile.TemporaryDirectory(prefix="pymp-") as folder:
            Listener(os.path.join(folder, "listener-12345678"), family="AF_UNIX").close()
    except OSError as error:
        where = os.environ.get("TMPDIR", "/tmp")
        what = f"loader workers cannot make a socket in the temporary folder {where} ({error})"
        advice = "set TMPDIR to a folder with a short path that can be written to, or give --workers 0"
        raise UserError(f"{what}: {advice}") from error
