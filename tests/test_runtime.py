"""The owner of device and processes, and mistakes that only a cluster would show."""

import errno
import fcntl
import subprocess

import pytest
import torch

import train_teacher
from datasets import cache
from tests.conftest import TINY
from utils import checkpoint
from utils.errors import UserError
from utils.training import logs, runs
from utils.training.configuration import TeacherConfig
from utils.training.guards import FiniteWatch
from utils.training.runtime import Runtime


def test_rank_0_decides_and_its_error_is_everybodys():
    assert Runtime().agree(3) == Runtime().agree(lambda: 3) == 3

    def fail():
        raise UserError("no such file")

    with pytest.raises(UserError, match="no such file"):
        Runtime().agree(fail)


def test_weights_that_are_not_finite_are_noticed_behind_a_finite_loss():
    watch = FiniteWatch(lambda what, iteration, terms: f"{what} at {iteration}")
    watch.watch(4, {"loss": torch.tensor(1.0)})
    watch.check([torch.ones(3), torch.full((2, 2), 1e30)])
    with pytest.raises(UserError, match="the gradient is not finite at 4"):
        watch.check([torch.ones(3), torch.tensor([1.0, torch.nan])])


@pytest.mark.parametrize("parts", [2, 4])
def test_parts_of_a_batch_add_up(tmp_path, parts):
    flags = [*TINY, "--freeze-bn", "--dropout", "0", "--max-iterations", "2"]
    weights = []
    for n in (1, parts):
        train_teacher.main([*flags, "--accumulate", str(n), "--save-dir", str(tmp_path / str(n))])
        weights.append(checkpoint.read(tmp_path / f"{n}/last.pth")["model"]["main.classifier.weight"])
    torch.testing.assert_close(*weights, rtol=1e-3, atol=1e-5)


def test_neither_git_nor_locks_nor_memory_are_taken_for_granted(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FileNotFoundError):
        subprocess.run(["git"], check=False)
    assert logs.environment(torch.device("cpu"))["git"] == "unknown"

    def no_lock(file, flags):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_lock)
    runs.open_run(TeacherConfig(save_dir=str(tmp_path / "run")), Runtime()).close()
    assert "cannot be locked" in capsys.readouterr().err

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(cache.os, "posix_fallocate", full)
    with pytest.raises(UserError, match=r"do not fit in /dev/shm .*No space left"):
        cache._reserve(10)
