"""The faults: each breaks a run, and looks whether anything is lost."""

import os
import resource
import shutil
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from tests.breaking.bench import Bench, demand, same
from tests.breaking.processes import ITERATIONS, Job, iteration
from utils import checkpoint

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
LONG = {"patience": 3e5, "interval": 1}  # seconds: a long run's log is long to read
END = 30  # seconds after a signal until the run has ended


def killed(bench: Bench, role: str) -> None:
    """SIGKILL to the whole run at a random moment of its life, start and end included."""
    bench.reference(role)
    job = bench.begun(bench.random.randint(0, ITERATIONS), role)
    time.sleep(bench.random.uniform(0, 0.5))
    job.clear()
    bench.resume(job)


def signalled(bench: Bench, launcher: str) -> None:
    """A signal to the process that was started; every 4 tries have all of them."""
    number = SIGNALS[bench.number % len(SIGNALS)]
    job = bench.begun(bench.random.randint(1, 9), "teacher", launcher)
    job.process.send_signal(number)
    job.wait(END)
    saved, logged = checkpoint.read(job.folder / "last.pth")["iteration"], iteration(job.folder)
    demand(saved == logged, f"{number.name}: saved at iteration {saved}, trained to {logged}")
    bench.resume(job)


def rank_killed(bench: Bench) -> None:
    """SIGKILL to one of two processes: the other ends, and a second start continues."""
    job = bench.begun(3, "teacher", "torchrun")
    os.kill(bench.random.choice(job.ranks()), signal.SIGKILL)
    demand(job.wait(END) != 0, "the job's status is 0")
    bench.resume(job)


def rank_restarted(bench: Bench) -> None:
    """The same under --max-restarts 1: the job itself goes on to its end."""
    bench.reference("teacher", "torchrun")
    job = bench.begun(3, "teacher", "torchrun", restarts=1)
    os.kill(bench.random.choice(job.ranks()), signal.SIGKILL)
    demand(job.wait() == 0, f"it did not go on: {job.errors()}")
    same(bench.reference("teacher", "torchrun"), job.folder)


def stop_restarted(bench: Bench) -> None:
    """A signal to one process under --max-restarts 3 is a stop, not a failure to be restarted."""
    job = bench.begun(3, "teacher", "torchrun", restarts=3)
    os.kill(bench.random.choice(job.ranks()), signal.SIGUSR1)
    job.wait(END)
    bench.resume(job)


def agent_killed(bench: Bench) -> None:
    """SIGKILL to torchrun itself: its processes notice, save and end."""
    job = bench.begun(3, "teacher", "torchrun")
    job.process.kill()
    job.wait(END)
    demand(checkpoint.read(job.folder / "last.pth")["iteration"] >= iteration(job.folder), "work was lost")
    bench.resume(job)


def damaged(bench: Bench) -> None:
    """The last checkpoint cut off anywhere, or one bit of it changed: the previous one takes its place."""
    bench.number += 1
    folder = shutil.copytree(bench.reference("teacher"), bench.folder / f"run{bench.number}")
    path = folder / "last.pth"
    data = bytearray(path.read_bytes())
    place = bench.random.randrange(len(data))
    if bench.random.random() < 0.5:
        data = data[:place]
    else:
        data[place] ^= 1 << bench.random.randrange(8)
    path.write_bytes(data)
    job = bench.job("teacher", "python", folder)
    demand(job.wait() == 0, f"it cannot be continued: {job.errors()}")
    demand("continuing from" in job.errors(), "the damage was not noticed")
    same(bench.reference("teacher"), folder)


def disk_full(bench: Bench) -> None:
    """No file can grow beyond less than a checkpoint: the old one stays, the error names the file."""
    job = bench.job()
    job.until(lambda: (job.folder / "last.pth").exists())
    job.clear()
    size = (job.folder / "last.pth").stat().st_size
    before = checkpoint.read(job.folder / "last.pth")["iteration"]
    limit = bench.random.randrange(size // 10, size)
    full = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (limit, limit))
    again = Job(job.role, job.launcher, job.folder, prepare=full)
    demand(again.wait() == 2, f"it did not fail: {again.errors()}")
    demand("last.pth: File too large" in again.errors(), f"its error is {again.errors()}")
    demand(checkpoint.read(job.folder / "last.pth")["iteration"] == before, "the old checkpoint is gone")
    bench.resume(job)


def soak(bench: Bench, iterations: int) -> str:
    """A long run: what it holds and has open must not grow, nor its log without bound. Returns the figures."""
    flags = f"--max-iterations {iterations} --save-per-iters 800 --val-per-iters 800 --log-iter 10".split()
    flags += ["--backbone", "test_resnet"]  # timm's smallest
    bench.number += 1
    job = Job("teacher", "python", bench.folder / f"run{bench.number}", flags)
    job.until(lambda: iteration(job.folder) >= min(1600, iterations // 4), **LONG)
    first = usage(job.process.pid)
    job.until(lambda: iteration(job.folder) >= iterations * 0.9, **LONG)
    last = usage(job.process.pid)
    demand(job.wait() == 0, f"it failed: {job.errors()}")
    growth, log = (last[0] - first[0]) / 1e6, (job.folder / "metrics.jsonl").stat().st_size
    demand(growth < 50, f"its memory grew by {growth:.0f} MB")
    demand(last[1] <= first[1] + 2, f"its open files grew from {first[1]} to {last[1]}")
    demand(log / iterations * 40000 < 10e6, f"its log is of {log / 1e6:.1f} MB")
    files = f"open files {first[1]} to {last[1]}, log {log / 1e6:.2f} MB"
    return f"{iterations} iterations: memory {growth:+.1f} MB, {files}"


def usage(pid: int) -> tuple[int, int]:
    """Bytes in memory and open files of a process."""
    lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(lines["VmRSS"].split()[0]) * 1024, len(list(Path(f"/proc/{pid}/fd").iterdir()))


FAULTS: dict[str, tuple[str, Callable[[Bench], object]]] = {
    "sigkill_teacher": ("SIGKILL at a random moment, teacher", partial(killed, role="teacher")),
    "sigkill_student": ("SIGKILL at a random moment, student", partial(killed, role="student")),
    "signal_python": ("TERM, INT, USR1, HUP under python", partial(signalled, launcher="python")),
    "signal_torchrun": ("TERM, INT, USR1, HUP under torchrun, 2 processes", partial(signalled, launcher="torchrun")),
    "signal_launcher": ("TERM, INT, USR1, HUP to the shell launcher", partial(signalled, launcher="launcher")),
    "rank_killed": ("SIGKILL to one of 2 processes", rank_killed),
    "rank_restarted": ("the same under --max-restarts 1", rank_restarted),
    "stop_restarted": ("USR1 to one process under --max-restarts 3", stop_restarted),
    "agent_killed": ("SIGKILL to torchrun", agent_killed),
    "damaged": ("last.pth cut off or one bit changed", damaged),
    "disk_full": ("no space for a checkpoint", disk_full),
}
