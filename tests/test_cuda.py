"""On a real GPU: no waiting in a step, every precision, one NCCL process, resume. Skipped where there is none."""

import pytest
import torch

import train_teacher
from losses import build_kd
from losses.task import TaskLoss
from models import build_model
from models.label_noise import LabelNoise
from tests.conftest import TINY
from train_teacher import TeacherStep
from utils import checkpoint
from utils.pixels import CONVENTIONS
from utils.training.runtime import Runtime
from utils.types import Draw, valid_pixels

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")
FLAGS = [flag if flag != "cpu" else "cuda" for flag in TINY]


@pytest.mark.parametrize("amp", ["none", "bf16", "fp16"])
def test_a_step_never_waits_for_the_device(amp):
    runtime = Runtime(torch.device("cuda", 0), amp=amp, channels_last=True)
    model, noise = build_model("pspnet", "resnet18", 7, 4), LabelNoise(7, "random", 0.03, 100.0)
    step = TeacherStep(model, noise, TaskLoss(model.supervision), build_kd("cwd=5", 128, 128, 7))
    step = runtime.prepare(step).train()
    image = torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8).cuda()
    label = torch.randint(0, 7, (4, 64, 64), dtype=torch.uint8).cuda()
    for sync in ("default", "error"):  # the first time libraries set themselves up
        torch.cuda.set_sync_debug_mode(sync)
        try:
            with runtime.autocast():
                x = CONVENTIONS["imagenet"].normalize(image)
                loss = step(x, label.long(), Draw(0), valid_pixels(label))["loss"]
            loss.backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert torch.isfinite(loss)


@pytest.mark.parametrize("amp", ["none", "bf16", "fp16"])
def test_a_run_continues(tmp_path, amp):
    flags = [*FLAGS, "--save-dir", str(tmp_path), "--amp", amp]
    train_teacher.main([*flags, "--max-iterations", "6"])
    assert checkpoint.read(tmp_path / "last.pth")["iteration"] == 6
    train_teacher.main([*flags, "--max-iterations", "6", "--resume", "auto"])


def test_one_process_of_torchrun_uses_nccl(tmp_path, monkeypatch):
    for key, value in {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0, "MASTER_PORT": 29511}.items():
        monkeypatch.setenv(key, str(value))
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    train_teacher.main([*FLAGS, "--max-iterations", "2", "--save-dir", str(tmp_path)])
    assert checkpoint.read(tmp_path / "last.pth")["iteration"] == 2
