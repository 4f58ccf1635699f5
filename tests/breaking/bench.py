"""Reference runs without a fault, and the comparison of other runs with them."""

import json
import random
from pathlib import Path

import torch

from tests.breaking.processes import LAUNCHERS, Job, read_iteration
from utils import checkpoint


class CheckFailed(Exception):
    """A run did not survive a fault as it should. The message says what is wrong."""


def check(holds: bool, message: str) -> None:
    """Raise CheckFailed with the message unless the condition holds."""
    if not holds:
        raise CheckFailed(message)


class Bench:
    """Start runs in one folder, and keep the reference runs to compare them with."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder = folder
        self.random = random.Random(seed)
        self.number = 0  # of run folders so far

    def start_job(
        self, role: str = "teacher", launcher: str = "python", folder: Path | None = None, restarts: int = 0
    ) -> Job:
        """Start a run in ``folder``, or in a new folder if none is given."""
        if folder is None:
            self.number += 1
            folder = self.folder / f"run{self.number}"
        flags = ()
        if role == "student":
            flags = ("--kd", "cwd=3", "--teacher-pretrained", str(self.get_reference("teacher") / "last.pth"))
        return Job(role, launcher, folder, flags, restarts)

    def start_until(self, at: int, role: str = "teacher", launcher: str = "python", **options: int) -> Job:
        """Start a run and wait until its log has reached iteration ``at``."""
        job = self.start_job(role, launcher, None, **options)
        job.wait_until(lambda: read_iteration(job.folder) >= at)
        return job

    def get_reference(self, role: str, launcher: str = "python") -> Path:
        """Return the folder of the reference run. The first call runs it."""
        folder = self.folder / f"{role}-{LAUNCHERS[launcher]}"
        if not folder.exists():
            check(self.start_job(role, launcher, folder).wait() == 0, f"the run without a fault failed: {folder}")
        return folder

    def resume(self, job: Job) -> None:
        """Continue a run to its end and compare it with the reference run."""
        again = Job(job.role, job.launcher, job.folder, job.flags)
        check(again.wait() == 0, f"it cannot be continued: {again.read_errors()}")
        check_same_result(self.get_reference(job.role, job.launcher), job.folder)


def check_same_result(expected: Path, folder: Path) -> None:
    """Raise CheckFailed unless both runs ended with the same checkpoint and logged the same losses."""
    one, two = (checkpoint.read(path / "last.pth") for path in (expected, folder))
    for key in one["model"]:
        check(torch.equal(one["model"][key], two["model"][key]), f"{key} differs")
    for key, state in one["optimizer"]["state"].items():
        other = two["optimizer"]["state"][key]
        check(torch.equal(state["momentum_buffer"], other["momentum_buffer"]), f"momentum {key} differs")
    for key in ("iteration", "best_miou", "best_iteration"):
        check(one[key] == two[key], f"{key}: {two[key]} instead of {one[key]}")
    check(read_losses(expected) == read_losses(folder), "the losses in metrics.jsonl differ")


def read_losses(folder: Path) -> list[tuple]:
    """Read the events, losses and scores in a run's log."""
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(r["event"], r["iteration"], r.get("loss"), r.get("miou")) for r in records if r["event"] != "start"]
