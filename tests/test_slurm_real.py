"""Test runs as jobs of a real SLURM on this machine: jobs wait, are cancelled, requeued and submitted again."""

import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from scripts.study.experiments.jobs import ROOT, Job
from scripts.study.experiments.slurm import read_standings, submit_jobs
from tests.slurm_cluster import find_missing, start_cluster
from tests.test_slurm import finish_runs, replace_finish_script

pytestmark = [pytest.mark.slow, pytest.mark.skipif(find_missing() != "", reason=find_missing())]

# This stands in for a long training. It waits for a file `-goes`, fails at a file `-fails`, and saves at SIGUSR1.
TRAIN = """
import json, os, signal, sys, time
folder = {folder!r}
os.makedirs(folder, exist_ok=True)
def save(*_):
    print("saved", flush=True)
    sys.exit(3)
signal.signal(signal.SIGUSR1, save)
print("begins", flush=True)
while not os.path.exists(folder + "-goes"):
    if os.path.exists(folder + "-fails"):
        sys.exit("no luck")
    time.sleep(0.2)
open(folder + "/metrics.jsonl", "a").write(json.dumps({{"event": "train", "iteration": 1}}) + "\\n")
"""


# This stands in for scripts/torchrun.py, which takes seconds to import torch. It drops the flags of torchrun.
TORCHRUN = "import os, sys\ni = next(i for i, word in enumerate(sys.argv) if '/train_' in word)\n"
TORCHRUN += "os.execv(sys.executable, [sys.executable, *sys.argv[i:]])\n"


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """Start a SLURM cluster, with its commands on the path."""
    with start_cluster(tmp_path / "cluster") as environment:
        for key, value in environment.items():
            monkeypatch.setenv(key, value)
        monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{environment['PATH']}")
        yield


@pytest.fixture
def jobs(tmp_path, monkeypatch):
    """Return a teacher, its two students and a single run. Put slurm.sh beside the fast launcher."""
    (tmp_path / "scripts").mkdir()
    shutil.copy(ROOT / "scripts/slurm.sh", tmp_path / "scripts")
    (tmp_path / "scripts/torchrun.py").write_text(TORCHRUN)
    monkeypatch.setattr("scripts.study.experiments.slurm.ROOT", tmp_path)
    (tmp_path / "runs").mkdir()

    def make_job(name, *needs):
        folder = tmp_path / "runs" / name
        script = tmp_path / f"train_{name}.py"
        script.write_text(TRAIN.format(folder=str(folder)))
        score = tmp_path / f"score_{name}.py"
        score.write_text(f"open({str(folder)!r} + '/last.json', 'w').write('scored')")
        return Job(name, folder, ((str(script), "--lr", "1"), (str(score),)), needs)

    return {
        job.name: job
        for job in (make_job("teacher"), make_job("a", "teacher"), make_job("b", "teacher"), make_job("alone"))
    }


def create_marker(jobs, marker, *names):
    """Create the file that lets the training scripts of these runs end ("goes") or fail ("fails")."""
    for name in names:
        (jobs[name].folder.parent / f"{name}-{marker}").touch()


def wait_for(jobs, name, *texts):
    """Wait until the status of a run contains one of the texts. Return the status."""
    for _ in range(600):
        finish_runs(jobs)
        standing = read_standings(jobs)[name]
        if any(text in standing.text for text in texts):
            return standing
        time.sleep(0.5)
    raise TimeoutError(f"{name}: {standing.text}: {read_log(jobs, name)}")


def read_log(jobs, name):
    log = jobs[name].folder / "log.txt"
    return log.read_text() if log.exists() else "no log"


def wait_for_log(jobs, name, text):
    """Wait until the output of a run contains a text. Fail if the run ends before."""
    for _ in range(1500):
        if text in read_log(jobs, name):
            return
        if not read_standings(jobs)[name].active:
            break
        time.sleep(0.2)
    raise TimeoutError(f"{name}: {read_log(jobs, name)}")


def test_a_teacher_is_queued_again_and_a_cancelled_student_is_submitted_again(cluster, jobs, tmp_path, monkeypatch):
    replace_finish_script(monkeypatch, tmp_path)
    first = submit_jobs(jobs, [], 1)
    wait_for(jobs, "teacher", "running")
    wait_for(jobs, "alone", "running")
    assert "pending (Dependency)" in read_standings(jobs)["a"].text
    wait_for_log(jobs, "teacher", "begins")
    subprocess.run(["scancel", "--signal=USR1", "--batch", first["teacher"].job], check=True)
    wait_for(jobs, "teacher", "pending")
    assert "saved" in read_log(jobs, "teacher")
    subprocess.run(["scancel", first["b"].job], check=True)
    create_marker(jobs, "goes", "alone", "teacher", "a", "b")
    assert wait_for(jobs, "teacher", "done").done
    assert read_log(jobs, "teacher").count("begins") == 2, "it went on where it was"
    assert wait_for(jobs, "a", "done").done
    assert wait_for(jobs, "alone", "done").done
    assert read_standings(jobs)["b"].blocked
    assert not (jobs["b"].folder / "metrics.jsonl").exists()

    again = submit_jobs(jobs, [], 1)
    assert [name for name in jobs if again[name].active] == ["b"]
    assert wait_for(jobs, "b", "done").done
    assert (jobs["b"].folder / "last.json").read_text() == "scored"
    assert not any(standing.active for standing in submit_jobs(jobs, [], 1).values())


def test_students_of_a_failing_teacher_are_cancelled_and_the_others_finish(cluster, jobs, tmp_path, monkeypatch):
    replace_finish_script(monkeypatch, tmp_path)
    create_marker(jobs, "fails", "teacher")
    create_marker(jobs, "goes", "a", "b", "alone")
    submit_jobs(jobs, [], 1)
    assert wait_for(jobs, "alone", "done").done
    for name in ("teacher", "a", "b"):
        assert wait_for(jobs, name, "ended without getting done", "failed", "cancelled").blocked
    assert "no luck" in read_log(jobs, "teacher")
    assert not (jobs["a"].folder / "metrics.jsonl").exists()
    create_marker(jobs, "goes", "teacher")
    (jobs["teacher"].folder.parent / "teacher-fails").unlink()
    again = submit_jobs(jobs, [], 1)
    assert [name for name in jobs if again[name].active] == ["teacher", "a", "b"]
    assert wait_for(jobs, "b", "done").done
