"""Settings for small runs on the CPU, and fixtures that run a script in a process of its own."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from datasets import toy
from engine.resolve_settings import TRAINING_SCRIPTS, make_settings
from tests.small_toy import IMAGES
from utils.options import parse_flags

ROOT = Path(__file__).resolve().parent.parent
BACKBONE = "test_resnet"  # timm's smallest ResNet; a network with it has about half a million weights
WIDE_BACKBONE = "resnet10t"  # networks with it have an auxiliary branch
TINY = [
    *("--dataset", "toy", "--model", "fcn", "--backbone", BACKBONE, "--crop-size", "32", "32", "--batch-size", "4"),
    *("--workers", "0", "--device", "cpu", "--lr", "0.01", "--log-iter", "1", "--val-per-iters", "100"),
    *("--save-per-iters", "2", "--max-iterations", "6"),
]
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # for --deterministic; CUDA reads it once per process
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # undo nohup, or child processes would ignore SIGHUP
torch.set_num_threads(1)  # as in the processes that tests start, so that both give the same bits


def parse_settings(config_class: type, role: str, argv: list[str]) -> object:
    """Return the settings that a training script gets from its command line."""
    return make_settings(config_class, role, parse_flags(config_class, "", argv, TRAINING_SCRIPTS))


@pytest.fixture(autouse=True, scope="session")
def small_toy():
    """Give the toy data set few images, enough for a short run. Processes that tests start use the same number."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(toy, "IMAGES", IMAGES)
        yield


@pytest.fixture(scope="session")
def golden() -> dict[str, torch.Tensor]:
    """Load reference values of CIRKD's losses in float64: the inputs, and each loss as ``loss_<name>``."""
    with np.load(ROOT / "tests/data/kd_losses.npz") as data:
        return {key: torch.from_numpy(data[key]).double() for key in data}


ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def _build_command_line(script: str, flags: tuple, processes: int) -> list[str]:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    return [sys.executable, *(launcher if processes > 1 else []), "tests/small_toy.py", *map(str, (script, *flags))]


@pytest.fixture
def command() -> Callable[..., subprocess.CompletedProcess]:
    """Run a script to its end and capture its output: ``command("eval.py", "--flag", ..., processes=2)``."""

    def call(
        script: str, *flags: str, processes: int = 1, check: bool = True, gpu: bool = False
    ) -> subprocess.CompletedProcess:
        line = _build_command_line(script, flags, processes)
        environment = dict(os.environ) if gpu else ENVIRONMENT
        result = subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
        assert result.returncode == 0 or not check, result.stderr
        return result

    return call


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen]]:
    """Start a script in the background: ``start("train_teacher.py", ...)``. It is killed when the test ends."""
    processes = []

    def call(script: str, *flags: str, **options: int) -> subprocess.Popen:
        line = _build_command_line(script, flags, 1)
        options |= {"cwd": ROOT, "env": ENVIRONMENT, "stdout": subprocess.DEVNULL, "start_new_session": True}
        processes.append(subprocess.Popen(line, **options))
        return processes[-1]

    yield call
    for process in processes:
        process.kill()
