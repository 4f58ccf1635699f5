"""Test runs as SLURM jobs: which are submitted, and which wait. Small scripts stand in for SLURM's commands."""

import json
import os
import subprocess
import sys

import pytest

from scripts.study import experiment
from scripts.study.experiments.jobs import ROOT, Job, find_outcome
from scripts.study.experiments.slurm import read_standings, submit_jobs
from tests.conftest import ENVIRONMENT
from utils.errors import UserError

# The stand-ins keep one JSON file per job in a folder, named by the number of the job. It holds the job's state, the
# numbers of the jobs to wait for, the command and the output file. run_cluster() is the scheduler.
SBATCH = """#!{python} -S
import json, os, sys
folder = {folder!r}
number = str(100 + len(os.listdir(folder)))
job = dict(state="PENDING", after=[], words=[], output="", processes=os.environ.get("NGPUS"), given=sys.argv[1:])
words = sys.argv[1:]
while words[0].startswith("--"):
    name, _, value = words.pop(0).partition("=")
    if name == "--dependency":
        job["after"] = value.removeprefix("afterok:").split(":")
    elif name in ("--job-name", "--output", "--time"):
        job[name[2:]] = words.pop(0)
json.dump({{**job, "words": words}}, open(f"{{folder}}/{{number}}", "w"))
print(number)
"""
SQUEUE = """#!{python} -S
import json, os
for number in sorted(os.listdir({folder!r})):
    state = json.load(open(f"{folder}/{{number}}"))["state"]
    if state in ("PENDING", "RUNNING"):
        print(f"{{number}}|{{state}}|Dependency")
"""
SACCT = """#!{python} -S
import json, sys
print(json.load(open({folder!r} + "/" + sys.argv[sys.argv.index("--jobs") + 1]))["state"])
"""
SRUN = """#!/bin/sh
while [ "$1" != --rdzv-endpoint ]; do shift; done
shift 2
exec {python} -S "$@"
"""
SCONTROL = """#!/bin/sh
[ "$1" = requeue ] || echo here
"""


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """Put the stand-ins for SLURM's commands on the path. Return the folder of their jobs."""
    folder = tmp_path / "cluster"
    folder.mkdir()
    (tmp_path / "bin").mkdir()
    tools = {"sbatch": SBATCH, "squeue": SQUEUE, "sacct": SACCT, "srun": SRUN, "scontrol": SCONTROL}
    for name, text in tools.items():
        (tmp_path / "bin" / name).write_text(text.format(python=sys.executable, folder=str(folder)))
        (tmp_path / "bin" / name).chmod(0o755)
    (tmp_path / "bin/python").symlink_to(sys.executable)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{ENVIRONMENT['PATH']}")
    return folder


def read_job(cluster, number):
    return json.loads((cluster / number).read_text())


def set_state(cluster, number, state):
    (cluster / number).write_text(json.dumps(read_job(cluster, number) | {"state": state}))


def run_cluster(cluster):
    """Run the queued jobs in order. As SLURM does, cancel a job if one that it waits for has failed."""
    for number in sorted(path.name for path in cluster.iterdir()):
        job = read_job(cluster, number)
        if job["state"] != "PENDING":
            continue
        needs = {read_job(cluster, need)["state"] for need in job["after"]}
        if needs - {"COMPLETED"}:
            set_state(cluster, number, "CANCELLED")
            continue
        set_state(cluster, number, "RUNNING")
        slurm = {"SLURM_JOB_ID": number, "SLURM_JOB_NODELIST": "here", "SLURM_NNODES": "1"}
        with open(job["output"], "a") as log:
            result = subprocess.run(
                ["bash", *job["words"]], env=os.environ | slurm, stdout=log, stderr=log, check=False
            )
        set_state(cluster, number, "FAILED" if result.returncode else "COMPLETED")


TRAIN = """
import json, os, sys
folder = {folder!r}
os.makedirs(folder, exist_ok=True)
open({log!r}, "a").write({name!r} + "\\n")
if os.path.exists(folder + "-fails"):
    sys.exit("no luck")
open(folder + "/metrics.jsonl", "a").write(json.dumps({{"event": "train", "iteration": 1}}) + "\\n")
"""


@pytest.fixture
def jobs(tmp_path):
    """Return a teacher, its two students and a single run. Each training script notes its name in the file `log`."""

    def make_job(name, *needs):
        folder = tmp_path / "runs" / name
        script = tmp_path / f"train_{name}.py"
        script.write_text(TRAIN.format(folder=str(folder), log=str(tmp_path / "log"), name=name))
        score = tmp_path / f"score_{name}.py"
        score.write_text(f"open({str(folder)!r} + '/last.json', 'w').write('scored')")
        return Job(name, folder, ((str(script), "--lr", "1"), (str(score),)), needs)

    return {
        job.name: job
        for job in (make_job("teacher"), make_job("a", "teacher"), make_job("b", "teacher"), make_job("alone"))
    }


def replace_finish_script(monkeypatch, tmp_path):
    """Replace the script that ends a job: the real one imports torch, which takes longer than all the rest."""
    script = tmp_path / "finish.py"
    script.write_text("import sys\nopen(sys.argv[1] + '/finished', 'w')\n")
    monkeypatch.setattr("scripts.study.experiments.slurm.FINISH", str(script))


