"""Start a training run in processes of its own in one of three ways, watch it, and end it."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ITERATIONS = 12  # in one run
SMALL = f"""
    --crop-size 32 32 --batch-size 4 --workers 1 --device cpu --lr 0.01 --resume auto
    --max-iterations {ITERATIONS} --save-per-iters 3 --val-per-iters 4 --log-iter 1
""".split()
LAUNCHERS = {"python": 1, "torchrun": 2, "launcher": 2}  # launcher -> world size
PATIENCE = 300  # seconds to wait for a run to reach an expected state
ORPHAN_PATIENCE = 15  # seconds that the other processes of a run may outlive it


class Job:
    """A training run of a small network. ``launcher`` is python, torchrun, or launcher (the shell script)."""

    def __init__(
        self,
        role: str,
        launcher: str,
        folder: Path,
        flags: Sequence[str] = (),
        restarts: int = 0,
        prepare: Callable[[], object] | None = None,
    ) -> None:
        """Start the run.

        Args:
            restarts: the value of torchrun's --max-restarts.
            prepare: called in the new process before the training script starts there.
        """
        self.role = role
        self.launcher = launcher
        self.folder = folder
        self.flags = flags
        folder.mkdir(parents=True, exist_ok=True)
        count = str(LAUNCHERS[launcher])
        network = f"train_{role}.py --dataset toy --model fcn --backbone resnet10t".split()
        torchrun = f"-m torch.distributed.run --standalone --nproc-per-node {count} --max-restarts {restarts}".split()
        line = {
            "python": [sys.executable, *network],
            "torchrun": [sys.executable, *torchrun, *network],
            "launcher": ["bash", f"scripts/train_{role}.sh", "toy", "fcn", "resnet10t"],
        }[launcher]
        environment = {"NGPUS": count, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        environment["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        with (folder / "stdout.txt").open("ab") as out, (folder / "stderr.txt").open("wb") as err:
            self.process = subprocess.Popen(
                [*line, *SMALL, *flags, "--save-dir", str(folder)],
                cwd=ROOT,
                env=os.environ | environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
                preexec_fn=prepare,
            )

    def wait_until(self, holds: Callable[[], bool], patience: float = PATIENCE, interval: float = 0.01) -> None:
        """Wait until the condition ``holds``. Check it every ``interval`` seconds.

        Raises:
            TimeoutError: the condition does not hold after ``patience`` seconds, or the run has ended before.
        """
        deadline = time.monotonic() + patience
        while not holds():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.kill_all()
                raise TimeoutError(f"the run did not come as far as it should: {self.read_errors()}")
            time.sleep(interval)

    def list_ranks(self) -> list[int]:
        """Return the process ids of the ranks under torchrun."""
        pid, script = self.process.pid, f"train_{self.role}".encode()
        children = map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
        return [child for child in children if script in Path(f"/proc/{child}/cmdline").read_bytes()]

    def wait(self, patience: float = 600) -> int:
        """Wait for the run to end and return its exit status. Kill all processes that are left.

        Raises:
            TimeoutError: the run takes more than ``patience`` seconds, or its other processes outlive it for too long.
        """
        try:
            status = self.process.wait(patience)
            deadline = time.monotonic() + ORPHAN_PATIENCE
            while (left := list_processes(self.folder)) and time.monotonic() < deadline:
                time.sleep(0.05)
            if left:
                raise TimeoutError(f"{len(left)} processes are left {ORPHAN_PATIENCE} s after its end")
        except subprocess.TimeoutExpired:
            raise TimeoutError(f"it did not end within {patience} s: {describe_threads(self.folder)}") from None
        finally:
            self.kill_all()
        return status

    def kill_all(self) -> None:
        """Kill all processes of the run that are left."""
        for pid in list_processes(self.folder):
            os.kill(pid, signal.SIGKILL)
        self.process.wait()

    def read_errors(self) -> str:
        """Return the last 400 characters of the run's stderr."""
        return (self.folder / "stderr.txt").read_text(errors="replace").strip()[-400:]


def read_iteration(folder: Path) -> int:
    """Return the last training iteration in the log, or 0 if there is none yet."""
    log = folder / "metrics.jsonl"
    lines = log.read_text(errors="replace").split("\n")[:-1] if log.exists() else []
    return max((record["iteration"] for record in map(json.loads, lines) if record["event"] == "train"), default=0)


def describe_threads(folder: Path) -> str:
    """List the run's threads with their names and the kernel functions in which they wait."""
    found = []
    for pid in list_processes(folder):
        with suppress(OSError):  # the process has ended in the meantime
            for thread in sorted(Path(f"/proc/{pid}/task").iterdir()):
                name, waits_in = ((thread / file).read_text().strip() for file in ("comm", "wchan"))
                found.append(f"{pid}/{thread.name} {name} in {waits_in}")
    return ", ".join(found)


def list_processes(folder: Path) -> list[int]:
    """Return the ids of all running processes that have the run's folder on their command line."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            parts = (process / "cmdline").read_bytes().split(b"\0")  # empty if the process has ended
        except OSError:
            continue  # the process has ended in the meantime
        if str(folder).encode() in parts:
            found.append(int(process.name))
    return found
