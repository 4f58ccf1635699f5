"""What a run writes: metrics.jsonl, TensorBoard events, and lines or a bar on the terminal."""

import errno
import json
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Mapping
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path
from shutil import which
from typing import Any

import cv2
import numpy as np
import torch
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from utils.files import read_bytes, write_text

MACHINE = ("images_per_second", "cpu_seconds", "memory_gb")  # of a record: of the machine, not of the training
RSS_UNIT = 1 if sys.platform == "darwin" else 1024  # bytes


def device_name(device: torch.device) -> str:
    """Of the GPU or the processor."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def memory_gb() -> float:
    """The most this process has held so far, in 10^9 bytes: on its GPU if it uses one, else in RAM."""
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * RSS_UNIT / 1e9


def assisted(card: Mapping[str, Any]) -> str:
    """The mark of a score or prediction by a network that reads the label; nothing for any other."""
    return " LABEL-ASSISTED" if card.get("label_noise") else ""


def environment(device: torch.device) -> dict[str, Any]:
    """Versions, device and git revision, for the first record of a run."""
    root = Path(__file__).resolve().parent.parent
    describe = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    git = subprocess.run(describe, cwd=root, capture_output=True, text=True, check=False) if which("git") else None
    return {
        "python": platform.python_version(),
        **{package: version(package) for package in ("torch", "torchvision", "timm", "numpy")},
        "opencv-python": cv2.__version__,  # or -headless
        "device": f"{device.type}: {device_name(device)}",
        "threads": torch.get_num_threads(),
        "git": (git and git.stdout.strip()) or "unknown",
    }


class RunLogger:
    """Records of one run in ``folder``; every method does nothing in processes other than rank 0."""

    def __init__(
        self, folder: Path, enabled: bool, start: int, validated: int, stop: int, header: Mapping[str, Any]
    ) -> None:
        """start, validated: iterations that the run continues from; later records of an interrupted run are dropped."""
        self.enabled = enabled
        if not enabled:
            return
        path = folder / "metrics.jsonl"
        lines = read_bytes(path).decode(errors="replace").splitlines() if start and path.exists() else []
        write_text(path, "".join(line + "\n" for line in lines if _kept(line, start, validated)))
        self.file = path.open("a", buffering=1)
        self.writer = SummaryWriter(str(folder), purge_step=start + 1 if start else None)
        self.stop, self.header = stop, header
        # time and iteration of the first record, which took longer than others
        self.first: tuple[float, int] | None = None
        self.bar = tqdm(
            total=stop, initial=start, desc=folder.name, disable=not sys.stderr.isatty(), dynamic_ncols=True
        )
        self.record({"event": "start", "iteration": start, **header})

    def record(self, values: Mapping[str, Any]) -> None:
        """One line of metrics.jsonl."""
        if self.enabled:
            self.file.write(json.dumps(values) + "\n")

    def scalars(self, tag: str, values: Mapping[str, float], iteration: int) -> None:
        """A record, TensorBoard curves ``tag/name``, and one line on the terminal; a record of training has memory."""
        if not self.enabled:
            return
        if tag == "train":
            values = {**values, "memory_gb": memory_gb()}
        reads_label = {"label_assisted": True} if tag == "val" and assisted(self.header["card"]) else {}
        self.record({"event": tag, "iteration": iteration, **values, **reads_label})
        for name, value in values.items():
            if value is not None:
                self.writer.add_scalar(f"{self.marked(tag)}/{name}", value, iteration)
        text = f"{tag} {iteration}/{self.stop}:{assisted(self.header['card']) * (tag == 'val')}"
        text += "".join(f" {name} {v:.4g}" for name, v in values.items() if v is not None and name not in MACHINE)
        if tag == "train":
            text += f" | {values['images_per_second']:.1f} images/s, "
            if self.first is not None:
                left = (time.monotonic() - self.first[0]) / (iteration - self.first[1]) * (self.stop - iteration)
                text += f"{timedelta(seconds=round(left))} left, "
            self.first = self.first or (time.monotonic(), iteration)
            text += f"{values['memory_gb']:.1f} GB"
        self.say(text, quiet=tag == "train")

    def marked(self, tag: str) -> str:
        """A tag of validation says of a teacher's scores and predictions what they are."""
        return tag.replace("val", "val" + assisted(self.header["card"]).replace(" ", "_"), 1)

    def picture(self, tag: str, image: np.ndarray, iteration: int) -> None:
        """RGB uint8 ``[H, W, 3]`` to TensorBoard."""
        if self.enabled:
            self.writer.add_image(self.marked(tag), image, iteration, dataformats="HWC")

    def advance(self, iteration: int) -> None:
        if self.enabled:
            self.bar.update(iteration - self.bar.n)

    def say(self, text: str, quiet: bool = False) -> None:
        """A line on the terminal; a quiet one shows as the bar's postfix where there is a bar."""
        if not self.enabled:
            return
        try:
            if self.bar.disable:
                print(text, flush=True)
            elif quiet:
                self.bar.set_postfix_str(text.partition(": ")[2])
            else:
                self.bar.write(text)
        except OSError as error:
            if error.errno != errno.EIO:
                raise  # EIO: the terminal is gone (ssh was closed); the run and its files go on

    def close(self) -> None:
        if self.enabled:
            self.bar.close()
            self.file.close()
            try:
                self.writer.close()
            except OSError as error:  # must not hide why the run ends
                print(f"warning: the last TensorBoard events are lost: {error.strerror}", file=sys.stderr)


def _kept(line: str, start: int, validated: int) -> bool:
    """Whether a record is of an iteration that is kept; a line cut off by a kill, or damaged, is of none."""
    try:
        record = json.loads(line)
        return record["iteration"] <= (validated if record["event"] in ("val", "val_iou") else start)
    except (ValueError, LookupError, TypeError):
        return False
