"""Run a script in several processes of this machine, as torchrun does, and end as they end.

    python scripts/processes.py 2 train_teacher.py --recipe toy

The status is that of the first process that failed, where torchrun's is always 1: 2 for an error, which is printed
once, 3 for a run that a signal stopped after it saved itself. SIGTERM, SIGINT and SIGUSR1 are passed on.
"""

import os
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


def environment(rank: int, size: int, port: int, folder: Path) -> dict[str, str]:
    """The variables torchrun sets and this project reads. One thread a process, as torchrun has it, unless told."""
    (folder / str(rank)).mkdir()
    ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    shared = {"TORCHELASTIC_ERROR_FILE": folder / str(rank) / "error.json"}
    return {"OMP_NUM_THREADS": "1", **os.environ, **{k: str(v) for k, v in (ranks | address | shared).items()}}


def main(size: int, command: list[str]) -> int:
    """The exit status of ``command`` in ``size`` processes, each in a session of its own."""
    with socket.socket() as free, tempfile.TemporaryDirectory() as folder:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        running = {}
        for number in PASSED_ON:
            signal.signal(number, lambda number, _: [p.send_signal(number) for p in running.values()])
        for rank in range(size):
            line, env = [sys.executable, *command], environment(rank, size, port, Path(folder))
            process = subprocess.Popen(line, env=env, start_new_session=True)
            running[process.pid] = process
        status = 0
        while running:
            pid, code = os.wait()
            code = os.waitstatus_to_exitcode(code)
            running.pop(pid).returncode = code
            if code and not status:
                status = code if code > 0 else 128 - code
                if code < 0:
                    print(f"error: a process was ended by {signal.Signals(-code).name}", file=sys.stderr)
                for process in running.values():  # without one process the others cannot go on
                    process.terminate()
    return status


if __name__ == "__main__":
    if len(sys.argv) < 3 or not sys.argv[1].isdecimal():
        sys.exit("usage: python scripts/processes.py NUMBER SCRIPT [flags]")
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]))
