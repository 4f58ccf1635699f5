"""Submit the jobs of an experiment to SLURM, each after those it needs, and tell where each stands.

What schedules, retries and continues is SLURM's. The number of a run's last job is kept in its folder, so that a run
that is queued, running or done is left alone when the experiment is submitted again.
"""

import json
import os
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from scripts.study.experiments.jobs import ROOT, Job, find_outcome, write_mark
from utils.errors import UserError
from utils.files import write_text

SUBMISSION = "slurm.json"  # in a run's folder: the number of its job, and what the job needs to note that it is done
FINISH = "scripts/study/experiments/finish.py"


class Standing(NamedTuple):
    """Say where a job of the experiment stands under SLURM.

    text: in words. job: the number that SLURM gave to its last submission, or "". active: it is queued or running.
    blocked: it ended without getting done, or cannot be submitted; jobs that need it cannot start.
    """

    text: str
    job: str = ""
    done: bool = False
    active: bool = False
    blocked: bool = False


def submit_jobs(
    jobs: Mapping[str, Job], arguments: Sequence[str], processes: int | None, say: Callable[[str], None] = print
) -> dict[str, Standing]:
    """Submit every job that is neither done, queued nor running. Return where each stands then, by name.

    A job is not submitted either if it cannot go on, or if one that it needs is not.

    jobs: each after those it needs. arguments: further arguments of sbatch. processes: how many a run has on each node;
    None: one for each GPU of the node. say: called with a line on each job.

    Raises:
        UserError: SLURM's commands are missing, or sbatch refuses a job.
    """
    standings = read_standings(jobs)
    for name, job in jobs.items():
        outcome = find_outcome(job)
        if standings[name].done or standings[name].active:
            say(f"{name}: {standings[name].text}")
        elif outcome and outcome.failed:
            standings[name] = Standing(outcome.text, blocked=True)
            say(f"{name}: {outcome.text}")
        elif any(standings[need].blocked for need in job.needs):
            standings[name] = Standing("not submitted: a run that it starts from cannot go on", blocked=True)
            say(f"{name}: {standings[name].text}")
        else:
            needed_jobs = [standings[need].job for need in job.needs]
            number = _submit(job, needed_jobs, arguments, processes)
            standings[name] = Standing(f"submitted as job {number}", number, active=True)
            say(f"{name}: {standings[name].text}")
    return standings


def read_standings(jobs: Mapping[str, Job]) -> dict[str, Standing]:
    """Return where each job stands, by name.

    Raises:
        UserError: squeue is missing or fails.
    """
    queued = _read_queue()
    return {name: _read_standing(job, queued) for name, job in jobs.items()}


def finish_run(folder: Path) -> None:
    """Note in a run's folder that it is done, as the runner of one machine does.

    Raises:
        UserError: the folder is no submitted run.
    """
    try:
        content = json.loads((folder / SUBMISSION).read_text(encoding="utf-8"))
        job = Job(folder.name, folder, tuple(map(tuple, content["commands"])), tuple(content["needs"]))
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UserError(f"{folder} is no run that was submitted to SLURM: {error}") from error
    write_mark(job, done=True)


def _submit(job: Job, needs: Sequence[str], arguments: Sequence[str], processes: int | None) -> str:
    """Submit a job and return its number.

    needs: the number of each job that must end first, "" where that is done already.
    """
    job.folder.mkdir(parents=True, exist_ok=True)
    words = ["sbatch", "--parsable", "--job-name", job.name, "--output", str(job.folder.resolve() / "log.txt")]
    waits = [number for number in needs if number]
    if waits:
        words += [f"--dependency=afterok:{':'.join(waits)}", "--kill-on-invalid-dep=yes"]
    words += [*arguments, str(ROOT / "scripts/slurm.sh")]
    for i, command in enumerate([*job.commands, (FINISH, str(job.folder))]):
        if i > 0:
            words.append("--then")
        words += [str(ROOT / command[0]), *command[1:]]
    environment = dict(os.environ)
    if processes:
        environment["NGPUS"] = str(processes)
    answer = _run_command(words, environment).strip()  # "NUMBER", or "NUMBER;CLUSTER"
    number = answer.split(";")[0]
    content = {"job": number, "needs": list(job.needs), "commands": job.list_lasting_commands()}
    write_text(job.folder / SUBMISSION, json.dumps(content, indent=1) + "\n")
    return number


def _read_standing(job: Job, queued: Mapping[str, str]) -> Standing:
    """Return where a job stands. queued: the state of each job that is queued or running, by its number."""
    outcome = find_outcome(job)
    if outcome and outcome.done:
        return Standing("done", done=True)
    try:
        number = str(json.loads((job.folder / SUBMISSION).read_text(encoding="utf-8"))["job"])
    except (OSError, ValueError, LookupError, TypeError):
        return Standing("not submitted")
    if number in queued:
        return Standing(f"job {number}: {queued[number]}", number, active=True)
    return Standing(f"job {number}: {_read_end(number)} ({job.folder / 'log.txt'})", blocked=True)


def _read_queue() -> dict[str, str]:
    """Return the user's jobs that are queued or running: number -> state, and why one waits."""
    queued = {}
    for line in _run_command(["squeue", "--me", "--noheader", "--format", "%i|%T|%r"]).splitlines():
        number, state, reason = line.strip().split("|", 2)
        queued[number] = f"{state.lower()} ({reason})" if state == "PENDING" else state.lower()
    return queued


def _read_end(number: str) -> str:
    """Return how a job ended, as far as the cluster keeps accounts."""
    try:
        states = _run_command(
            ["sacct", "--allocations", "--noheader", "--parsable2", "--jobs", number, "--format", "State"]
        )
    except UserError:
        states = ""
    return states.splitlines()[-1].lower() if states.strip() else "ended without getting done"


def _run_command(words: Sequence[str], environment: Mapping[str, str] | None = None) -> str:
    """Return what one of SLURM's commands prints.

    Raises:
        UserError: the command is missing or fails.
    """
    try:
        done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    except OSError as error:
        raise UserError(f"--slurm: {words[0]} cannot be run here: {error.strerror}") from error
    if done.returncode:
        last = (done.stderr.strip() or f"status {done.returncode}").splitlines()[-1]
        raise UserError(f"--slurm: {words[0]} fails: {last}")
    return done.stdout
