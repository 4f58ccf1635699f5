"""The check for machines with a GPU: what it compares and prints. Here it runs on the CPU."""

import json
from dataclasses import asdict

import pytest
import torch

from scripts.study import gpu_check
from scripts.study.benchmarks.comparison import Comparison
from scripts.study.gpu_check import Check, GpuCheckConfig, compare_records, list_failures, make_speed_rows
from tests.conftest import BACKBONE, TINY
from utils.errors import UserError


def make_records(losses):
    """Return the training records of a run with these losses."""
    return [
        {"event": "train", "iteration": i, "loss": loss, "images_per_second": 10.0, "memory_gb": 1.5}
        for i, loss in enumerate(losses, 1)
    ]


CPU_RECORDS = make_records([4.0, 3.0, 2.0, 1.0, 1.0, 1.0, 1.0, 1.0])


@pytest.mark.parametrize(
    ("losses", "error"),
    [
        ([4.0001, 3.1, 2.1, 1.2, 1.0, 1.0, 1.01, 1.05], ""),
        ([4.01, 3.0, 2.0, 1.0, 1.0, 1.0, 1.0, 1.0], "the first losses differ by 0.0025"),
        ([4.0, 3.0, 2.0, 1.0, 1.0, 1.0, 1.2, 1.1], "the last quarter differ by 0.15"),
        ([4.0, 3.0, 2.0, 1.0, 1.0, 1.0, float("nan"), 1.0], "the last quarter differ by nan"),
        ([4.0, 3.0, 2.0, 1.0], "8 records of the CPU, 4 of the device"),
    ],
)
def test_losses_are_compared(losses, error):
    result = compare_records(CPU_RECORDS, make_records(losses))
    assert error in result["error"]
    assert bool(error) == bool(result["error"])
    assert bool(list(list_failures({"training": {"teacher": result}}))) == bool(error)


def test_rows_of_the_speed_table():
    seconds = {"as released": 0.4, "ours": 0.1}
    peak_mib = {"as released": 4000.0, "ours": 3000.0}
    comparison = Comparison("teacher step, resnet18_v1s, 16 images of 512x512", seconds, {}, 21, peak_mib)
    content = json.loads(json.dumps({"environment": {}, "teacher-21": asdict(comparison)}))
    failed = {"amp": "none", "compile": True, "error": "status 2: error: no compiler"}
    benchmark = [{"amp": "bf16", "compile": True, "error": "", "comparisons": content}, failed]
    assert make_speed_rows(benchmark) == [
        ["teacher step, resnet18_v1s, 16 images of 512x512, bf16, compiled", "21", "400.0 ms", "100.0 ms", "4.00x"],
        ["most memory of it besides weights, bf16, compiled", "21", "4000 MiB", "3000 MiB", "0.75"],
    ]
    assert list(list_failures({"benchmark": benchmark})) == [
        "benchmark, float32, compiled: status 2: error: no compiler"
    ]


def test_commands_that_fail_or_run_out_of_time_are_reported(tmp_path):
    check = Check(GpuCheckConfig(folder=str(tmp_path)))
    assert check.run_python("good", "-c", "print('2 passed')").last_line == "2 passed"
    assert "status 3: it broke" in check.run_python("bad", "-c", "print('it broke'); raise SystemExit(3)").error
    check_without_time = Check(GpuCheckConfig(folder=str(tmp_path), minutes=0))
    assert "time is used up" in check_without_time.run_python("late", "-c", "").error


def test_each_part_without_time_is_a_failure_and_the_file_is_written(tmp_path, capsys):
    with pytest.raises(SystemExit) as exit_error:
        gpu_check.main(["--device", "cpu", "--minutes", "0", "--folder", str(tmp_path)])
    assert exit_error.value.code == 1
    result = json.loads((tmp_path / "gpu_check.json").read_text())
    assert len(result["failures"]) == 1 + 1 + len(gpu_check.WAYS)
    assert "failed: tests: not run" in capsys.readouterr().err


def test_a_machine_without_a_gpu_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="torch finds none"):
        gpu_check.main([])


@pytest.mark.slow  # it starts five processes
def test_the_comparison_of_trainings_runs_from_end_to_end(tmp_path, monkeypatch, command, capsys):
    process = command("scripts/study/gpu_check.py", check=False)
    assert process.returncode == 2
    assert process.stderr.count("\n") == 1
    flags = [flag for flag in TINY if flag not in ("--device", "cpu")]
    monkeypatch.setattr(gpu_check, "TRAINING", [*gpu_check.TRAINING, *flags, "--backbone", BACKBONE])
    gpu_check.main(["training", "--device", "cpu", "--iterations", "4", "--folder", str(tmp_path)])
    result = json.loads((tmp_path / "gpu_check.json").read_text())
    assert result["failures"] == []
    for role in ("teacher", "student"):
        entry = result["training"][role]
        assert entry["iterations"] == 4
        assert entry["relative_difference"] == {"first": 0, "last_quarter": 0}  # both runs used the CPU
    assert "| student, 4 iterations |" in capsys.readouterr().out
