"""Run jobs that wait for each other, a few at a time. Stopped at any point, they go on where they were."""

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
from scripts.study.experiments.stop import StopCondition
from utils.files import write_text

ROOT = Path(__file__).resolve().parents[3]
VOLATILE = {"--workers", "--cache-gb"}  # flags that change nothing that is computed; each has one value
DATA = "--data"
DIVIDED = ("train_teacher.py", "train_student.py", "eval.py")  # scripts that several processes run together


@dataclass(frozen=True)
class Job:
    """An arm of an experiment at one seed, as commands: train, then score. They are executed one after another.

    name: ``<arm>-<seed>``. folder: where the job writes. needs: the names of the jobs that have to be done before it.
    processes: how many the training and the scoring are divided over.
    """

    name: str
    folder: Path
    commands: tuple[tuple[str, ...], ...]
    needs: tuple[str, ...]
    processes: int = 1

    @property
    def mark(self) -> Path:
        """Return the file that says what was begun here, from what, and whether it is done."""
        return self.folder / "job.json"

    def list_lasting_commands(self) -> list[list[str]]:
        """Return the commands without the flags that change nothing that is computed."""
        return [remove_volatile_flags(command) for command in self.commands]


def remove_volatile_flags(command: Sequence[str]) -> list[str]:
    """Return a command without the flags of VOLATILE and their values."""
    lasting = []
    is_value = False  # of a flag that is left out
    for word in command:
        if word in VOLATILE:
            is_value = True
        elif is_value:
            is_value = False
        else:
            lasting.append(word)
    return lasting


def make_launch_words(command: Sequence[str], processes: int, root: str) -> list[str]:
    """Return the words after ``python`` that start a script of the folder ``root`` in that many processes."""
    script, *flags = command
    start = []
    if processes > 1 and script in DIVIDED:
        start = [os.path.join(root, "scripts/torchrun.py"), "--standalone", "--nproc-per-node", str(processes)]
    return [*start, os.path.join(root, script), *flags]


class Outcome(NamedTuple):
    """Say how a job ended on this machine. A job that is neither done nor failed is continued at the next start."""

    done: bool
    failed: bool
    text: str


class FolderBefore(NamedTuple):
    """Hold what a job's folder held before the job was started."""

    mark: str | None
    fingerprint: str | None


def read_text_if_there(path: Path) -> str | None:
    """Return the text of a file, None where there is no such file."""
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else None


def read_fingerprint(folder: Path) -> str | None:
    """Return what tells one training in a folder from another: its last training record, timing included."""
    log = read_text_if_there(folder / "metrics.jsonl") or ""
    for line in reversed(log.splitlines()):
        if line.startswith('{"event": "train"'):
            return line
    return None


def read_origins(output: Path, needs: Sequence[str]) -> dict[str, str | None]:
    """Return the fingerprints of the runs below ``output`` that a job starts from."""
    return {need: read_fingerprint(output / need) for need in needs}


def write_mark(job: Job, done: bool) -> None:
    """Write the mark of a job: whether it is done, its commands, and which trainings it started from.

    Raises:
        UserError: the file cannot be written.
    """
    origins = read_origins(job.folder.parent, job.needs)
    content = {"done": done, "commands": job.list_lasting_commands(), "origins": origins}
    write_text(job.mark, json.dumps(content, indent=1) + "\n")


