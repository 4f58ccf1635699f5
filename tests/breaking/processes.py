"""Training runs as processes: started in one of three ways, watched, and ended."""

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
ITERATIONS = 12  # of a run
SMALL = f"""
    --crop-size 32 32 --batch-size 4 --workers 1 --device cpu --lr 0.01 --resume auto
    --max-iterations {ITERATIONS} --save-per-iters 3 --val-per-iters 4 --log-iter 1
""".split()
LAUNCHERS = {"python": 1, "torchrun": 2, "launcher": 2}  # and their number of processes
PATIENCE = 300  # seconds until a run has come as far as it should
ORPHANS = 15  # seconds after a run's end until no process of it is left


class Job:
    """A run of a small network. ``launcher``: python, torchrun, or the shell script."""

    def __init__(
        self,
        role: str,
        launcher: str,
        folder: Path,
        flags: Sequence[str] = (),
        restarts: int = 0,
        prepare: Callable[[], object] | None = None,
    ) -> None:
        """restarts: of torchrun. prepare: called in the new process before it becomes the run."""
        self.role, self.launcher, self.folder, self.flags = role, launcher, folder, flags
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

    def until(self, holds: Callable[[], bool], patience: float = PATIENCE, interval: float = 0.01) -> None:
        """Wait for something in the run's folder, looking every so many seconds.

        Raises:
            TimeoutError: it does not happen, or the run has ended before.
        """
        deadline = time.monotonic() + patience
        while not holds():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.clear()
                raise TimeoutError(f"the run did not come as far as it should: {self.errors()}")
            time.sleep(interval)

    def ranks(self) -> list[int]:
        """The training processes under torchrun."""
        pid, script = self.process.pid, f"train_{self.role}".encode()
        children = map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
        return [child for child in children if script in Path(f"/proc/{child}/cmdline").read_bytes()]

    def wait(self, patience: float = 600) -> int:
        """Its status, at its end; nothing of it is left.

        Raises:
            TimeoutError: it is still there after so many seconds, or one of its processes is a while later.
        """
        try:
            status = self.process.wait(patience)
            deadline = time.monotonic() + ORPHANS
            while (left := members(self.folder)) and time.monotonic() < deadline:
                time.sleep(0.05)
            if left:
                raise TimeoutError(f"{len(left)} processes are left {ORPHANS} s after its end")
        except subprocess.TimeoutExpired:
            raise TimeoutError(f"it did not end within {patience} s: {describe_threads(self.folder)}") from None
        finally:
            self.clear()
        return status

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


def describe_threads(folder: Path) -> str:
    """What every thread of the run in a folder is called and waits for in the kernel."""
    found = []
    for pid in members(folder):
        with suppress(OSError):  # it has ended meanwhile
            for thread in sorted(Path(f"/proc/{pid}/task").iterdir()):
                name, waits_in = ((thread / file).read_text().strip() for file in ("comm", "wchan"))
                found.append(f"{pid}/{thread.name} {name} in {waits_in}")
    return ", ".join(found)


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
