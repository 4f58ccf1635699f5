"""Runs without a fault, and what others are compared with."""

import json
import random
from pathlib import Path

import torch

from tests.breaking.processes import LAUNCHERS, Job, iteration
from utils import checkpoint


class Lost(Exception):
    """Something was lost; the message says what."""


def demand(holds: bool, what: str) -> None:
    if not holds:
        raise Lost(what)


class Bench:
    """A folder for runs, and the runs without a fault that others are compared with."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.random, self.number = folder, random.Random(seed), 0

    def job(
        self, role: str = "teacher", launcher: str = "python", folder: Path | None = None, restarts: int = 0
    ) -> Job:
        self.number += folder is None
        folder = folder or self.folder / f"run{self.number}"
        flags = ()
        if role == "student":
            flags = ("--kd", "cwd=3", "--teacher-pretrained", str(self.reference("teacher") / "last.pth"))
        return Job(role, launcher, folder, flags, restarts)

    def begun(self, at: int, role: str = "teacher", launcher: str = "python", **options: int) -> Job:
        """A run that has come to an iteration."""
        job = self.job(role, launcher, None, **options)
        job.until(lambda: iteration(job.folder) >= at)
        return job

    def reference(self, role: str, launcher: str = "python") -> Path:
        folder = self.folder / f"{role}-{LAUNCHERS[launcher]}"
        if not folder.exists():
            demand(self.job(role, launcher, folder).wait() == 0, f"the run without a fault failed: {folder}")
        return folder

    def resume(self, job: Job) -> None:
        """Continue a run to its end, and compare."""
        again = Job(job.role, job.launcher, job.folder, job.flags)
        demand(again.wait() == 0, f"it cannot be continued: {again.errors()}")
        same(self.reference(job.role, job.launcher), job.folder)


def same(expected: Path, folder: Path) -> None:
    one, two = (checkpoint.read(path / "last.pth") for path in (expected, folder))
    for key in one["model"]:
        demand(torch.equal(one["model"][key], two["model"][key]), f"{key} differs")
    for key, state in one["optimizer"]["state"].items():
        other = two["optimizer"]["state"][key]
        demand(torch.equal(state["momentum_buffer"], other["momentum_buffer"]), f"momentum {key} differs")
    for key in ("iteration", "best_miou", "best_iteration"):
        demand(one[key] == two[key], f"{key}: {two[key]} instead of {one[key]}")
    demand(losses(expected) == losses(folder), "the losses in metrics.jsonl differ")


def losses(folder: Path) -> list[tuple]:
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(r["event"], r["iteration"], r.get("loss"), r.get("miou")) for r in records if r["event"] != "start"]
