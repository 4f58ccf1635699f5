"""Write metrics.jsonl, TensorBoard events, and lines or a bar on the terminal."""

import errno
import json
import sys
import time
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from engine.machine import measure_peak_memory_gb
from engine.metrics import ASSISTED
from utils.errors import UserError
from utils.files import read_bytes, write_text

MACHINE = ("images_per_second", "cpu_seconds", "memory_gb")  # terms that say something of the machine, not the training


def get_assisted_mark(card: Mapping[str, Any]) -> str:
    """Return the mark of a network that reads the label, after a space. It is empty for others."""
    return f" {ASSISTED}" if card.get("label_noise") else ""


class RunLogger:
    """Write the records of one run to ``folder``. On other ranks than 0 every method does nothing."""

    def __init__(
        self,
        folder: Path,
        enabled: bool,
        first_iteration: int,
        validated: int,
        max_iterations: int,
        header: Mapping[str, Any],
    ) -> None:
        """Open the log, and drop the records of an interrupted run that are later than its checkpoint.

        first_iteration: the iteration that the run continues from. validated: the last iteration whose validation is
        finished. header: the content of the first record.
        """
        self.enabled = enabled
        if not enabled:
            return
        from torch.utils.tensorboard import SummaryWriter  # costs half a second

        path = folder / "metrics.jsonl"
        lines = []
        if first_iteration and path.exists():
            lines = read_bytes(path).decode(errors="replace").splitlines()
        write_text(path, "".join(line + "\n" for line in lines if is_kept(line, first_iteration, validated)))
        self.file = path.open("a", buffering=1)
        self.writer = SummaryWriter(str(folder), purge_step=first_iteration + 1 if first_iteration else None)
        self.max_iterations = max_iterations
        self.mark = get_assisted_mark(header["card"])
        self.first_time: float | None = None  # of the first record of training, which took longer than others
        self.first_iteration = first_iteration
        self.bar = tqdm(
            total=max_iterations,
            initial=first_iteration,
            desc=folder.name,
            disable=not sys.stderr.isatty(),
            dynamic_ncols=True,
        )
        self.write_record({"event": "start", "iteration": first_iteration, **header})

    def write_record(self, values: Mapping[str, Any]) -> None:
        """Write one line of metrics.jsonl.

        Raises:
            UserError: the line cannot be written.
        """
        if not self.enabled:
            return
        try:
            self.file.write(json.dumps(values) + "\n")
        except OSError as error:
            raise UserError(f"{self.file.name} cannot be written: {error.strerror}") from error

    def log_scalars(self, tag: str, values: Mapping[str, float | None], iteration: int) -> None:
        """Write a record, TensorBoard curves ``tag/name``, and one line on the terminal.

        A record of training ("train") also says how much memory was used. A record of validation ("val") also says if
        the network reads the label.
        """
        if not self.enabled:
            return
        if tag == "train":
            values = {**values, "memory_gb": measure_peak_memory_gb()}
        record = {"event": tag, "iteration": iteration, **values}
        if tag == "val" and self.mark:
            record["label_assisted"] = True
        self.write_record(record)
        numbers = {name: value for name, value in values.items() if value is not None}
        for name, value in numbers.items():
            self.writer.add_scalar(f"{self.mark_tag(tag)}/{name}", value, iteration)
        terms = "".join(f" {name} {value:.4g}" for name, value in numbers.items() if name not in MACHINE)
        if tag == "train":
            self.print_line(
                f"train {iteration}/{self.max_iterations}:{terms} | {self.describe_pace(record)}", quiet=True
            )
        else:
            self.print_line(f"{tag} {iteration}/{self.max_iterations}:{self.mark}{terms}")

    def describe_pace(self, record: Mapping[str, Any]) -> str:
        """Return the speed, the time that is left, and the memory, for the terminal."""
        parts = [f"{record['images_per_second']:.1f} images/s"]
        iteration = record["iteration"]
        if self.first_time is None:
            self.first_time = time.monotonic()
            self.first_iteration = iteration
        else:
            seconds_each = (time.monotonic() - self.first_time) / (iteration - self.first_iteration)
            parts.append(f"{timedelta(seconds=round(seconds_each * (self.max_iterations - iteration)))} left")
        parts.append(f"{record['memory_gb']:.1f} GB")
        return ", ".join(parts)

    def mark_tag(self, tag: str) -> str:
        """Return a TensorBoard tag. A tag of validation gets the mark of a network that reads the label."""
        return tag.replace("val", "val" + self.mark.replace(" ", "_"), 1)

    def log_image(self, tag: str, image: np.ndarray, iteration: int) -> None:
        """Show an image, RGB uint8 ``[H, W, 3]``, in TensorBoard."""
        if self.enabled:
            self.writer.add_image(self.mark_tag(tag), image, iteration, dataformats="HWC")

    def advance(self, iteration: int) -> None:
        """Move the bar to an iteration."""
        if self.enabled:
            self.bar.update(iteration - self.bar.n)

    def print_line(self, text: str, quiet: bool = False) -> None:
        """Print a line on the terminal. Where there is a bar, a quiet line becomes the text behind it."""
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
        """Close the files and the bar. What cannot be written any more must not hide why the run ends."""
        if not self.enabled:
            return
        self.bar.close()
        for what, file in (("records of metrics.jsonl", self.file), ("TensorBoard events", self.writer)):
            try:
                file.close()
            except OSError as error:
                print(f"warning: the last {what} are lost: {error.strerror}", file=sys.stderr)


def is_kept(line: str, start: int, validated: int) -> bool:
    """Return whether a resumed run keeps a record of its log. It drops damaged ones and those of later iterations."""
    try:
        record = json.loads(line)
        return record["iteration"] <= (validated if record["event"] in ("val", "val_iou") else start)
    except (ValueError, LookupError, TypeError):
        return False