def finish_runs(jobs):
    """Do what the replaced script would have done for the jobs that have reached it."""
    from scripts.study.experiments.slurm import finish_run

    for job in jobs.values():
        if (job.folder / "finished").exists():
            finish_run(job.folder)


def test_each_run_is_a_job_that_waits_for_its_teacher(cluster, jobs):
    standings = submit_jobs(jobs, ["--time", "60"], 2)
    assert [standings[name].job for name in jobs] == ["100", "101", "102", "103"]
    teacher, student = read_job(cluster, "100"), read_job(cluster, "101")
    assert teacher["after"] == []
    assert student["after"] == ["100"]
    assert "--kill-on-invalid-dep=yes" in student["given"]
    assert (student["job-name"], student["time"], student["processes"]) == ("a", "60", "2")
    assert student["output"] == str(jobs["a"].folder / "log.txt")
    assert student["words"][0] == str(ROOT / "scripts/slurm.sh")
    assert student["words"].count("--then") == 2
    assert json.loads((jobs["a"].folder / "slurm.json").read_text())["job"] == "101"


def test_students_of_a_failed_teacher_are_cancelled_and_later_submitted_again(
    cluster, jobs, tmp_path, monkeypatch, capsys
):
    replace_finish_script(monkeypatch, tmp_path)
    failing = tmp_path / "runs/teacher-fails"
    failing.parent.mkdir()
    failing.touch()
    submit_jobs(jobs, [], None)
    set_state(cluster, "103", "RUNNING")
    assert read_standings(jobs)["a"].text == "job 101: pending (Dependency)"
    assert read_standings(jobs)["alone"].text == "job 103: running"
    set_state(cluster, "103", "PENDING")
    run_cluster(cluster)
    finish_runs(jobs)
    assert (tmp_path / "log").read_text().split() == ["teacher", "alone"], "students of a failed teacher are not begun"
    assert "no luck" in (jobs["teacher"].folder / "log.txt").read_text()
    standings = read_standings(jobs)
    assert standings["alone"].done
    assert standings["teacher"].text.startswith("job 100: failed (")
    assert standings["a"].text.startswith("job 101: cancelled (")

    failing.unlink()
    submit_jobs(jobs, [], None)
    assert "alone: done" in capsys.readouterr().out
    assert len(list(cluster.iterdir())) == 7, "what is done is not submitted again"
    assert read_job(cluster, "105")["after"] == ["104"]
    submit_jobs(jobs, [], None)
    assert len(list(cluster.iterdir())) == 7, "what is queued is not submitted again"
    run_cluster(cluster)
    finish_runs(jobs)
    assert all(standing.done for standing in read_standings(jobs).values())
    assert (tmp_path / "log").read_text().split() == ["teacher", "alone", "teacher", "a", "b"]
    assert (jobs["b"].folder / "last.json").read_text() == "scored"
    assert find_outcome(jobs["b"]).done, "the runner of one machine finds it done as well"


def test_students_of_a_retrained_teacher_are_not_submitted(cluster, jobs, tmp_path, monkeypatch):
    replace_finish_script(monkeypatch, tmp_path)
    submit_jobs(jobs, [], None)
    run_cluster(cluster)
    finish_runs(jobs)
    (jobs["teacher"].folder / "metrics.jsonl").write_text('{"event": "train", "another": "training"}\n')
    standings = submit_jobs(jobs, [], None)
    assert standings["a"].blocked
    assert "teacher was trained anew since" in standings["a"].text
    assert len(list(cluster.iterdir())) == 4


def test_a_cluster_without_accounting_and_a_machine_without_slurm(cluster, jobs, monkeypatch, capsys):
    submit_jobs(jobs, [], None)
    set_state(cluster, "100", "FAILED")
    (cluster.parent / "bin/sacct").write_text("#!/bin/sh\nexit 1\n")
    assert read_standings(jobs)["teacher"].text.startswith("job 100: ended without getting done")
    (cluster.parent / "bin/squeue").write_text("#!/bin/sh\necho slurm_load_jobs error: no controller >&2\nexit 1\n")
    with pytest.raises(UserError, match="--slurm: squeue fails: slurm_load_jobs error: no controller"):
        read_standings(jobs)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UserError, match="--slurm: squeue cannot be run here: No such file or directory"):
        submit_jobs(jobs, [], None)


def test_the_command_submits_runs_and_prints_their_status(cluster, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    line = ["toy", "--only", "plain", "--seeds", "0"]
    experiment.main([*line, "--status"])
    assert capsys.readouterr().out.split("\n")[0].split() == ["baseline-1", "not", "begun"]
    experiment.main([*line, "--slurm", "--slurm-args", "--time 5"])
    out = capsys.readouterr().out
    assert "plain-0: submitted as job 101" in out
    assert "2 runs queued or running, 0 done, 0 cannot go on" in out
    words = read_job(cluster, "101")["words"]
    assert words[1] == str(ROOT / "train_student.py")
    assert words[-2:] == [str(ROOT / "scripts/study/experiments/finish.py"), "runs/toy/plain-0"]
    experiment.main([*line, "--status"])
    assert "plain-0     job 101: pending (Dependency)" in capsys.readouterr().out
