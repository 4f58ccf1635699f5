"""Jobs that wait for each other, a few at a time; stopped at any point, they go on where they were."""

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from engine.lockstep import STOPPED_STATUS
from scripts.study.experiments.stop import Stop
from utils.files import write_text

ROOT = Path(__file__).resolve().parents[3]
VOLATILE = ("--workers", "--cache-gb")  # flags with a value that change nothing that is computed


@dataclass(frozen=True)
class Job:
    """A run of one seed: scripts with their flags, executed one after another, and the jobs it has to wait for."""

    name: str
    folder: Path
    commands: tuple[tuple[str, ...], ...]
    needs: tuple[str, ...]

    @property
    def mark(self) -> Path:
        """The file that says what was begun here, from what, and whether it has been done."""
        return self.folder / "job.json"

    def lasting(self) -> list[list[str]]:
        """The commands without the flags that change nothing that is computed."""
        return [
            [part for i, part in enumerate(command) if part not in VOLATILE and command[i - 1] not in VOLATILE]
            for command in self.commands
        ]


class Outcome(NamedTuple):
    """How a job ended; one that is neither done nor failed is continued when the runner is started again."""

    done: bool
    failed: bool
    text: str


def fingerprint(folder: Path) -> str | None:
    """What tells one training in a folder from another: its last training record, timing included."""
    log = folder / "metrics.jsonl"
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.is_file() else []
    return next((line for line in reversed(lines) if line.startswith('{"event": "train"')), None)


def origins_of(job: Job, jobs: Mapping[str, Job]) -> dict[str, str | None]:
    return {need: fingerprint(jobs[need].folder) for need in job.needs}


def write_mark(job: Job, jobs: Mapping[str, Job], done: bool) -> None:
    """Raises UserError when the file cannot be written."""
    content = {"done": done, "commands": job.lasting(), "origins": origins_of(job, jobs)}
    write_text(job.mark, json.dumps(content, indent=1) + "\n")


def state(job: Job, jobs: Mapping[str, Job]) -> Outcome | None:
    """Of a job that needs nothing more, or cannot go on: what it started from is another training by now."""
    try:
        mark = json.loads(job.mark.read_text(encoding="utf-8"))
        done, commands, origins = mark["done"], mark["commands"], dict(mark["origins"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    now = origins_of(job, jobs)
    changed = [need for need in job.needs if origins.get(need) != now[need]]
    if changed:
        return Outcome(False, True, f"{changed[0]} was trained anew since: remove {job.folder} to do this run again")
    return Outcome(True, False, "done before") if done and commands == job.lasting() else None


class Worker:
    """A job in execution. Its output goes to log.txt in its folder."""

    def __init__(self, job: Job, environment: Mapping[str, str]) -> None:
        self.job, self.environment = job, environment
        self.left = list(job.commands)
        self.stopping = False
        self.log = (job.folder / "log.txt").open("a", encoding="utf-8")
        self._next()

    def _next(self) -> None:
        script, *flags = self.left.pop(0)
        print(f"$ python {shlex.join([script, *flags])}", file=self.log, flush=True)
        # a session of its own: the signals of our terminal reach it through stop() alone
        self.process = subprocess.Popen(
            [sys.executable, str(ROOT / script), *flags],
            env=os.environ | self.environment,
            stdin=subprocess.DEVNULL,
            stdout=self.log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def poll(self) -> Outcome | None:
        """Go on to the next command where one has ended. None: the job is not over."""
        status = self.process.poll()
        if status is None:
            return None
        if status == 0 and self.left and not self.stopping:
            self._next()
            return None
        self.log.close()
        if status == 0 and not self.left:
            return Outcome(True, False, "done")
        if self.stopping or status == STOPPED_STATUS:
            return Outcome(False, False, "stopped, to be continued")
        return Outcome(False, True, f"failed with status {status}: {self._last_line()} ({self.job.folder / 'log.txt'})")

    def _last_line(self) -> str:
        lines = (self.job.folder / "log.txt").read_text(encoding="utf-8", errors="replace").splitlines()
        return next((line for line in reversed(lines) if line.strip()), "")

    def stop(self) -> None:
        """The training scripts save what they have and end."""
        if not self.stopping:
            self.stopping = True
            self.process.terminate()


def execute(
    jobs: Mapping[str, Job],
    slots: Sequence[Mapping[str, str]],
    stop: Stop,
    on_done: Callable[[Job], None] = lambda job: None,
    say: Callable[[str], None] = print,
) -> dict[str, Outcome]:
    """Every job that is not done, as soon as what it needs is; how each ended, by name.

    slots: what is added to the environment of each job that goes on at a time. on_done: called after each job that is
    done, also before. Whatever happens here, no job is left running.
    """
    ended = {name: outcome for name, job in jobs.items() if (outcome := state(job, jobs))}
    running: dict[int, Worker] = {}
    waiting = [name for name in jobs if name not in ended]
    try:
        for name, outcome in ended.items():
            if outcome.done:
                on_done(jobs[name])
        while running or waiting:
            for name in list(waiting):
                lost = [need for need in jobs[name].needs if need in ended and not ended[need].done]
                if lost or stop:
                    waiting.remove(name)
                    failed = any(ended[need].failed for need in lost)
                    ended[name] = Outcome(False, failed, f"not begun: {lost[0]} is not done" if lost else "not begun")
            ready = [name for name in waiting if all(need in ended for need in jobs[name].needs)]
            for slot, name in zip((slot for slot in range(len(slots)) if slot not in running), ready, strict=False):
                waiting.remove(name)
                say(f"{name} begins")
                write_mark(jobs[name], jobs, done=False)
                running[slot] = Worker(jobs[name], slots[slot])
            for slot, worker in list(running.items()):
                if stop:
                    worker.stop()
                if outcome := worker.poll():
                    del running[slot]
                    job = worker.job
                    if outcome.done:
                        write_mark(job, jobs, done=True)
                        on_done(job)
                    ended[job.name] = outcome
                    say(f"{job.name}: {outcome.text}")
            time.sleep(0.2)
    finally:
        for worker in running.values():
            worker.stop()
        for worker in running.values():
            worker.process.wait()
    return {name: ended[name] for name in jobs}
