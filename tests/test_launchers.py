"""The shell launchers, as a user calls them."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from engine.recipes import load_recipe
from tests.conftest import BACKBONE, ENVIRONMENT, ROOT
from tests.test_engine import read_records

TINY_FLAGS = [
    *("--crop-size", "32", "32", "--batch-size", "4", "--workers", "0", "--device", "cpu", "--max-iterations", "2"),
    "--skip-val",
]


def run_launcher(script, *arguments, cwd="/", **environment):
    """Run a launcher with the Python of this test first on the path."""
    path = f"{Path(sys.executable).parent}:{ENVIRONMENT['PATH']}"
    return subprocess.run(
        ["bash", ROOT / "scripts" / script, *map(str, arguments)],
        cwd=cwd,
        env={**ENVIRONMENT, "PATH": path, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.slow
def test_training_and_evaluation_use_the_folder_of_the_caller(tmp_path):
    runs = [("teacher", "2", ()), ("student", "1", ("--teacher-pretrained", "teacher/last.pth"))]
    for role, processes, flags in runs:
        line = ["toy", "fcn", BACKBONE, *TINY_FLAGS, *flags, "--save-dir", role]
        process = run_launcher(f"train_{role}.sh", *line, cwd=tmp_path, NGPUS=processes)
        assert process.returncode == 0, process.stderr
        start = read_records(tmp_path / role, "start")[0]
        assert start["world_size"] == int(processes)
        assert start["config"]["model"] == "fcn"
        assert start["config"]["lr"] == load_recipe("toy", role)["lr"]
    process = run_launcher(
        "eval.sh", "student/last.pth", "--device", "cpu", "--json", "s.json", cwd=tmp_path, NGPUS="1"
    )
    assert process.returncode == 0, process.stderr
    assert json.loads((tmp_path / "s.json").read_text())["images"] == 60


@pytest.mark.parametrize("script", ["train_teacher.sh", "train_student.sh", "eval.sh"])
def test_usage_without_arguments(script):
    process = run_launcher(script)
    assert process.returncode == 2
    assert f"scripts/{script}" in process.stderr


def test_a_list_of_gpus_in_place_of_their_number_is_refused():
    process = run_launcher("eval.sh", "x.pth", NGPUS="0,1")
    assert (process.returncode, process.stderr) == (2, "error: NGPUS=0,1: give the number of processes, such as 2\n")


def test_cdpath_does_not_lead_to_another_folder(tmp_path):
    """With CDPATH, `cd` prints the folder that it finds."""
    path = f"{Path(sys.executable).parent}:{ENVIRONMENT['PATH']}"
    environment = {**ENVIRONMENT, "PATH": path, "NGPUS": "1", "CDPATH": f".:{tmp_path}"}
    line = ["bash", "scripts/eval.sh", "no.pth", "--device", "cpu"]
    process = subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
    assert (process.returncode, process.stderr.splitlines()) == (2, ["error: checkpoint not found: no.pth"])


def test_an_environment_that_could_not_be_made_is_made_again_by_the_next_call(tmp_path):
    """Debian's Python without python3-venv leaves a .venv without pip."""
    (tmp_path / "scripts").mkdir()
    for name in ("setup.sh", "environment.sh"):
        shutil.copy(ROOT / "scripts" / name, tmp_path / "scripts")
    fake = tmp_path / "python"
    fake.write_text("#!/bin/sh\n[ $1 = -c ] && exit 0\nmkdir -p .venv/bin\ncp $0 .venv/bin/python\nexit 1\n")
    fake.chmod(0o755)
    environment = {"PATH": ENVIRONMENT["PATH"], "PYTHON": str(fake)}
    line = ["bash", str(tmp_path / "scripts/setup.sh")]
    process = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=60)
    assert process.returncode == 2
    assert "'python3 -m venv' failed" in process.stderr
    assert not (tmp_path / ".venv/bin/python").exists()


def run_launcher_with_system_path(script, *arguments, **environment):
    """Run a launcher with only the folders of the system on the path."""
    line = ["/bin/bash", ROOT / "scripts" / script, *map(str, arguments)]
    environment = {"HOME": "/", "PATH": "/usr/bin:/bin", **environment}
    return subprocess.run(line, cwd="/", env=environment, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    ("script", "environment"),
    [
        ("train_student.sh", {"CONDA_DEFAULT_ENV": "lad", "CONDA_PREFIX": sys.prefix}),
        ("eval.sh", {"VIRTUAL_ENV": sys.prefix}),
    ],
)
def test_the_active_environment_is_used_or_a_message_says_what_to_run(script, environment, tmp_path):
    if script == "eval.sh":
        arguments = [tmp_path / "none.pth"]
        error = "error: checkpoint not found"
    else:
        arguments = ["toy", "fcn", BACKBONE, "--pretrained-base"]
        error = "error: argument --pre"
    process = run_launcher_with_system_path(script, *arguments, NGPUS="1", **environment)
    assert process.returncode == 2
    assert process.stderr.startswith(error)
    empty = tmp_path / "bin/python"
    empty.parent.mkdir()
    empty.write_text("#!/bin/sh\nexit 1\n")
    empty.chmod(0o755)
    process = run_launcher_with_system_path(script, *arguments, VIRTUAL_ENV=str(tmp_path))
    assert (process.returncode, process.stdout) == (2, "")
    assert process.stderr.startswith(
        "error: no Python environment with PyTorch: activate one, or make .venv by: bash /"
    )
    assert Path(process.stderr.split()[-1]) == ROOT / "scripts/setup.sh"


