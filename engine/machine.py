"""Describe the machine and the software that a run uses."""

import platform
import resource
import subprocess
from importlib.metadata import version
from pathlib import Path
from shutil import which
from typing import Any

import cv2
import torch

RSS_UNIT = 1024  # bytes, on Linux


def get_device_name(device: torch.device) -> str:
    """Return the name of the GPU or the processor."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def measure_peak_memory_gb() -> float:
    """Return the most this process has held so far, in 10^9 bytes: on its GPU if it uses one, else in RAM."""
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * RSS_UNIT / 1e9


def describe_environment(device: torch.device) -> dict[str, Any]:
    """Return versions, device and git revision, for the first record of a run."""
    return {
        "python": platform.python_version(),
        **{package: version(package) for package in ("torch", "torchvision", "timm", "numpy")},
        "opencv-python": cv2.__version__,  # or opencv-python-headless
        "device": f"{device.type}: {get_device_name(device)}",
        "threads": torch.get_num_threads(),
        "git": read_git_revision() or "unknown",
    }


def read_git_revision() -> str:
    """Return the commit of this code, marked where files have changed since; "" where git does not say."""
    if not which("git"):
        return ""
    root = Path(__file__).resolve().parent.parent
    describe = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    return subprocess.run(describe, cwd=root, capture_output=True, text=True, check=False).stdout.strip()
