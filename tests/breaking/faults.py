"""The faults. Each function breaks a run and checks that nothing is lost."""

import os
import resource
import shutil
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from tests.breaking.bench import Bench, check, check_same_result
from tests.breaking.processes import ITERATIONS, Job, read_iteration
from utils import checkpoint

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
LONG_RUN_WAIT = {"patience": 3e5, "interval": 1}  # seconds; rarely, because the long log takes long to read
END_PATIENCE = 30  # seconds that a run may take to end after a signal


def kill_run(bench: Bench, role: str) -> None:
    """Send SIGKILL to the whole run at a random moment, which may be during its start or its end."""
    bench.get_reference(role)
    job = bench.start_until(bench.random.randint(0, ITERATIONS), role)
    time.sleep(bench.random.uniform(0, 0.5))
    job.kill_all()
    bench.resume(job)


def send_stop_signal(bench: Bench, launcher: str) -> None:
    """Send a signal to the process that was started. Four calls in a row send all four signals."""
    number = SIGNALS[bench.number % len(SIGNALS)]
    job = bench.start_until(bench.random.randint(1, 9), "teacher", launcher)
    job.process.send_signal(number)
    check(job.wait(END_PATIENCE) != 0, f"{number.name}: the job's status is 0")
    saved, logged = checkpoint.read(job.folder / "last.pth")["iteration"], read_iteration(job.folder)
    check(saved == logged, f"{number.name}: saved at iteration {saved}, trained to {logged}")
    bench.resume(job)


def kill_rank(bench: Bench) -> None:
    """Send SIGKILL to one of two ranks. The other rank ends, and a second start continues the run."""
    job = bench.start_until(3, "teacher", "torchrun")
    os.kill(bench.random.choice(job.list_ranks()), signal.SIGKILL)
    check(job.wait(END_PATIENCE) != 0, "the job's status is 0")
    bench.resume(job)


def kill_rank_and_restart(bench: Bench) -> None:
    """Send SIGKILL to one of two ranks under --max-restarts 1. The job itself continues to its end."""
    bench.get_reference("teacher", "torchrun")
    job = bench.start_until(3, "teacher", "torchrun", restarts=1)
    os.kill(bench.random.choice(job.list_ranks()), signal.SIGKILL)
    check(job.wait() == 0, f"it did not go on: {job.read_errors()}")
    check_same_result(bench.get_reference("teacher", "torchrun"), job.folder)


def stop_rank_without_restart(bench: Bench) -> None:
    """Send a signal to one rank under --max-restarts 3. The run stops, and torchrun does not restart it."""
    job = bench.start_until(3, "teacher", "torchrun", restarts=3)
    os.kill(bench.random.choice(job.list_ranks()), signal.SIGUSR1)
    check(job.wait(END_PATIENCE) != 0, "the job's status is 0: it was restarted, or it did not stop")
    bench.resume(job)


def kill_torchrun(bench: Bench) -> None:
    """Send SIGKILL to torchrun itself. Its ranks notice this, save and end."""
    job = bench.start_until(3, "teacher", "torchrun")
    job.process.kill()
    job.wait(END_PATIENCE)
    check(checkpoint.read(job.folder / "last.pth")["iteration"] >= read_iteration(job.folder), "work was lost")
    bench.resume(job)


def damage_checkpoint(bench: Bench) -> None:
    """Cut off last.pth anywhere, or flip one bit of it. The run continues from the previous checkpoint."""
    bench.number += 1
    folder = shutil.copytree(bench.get_reference("teacher"), bench.folder / f"run{bench.number}")
    path = folder / "last.pth"
    data = bytearray(path.read_bytes())
    place = bench.random.randrange(len(data))
    if bench.random.random() < 0.5:
        data = data[:place]
    else:
        data[place] ^= 1 << bench.random.randrange(8)
    path.write_bytes(data)
    job = bench.start_job("teacher", "python", folder)
    check(job.wait() == 0, f"it cannot be continued: {job.read_errors()}")
    check("continuing from" in job.read_errors(), "the damage was not noticed")
    check_same_result(bench.get_reference("teacher"), folder)


def limit_file_size(bench: Bench) -> None:
    """Limit the size of files to less than a checkpoint. The old checkpoint stays, and the error names the file."""
    job = bench.start_job()
    job.wait_until(lambda: (job.folder / "last.pth").exists())
    job.kill_all()
    size = (job.folder / "last.pth").stat().st_size
    before = checkpoint.read(job.folder / "last.pth")["iteration"]
    limit = bench.random.randrange(size // 10, size)
    set_limit = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (limit, limit))
    again = Job(job.role, job.launcher, job.folder, prepare=set_limit)
    check(again.wait() == 2, f"it did not fail: {again.read_errors()}")
    check("last.pth: File too large" in again.read_errors(), f"its error is {again.read_errors()}")
    check(checkpoint.read(job.folder / "last.pth")["iteration"] == before, "the old checkpoint is gone")
    bench.resume(job)


def check_long_run(bench: Bench, iterations: int) -> str:
    """Check that the memory, the open files and the log of a long run stay small. Return the figures as text."""
    flags = f"--max-iterations {iterations} --save-per-iters 800 --val-per-iters 800 --log-iter 10".split()
    flags += ["--backbone", "test_resnet"]  # timm's smallest
    bench.number += 1
    job = Job("teacher", "python", bench.folder / f"run{bench.number}", flags)
    job.wait_until(lambda: read_iteration(job.folder) >= min(1600, iterations // 4), **LONG_RUN_WAIT)
    first_memory, first_files = measure_usage(job.process.pid)
    job.wait_until(lambda: read_iteration(job.folder) >= iterations * 0.9, **LONG_RUN_WAIT)
    last_memory, last_files = measure_usage(job.process.pid)
    check(job.wait() == 0, f"it failed: {job.read_errors()}")
    growth = (last_memory - first_memory) / 1e6
    log = (job.folder / "metrics.jsonl").stat().st_size
    check(growth < 50, f"its memory grew by {growth:.0f} MB")
    check(last_files <= first_files + 2, f"its open files grew from {first_files} to {last_files}")
    check(log / iterations * 40000 < 10e6, f"its log is of {log / 1e6:.1f} MB")
    files = f"open files {first_files} to {last_files}, log {log / 1e6:.2f} MB"
    return f"{iterations} iterations: memory {growth:+.1f} MB, {files}"


def measure_usage(pid: int) -> tuple[int, int]:
    """Return a process's resident memory in bytes and its number of open files."""
    lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(lines["VmRSS"].split()[0]) * 1024, len(list(Path(f"/proc/{pid}/fd").iterdir()))


FAULTS: dict[str, Callable[[Bench], object]] = {
    "sigkill_teacher": partial(kill_run, role="teacher"),
    "sigkill_student": partial(kill_run, role="student"),
    "signal_python": partial(send_stop_signal, launcher="python"),
    "signal_torchrun": partial(send_stop_signal, launcher="torchrun"),
    "signal_launcher": partial(send_stop_signal, launcher="launcher"),
    "kill_rank": kill_rank,
    "kill_rank_and_restart": kill_rank_and_restart,
    "stop_rank_without_restart": stop_rank_without_restart,
    "kill_torchrun": kill_torchrun,
    "damage_checkpoint": damage_checkpoint,
    "limit_file_size": limit_file_size,
}
