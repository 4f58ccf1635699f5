"""Training on a real GPU: no device waits in a step, every precision, NCCL and resume. Skipped without a GPU."""

import numpy as np
import pytest
import torch

import train_teacher
from engine.runtime import Runtime
from losses import build_kd
from losses.task import TaskLoss, compute_avg_factor
from models import build_model
from models.label_noise import LabelNoise
from tests.conftest import TINY
from tests.test_engine import assert_same_checkpoints, crash_at, read_losses
from train_teacher import TeacherStep
from utils import checkpoint
from utils.pixels import CONVENTIONS
from utils.seeding import RowGenerator

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")
TINY_ON_GPU = [flag if flag != "cpu" else "cuda" for flag in TINY]


@pytest.mark.parametrize("amp", ["none", "bf16", "fp16"])
def test_a_step_never_waits_for_the_device(amp):
    runtime = Runtime(torch.device("cuda", 0), amp=amp, channels_last=True)
    model, noise = build_model("pspnet", "resnet18", 7, 4), LabelNoise(7, "random", 0.03, 100.0)
    step = TeacherStep(model, noise, TaskLoss(model.supervision), build_kd("cwd=5", 128, 128, 7))
    step = runtime.prepare(step).train()
    image = torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8).cuda()
    label = torch.randint(0, 7, (4, 64, 64), dtype=torch.uint8).cuda()
    for sync in ("default", "error"):  # libraries may wait in the first step, when they initialise
        torch.cuda.set_sync_debug_mode(sync)
        try:
            with runtime.autocast():
                x = CONVENTIONS["imagenet"].normalize(image)
                loss = step(x, label.long(), RowGenerator(0), compute_avg_factor(label))["loss"]
            loss.backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert torch.isfinite(loss)


@pytest.mark.parametrize("amp", ["none", "bf16", "fp16"])
def test_a_resumed_run_reaches_the_same_bits(tmp_path, amp):
    flags = [*TINY_ON_GPU, "--amp", amp, "--deterministic", "--max-iterations", "6"]
    train_teacher.main([*flags, "--save-dir", str(tmp_path / "whole")])
    with crash_at(5):  # one iteration after a checkpoint
        train_teacher.main([*flags, "--save-dir", str(tmp_path / "halves")])
    train_teacher.main([*flags, "--save-dir", str(tmp_path / "halves"), "--resume", "auto"])
    one, two = (checkpoint.read(tmp_path / name / "last.pth") for name in ("whole", "halves"))
    assert one["iteration"] == 6
    assert_same_checkpoints(one, two)


def test_batchnorm_on_two_ranks_matches_one_rank(command, tmp_path):
    """One rank computes on four images. Two ranks compute on two images each, with gloo on the same GPU."""
    flags = ["--dropout", "0", "--lr", "0.001", "--deterministic", "--backend", "gloo", "--max-iterations", "3"]
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        command("train_teacher.py", *TINY_ON_GPU, *flags, "--save-dir", folder, processes=processes, gpu=True)
    np.testing.assert_allclose(*(read_losses(tmp_path / name) for name in "12"), rtol=1e-4)


def test_a_failure_under_nccl_is_reported_and_ends_the_job(command):
    flags = [*TINY_ON_GPU, "--max-iterations", "2", "--save-dir", "/proc/run"]
    done = command("train_teacher.py", *flags, processes=torch.cuda.device_count(), gpu=True, check=False)
    assert done.returncode != 0
    assert "/proc/run" in done.stderr


def test_one_rank_of_torchrun_uses_nccl(tmp_path, monkeypatch):
    for key, value in {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0, "MASTER_PORT": 29511}.items():
        monkeypatch.setenv(key, str(value))
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    train_teacher.main([*TINY_ON_GPU, "--max-iterations", "2", "--save-dir", str(tmp_path)])
    assert checkpoint.read(tmp_path / "last.pth")["iteration"] == 2
