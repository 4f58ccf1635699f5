"""Training runs as processes: started in one of three ways, watched, and ended."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
ITERATIONS, SAVES, VALIDATIONS = 12, 3, 4  # of a run, and between its saves and validations
SMALL = [
    *("--crop-size", "32", "32", "--batch-size", "4", "--workers", "1", "--device", "cpu", "--lr", "0.01"),
    *("--max-iterations", str(ITERATIONS), "--save-per-iters", str(SAVES), "--val-per-iters", str(VALIDATIONS)),
    *("--log-iter", "1", "--resume", "auto"),
]
PATIENCE = 300  # seconds until a run has come as far as it should


class Job:
    """A run of a small network. ``launcher``: python, torchrun, or the shell script."""

    def __init__(
        self,
        role: str,
        launcher: str,
        processes: int,
        folder: Path,
        flags: tuple[str, ...] = (),
        prepare: Callable[[], object] | None = None,
    ) -> None:
        """prepare: called in the new process before it becomes the run."""
        self.role, self.launcher, self.processes, self.folder, self.flags = role, launcher, processes, folder, flags
        folder.mkdir(parents=True, exist_ok=True)
        restarts = [*flags[flags.index("--max-restarts") :][:2]] if "--max-restarts" in flags else []
        rest = [*SMALL, *(flag for flag in flags if flag not in restarts), "--save-dir", str(folder)]
        script, network = f"train_{role}.py", ("toy", "fcn", "resnet10t")
        named = [part for pair in zip(("--dataset", "--model", "--backbone"), network, strict=True) for part in pair]
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        lines = {
            "python": [sys.executable, script, *named],
            "torchrun": [*torchrun, *restarts, script, *named],
            "launcher": ["bash", f"scripts/train_{role}.sh", *network],
        }
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        environment = {**os.environ, "PATH": path, "NGPUS": str(processes), "OMP_NUM_THREADS": "1"}
        with (folder / "stdout.txt").open("ab") as out, (folder / "stderr.txt").open("wb") as err:
            self.process = subprocess.Popen(
                [*lines[launcher], *rest],
                cwd=ROOT,
                env={**environment, "CUDA_VISIBLE_DEVICES": ""},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
                preexec_fn=prepare,
            )
        self.pid = self.process.pid

    def until(self, holds: Callable[[], bool], patience: float = PATIENCE) -> None:
        """Wait for something in the run's folder.

        Raises:
            TimeoutError: it does not happen, or the run has ended before.
        """
        deadline = time.monotonic() + patience
        while not holds():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.clear()
                raise TimeoutError(f"the run did not come as far as it should: {self.errors()}")
            time.sleep(0.01)

    def kill(self, pid: int, number: int = signal.SIGKILL) -> None:
        os.kill(pid, number)

    def ranks(self) -> list[int]:
        """The training processes under torchrun."""
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        return [
            int(pid) for pid in children if f"train_{self.role}".encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
        ]

    def ended(self, patience: float, orphans: float) -> int:
        """Its status.

        Raises:
            TimeoutError: it, or one of its processes, is still there after so many seconds.
        """
        try:
            status = self.process.wait(patience)
            deadline = time.monotonic() + orphans
            while (left := members(self.folder)) and time.monotonic() < deadline:
                time.sleep(0.05)
            if left:
                raise TimeoutError(f"{len(left)} processes are left {orphans} s after its end")
        except subprocess.TimeoutExpired:
            raise TimeoutError(f"it did not end within {patience} s") from None
        finally:
            self.clear()
        return status

    def wait(self, patience: float) -> int:
        """Its status, at its end; nothing of it is left."""
        return self.ended(patience, 15)

    def clear(self) -> None:
        """End what is left of it."""
        for pid in members(self.folder):
            os.kill(pid, signal.SIGKILL)
        self.process.wait()

    def errors(self) -> str:
        """The end of what it said on stderr."""
        return (self.folder / "stderr.txt").read_text(errors="replace").strip()[-400:]


def iteration(folder: Path) -> int:
    """The last one in the log; 0: none yet."""
    log = folder / "metrics.jsonl"
    lines = log.read_text(errors="replace").split("\n")[:-1] if log.exists() else []
    return max((record["iteration"] for record in map(json.loads, lines) if record["event"] == "train"), default=0)


def members(folder: Path) -> list[int]:
    """Living processes of the run in a folder: those that have it on their command line."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            parts = (process / "cmdline").read_bytes().split(b"\0")  # empty for one that has ended
        except OSError:
            continue  # it has ended meanwhile
        if str(folder).encode() in parts:
            found.append(int(process.name))
    return found