def test_several_ranks_print_an_error_once_and_end_with_its_status(tmp_path):
    process = run_launcher("train_student.sh", "toy", "fcn", BACKBONE, "--kd", "kd=1", cwd=tmp_path, NGPUS="2")
    assert (process.returncode, process.stdout) == (2, "")
    (line,) = process.stderr.splitlines()
    assert line.startswith("error: --kd kd=1 needs --teacher-pretrained FILE")


@pytest.mark.slow
def test_a_stopped_run_of_two_ranks_is_saved_and_ends_with_status_3(tmp_path):
    flags = [*TINY_FLAGS, "--max-iterations", "100000", "--log-iter", "100000", "--save-dir", "run"]
    line = ["bash", ROOT / "scripts/train_student.sh", "toy", "fcn", BACKBONE, *flags, "--kd", "none"]
    path = f"{Path(sys.executable).parent}:{ENVIRONMENT['PATH']}"
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    environment = {**ENVIRONMENT, "PATH": path, "NGPUS": "2"}
    with subprocess.Popen(list(map(str, line)), cwd=tmp_path, env=environment, **pipes) as process:
        for text in process.stdout:
            if text.startswith("train 1"):
                break
        process.terminate()
        out, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (3, "")
    assert "stopped by a signal after iteration" in out
    assert (tmp_path / "run/last.pth").exists()


@pytest.mark.parametrize(("number", "name"), [(9, "SIGKILL"), (40, "signal 40")])
def test_a_killed_rank_is_reported(number, name, tmp_path):
    script = tmp_path / "script.py"
    kill = f"os.environ['RANK'] == '1' and os.kill(os.getpid(), {number})"
    script.write_text(f"import os, time\n{kill}\ntime.sleep(100)\n")
    line = [sys.executable, ROOT / "scripts/torchrun.py", "--standalone", "--nproc-per-node", "2", script]
    process = subprocess.run(line, capture_output=True, text=True, timeout=60)
    assert (process.returncode, process.stderr) == (128 + number, f"error: a process was ended by {name}\n")


SRUN = """#!{python}
import os, signal, sys
def report_signal(number, frame):
    os.write(1, ("hears " + signal.Signals(number).name + "\\n").encode())  # a signal may interrupt print()
    os._exit(3)
signal.signal(signal.SIGUSR1, report_signal)
signal.signal(signal.SIGTERM, report_signal)
print("runs", *sys.argv[1:], os.environ["SRUN_CPUS_PER_TASK"], flush=True)
while True:
    signal.pause()
"""
SCONTROL = """#!/bin/sh
case "$1 $2" in
    requeue*) echo "$@" ;;
    "show job") printf 'JobId=41 JobName=slurm.sh\n   Command={root}/scripts/slurm.sh train_teacher.py\n' ;;
    *) echo node7 ;;
esac
"""


@pytest.mark.parametrize("restarts", ["0", "1"])
def test_a_slurm_job_passes_sigusr1_to_srun_and_is_requeued(restarts, tmp_path):
    """slurm.sh sends SIGUSR1 to srun, because srun kills its tasks on SIGTERM (_forward_signal of SLURM's launcher).

    As slurmd does, the test runs a copy of slurm.sh in the folder where the job was submitted.
    """
    root = tmp_path / "my repository"
    root.symlink_to(ROOT)
    for name, text in (("srun", SRUN.format(python=sys.executable)), ("scontrol", SCONTROL.format(root=root))):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    slurm_variables = {
        "SLURM_JOB_NODELIST": "node[7-8]",
        "SLURM_NNODES": "2",
        "SLURM_GPUS_ON_NODE": "8",
        "SLURM_JOB_ID": "41",
        "SLURM_CPUS_PER_TASK": "64",
        "SLURM_RESTART_COUNT": restarts,
    }
    environment = {**ENVIRONMENT, "PATH": f"{tmp_path}:{ENVIRONMENT['PATH']}", **slurm_variables}
    copy = shutil.copy(ROOT / "scripts/slurm.sh", tmp_path / "slurm_script")
    line = ["bash", str(copy), "train_teacher.py", "--recipe", "voc", "--overwrite"]
    with subprocess.Popen(line, env=environment, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as job:
        started = job.stdout.readline()
        job.send_signal(signal.SIGUSR1)
        out, _ = job.communicate(timeout=60)
    assert started.startswith(f"runs python {root}/scripts/torchrun.py --nnodes 2 --nproc-per-node 8 ")
    flags = "--recipe voc --overwrite" if restarts == "0" else "--recipe voc"  # a restarted job must continue its run
    assert started.endswith(
        f"--rdzv-id 41 --rdzv-endpoint node7:20041 {root}/train_teacher.py {flags} --resume auto 64\n"
    )
    assert out.splitlines() == ["hears SIGUSR1", "requeue 41"]
    assert job.returncode == 0