def find_outcome(job: Job) -> Outcome | None:
    """Return how a job has ended, or None where it is to be run.

    A job is done, or it cannot go on because what it started from has been trained again since.
    """
    try:
        mark = json.loads(job.mark.read_text(encoding="utf-8"))
        done = mark["done"]
        commands = mark["commands"]
        origins = dict(mark["origins"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    now = read_origins(job.folder.parent, job.needs)
    changed = [need for need in job.needs if origins.get(need) != now[need]]
    if changed:
        text = f"{changed[0]} was trained anew since: remove {job.folder} to do this run again"
        return Outcome(done=False, failed=True, text=text)
    if done and are_same_commands(commands, job.list_lasting_commands()):
        return Outcome(done=True, failed=False, text="done before")
    return None


def are_same_commands(marked: Sequence[Sequence[str]], wanted: Sequence[Sequence[str]]) -> bool:
    """Return whether the commands of a mark are those of a job.

    A data folder may be written in another way (a relative path, a slash at its end). A job without a data folder, of
    which only the standing is asked for, fits any.
    """
    has_data = any(DATA in command for command in wanted)
    marked_commands = [_resolve_data_folder(command, has_data) for command in marked]
    wanted_commands = [_resolve_data_folder(command, has_data) for command in wanted]
    return marked_commands == wanted_commands


def _resolve_data_folder(command: Sequence[str], keep: bool) -> list[str]:
    """Return a command with its data folder as a full path, or without ``--data`` where it is not kept."""
    words = list(command)
    if DATA not in words[:-1]:
        return words
    i = words.index(DATA)
    if not keep:
        return words[:i] + words[i + 2 :]
    words[i + 1] = os.path.realpath(os.path.expanduser(words[i + 1]))
    return words


class Worker:
    """Run the commands of one job, one after another. Their output goes to log.txt in its folder."""

    def __init__(self, job: Job, environment: Mapping[str, str]) -> None:
        self.job = job
        self.environment = environment
        self.left = list(job.commands)
        self.stopping = False
        self.log = (job.folder / "log.txt").open("a", encoding="utf-8")
        self._start_next()

    def _start_next(self) -> None:
        """Start the next command that is left."""
        words = make_launch_words(self.left.pop(0), self.job.processes, str(ROOT))
        print(f"$ python {shlex.join(words)}", file=self.log, flush=True)
        # a session of its own: the signals of our terminal reach it through stop() alone
        self.process = subprocess.Popen(
            [sys.executable, *words],
            env=os.environ | self.environment,
            stdin=subprocess.DEVNULL,
            stdout=self.log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def poll(self) -> Outcome | None:
        """Go on to the next command where one has ended. Return None while the job is not over."""
        status = self.process.poll()
        if status is None:
            return None
        if status == 0 and self.left and not self.stopping:
            self._start_next()
            return None
        self.log.close()
        if status == 0 and not self.left:
            return Outcome(done=True, failed=False, text="done")
        if self.stopping or status == STOPPED_STATUS:
            return Outcome(done=False, failed=False, text="stopped, to be continued")
        log = self.job.folder / "log.txt"
        return Outcome(done=False, failed=True, text=f"failed with status {status}: {self._read_last_line()} ({log})")

    def _read_last_line(self) -> str:
        """Return the last line of the log that is not blank."""
        lines = (self.job.folder / "log.txt").read_text(encoding="utf-8", errors="replace").splitlines()
        return next((line for line in reversed(lines) if line.strip()), "")

    def stop(self) -> None:
        """Ask the training script to save what it has and to end."""
        if not self.stopping:
            self.stopping = True
            self.process.terminate()


def execute_jobs(
    jobs: Mapping[str, Job],
    slots: Sequence[Mapping[str, str]],
    stop: StopCondition,
    on_done: Callable[[Job], None] = lambda job: None,
    say: Callable[[str], None] = print,
) -> dict[str, Outcome]:
    """Run every job that is not done, as soon as what it needs is done. Return how each ended, by name.

    slots: each is a place for one job at a time, with what is added to the job's environment. on_done: called after
    each job that is done, also for those done before. Whatever happens here, no job is left running.
    """
    queue = Queue(jobs, slots, stop, on_done, say)
    try:
        queue.report_done_before()
        while queue.running or queue.waiting:
            queue.drop_hopeless()
            queue.start_ready()
            queue.collect_ended()
            time.sleep(0.2)
    finally:
        queue.stop_all()
    return {name: queue.ended[name] for name in jobs}


class Queue:
    """Keep which jobs wait, which run in which slot, and how the others ended."""

    def __init__(
        self,
        jobs: Mapping[str, Job],
        slots: Sequence[Mapping[str, str]],
        stop: StopCondition,
        on_done: Callable[[Job], None],
        say: Callable[[str], None],
    ) -> None:
        self.jobs = jobs
        self.slots = slots
        self.stop = stop
        self.on_done = on_done
        self.say = say
        self.ended: dict[str, Outcome] = {}
        for name, job in jobs.items():
            outcome = find_outcome(job)
            if outcome is not None:
                self.ended[name] = outcome
        self.waiting = [name for name in jobs if name not in self.ended]
        self.running: dict[int, Worker] = {}
        self.before: dict[str, FolderBefore] = {}  # of each job that was started

    def report_done_before(self) -> None:
        """Call ``on_done`` for each job that was done before the start."""
        for name, outcome in self.ended.items():
            if outcome.done:
                self.on_done(self.jobs[name])

    def drop_hopeless(self) -> None:
        """End the waiting jobs whose needs did not get done, and all of them after a stop."""
        for name in list(self.waiting):
            lost = [need for need in self.jobs[name].needs if need in self.ended and not self.ended[need].done]
            if lost:
                failed = any(self.ended[need].failed for need in lost)
                self.ended[name] = Outcome(done=False, failed=failed, text=f"not begun: {lost[0]} is not done")
            elif self.stop.is_met():
                self.ended[name] = Outcome(done=False, failed=False, text="not begun")
            if name in self.ended:
                self.waiting.remove(name)

    def start_ready(self) -> None:
        """Start as many jobs as there are free slots."""
        ready = [name for name in self.waiting if all(need in self.ended for need in self.jobs[name].needs)]
        free = [slot for slot in range(len(self.slots)) if slot not in self.running]
        for slot, name in zip(free, ready, strict=False):
            self.waiting.remove(name)
            self.say(f"{name} begins")
            job = self.jobs[name]
            self.before[name] = FolderBefore(read_text_if_there(job.mark), read_fingerprint(job.folder))
            write_mark(job, done=False)
            self.running[slot] = Worker(job, self.slots[slot])

    def collect_ended(self) -> None:
        """Note how the jobs ended that did. After a stop, ask the others to end."""
        for slot, worker in list(self.running.items()):
            if self.stop.is_met():
                worker.stop()
            outcome = worker.poll()
            if outcome is None:
                continue
            del self.running[slot]
            if outcome.done:
                write_mark(worker.job, done=True)
                self.on_done(worker.job)
            elif outcome.failed:
                self.restore_mark(worker.job)
            self.ended[worker.job.name] = outcome
            self.say(f"{worker.job.name}: {outcome.text}")

    def restore_mark(self, job: Job) -> None:
        """Put back the mark of a job that failed before it trained: what was done there is done still."""
        mark, fingerprint = self.before[job.name]
        if mark is not None and read_fingerprint(job.folder) == fingerprint:
            write_text(job.mark, mark)

    def stop_all(self) -> None:
        """Ask all running jobs to end, and wait until they have."""
        for worker in self.running.values():
            worker.stop()
        for worker in self.running.values():
            worker.process.wait()
