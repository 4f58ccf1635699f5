"""Write metrics.jsonl, TensorBoard events, and lines or a bar on the terminal."""

import errno
import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from engine.machine import measure_peak_memory_gb
from engine.metrics import ASSISTED
from utils.errors import UserError
from utils.files import read_bytes, write_text


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
        self.val_tag = "val" + self.mark.replace(" ", "_")
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

    def log_training(
        self, terms: Mapping[str, float | None], speed: Mapping[str, float], seconds_left: float | None, iteration: int
    ) -> None:
        """Write the record, the TensorBoard curves and the line of an iteration of training.

        terms: the losses and the learning rate. speed: ``images_per_second`` and ``cpu_seconds``. The memory in use is
        measured here.
        """
        if not self.enabled:
            return
        values = {**terms, **speed, "memory_gb": measure_peak_memory_gb()}
        self.write_record({"event": "train", "iteration": iteration, **values})
        self._add_curves("train", values, iteration)
        pace = [f"{speed['images_per_second']:.1f} images/s"]
        if seconds_left is not None:
            pace.append(f"{timedelta(seconds=round(seconds_left))} left")
        pace.append(f"{values['memory_gb']:.1f} GB")
        text = f"{format_terms(terms)} | {', '.join(pace)}"
        with ignore_lost_terminal():
            if self.bar.disable:
                print(f"train {iteration}/{self.max_iterations}: {text}", flush=True)
            else:
                self.bar.set_postfix_str(text)

    def log_scores(self, scores: Mapping[str, float | None], iteration: int) -> None:
        """Write the record, the TensorBoard curves and the line of a validation.

        All of them say if the network reads the label.
        """
        if not self.enabled:
            return
        record = {"event": "val", "iteration": iteration, **scores}
        if self.mark:
            record["label_assisted"] = True
        self.write_record(record)
        self._add_curves(self.val_tag, scores, iteration)
        self.print_line(f"val {iteration}/{self.max_iterations}:{self.mark} {format_terms(scores)}")

    def _add_curves(self, tag: str, values: Mapping[str, float | None], iteration: int) -> None:
        """Add a point to each TensorBoard curve ``tag/name``."""
        for name, value in values.items():
            if value is not None:
                self.writer.add_scalar(f"{tag}/{name}", value, iteration)

    def log_prediction(self, picture: np.ndarray, iteration: int) -> None:
        """Show predictions of a validation, RGB uint8 ``[H, W, 3]``, in TensorBoard."""
        if self.enabled:
            self.writer.add_image(f"{self.val_tag}/prediction", picture, iteration, dataformats="HWC")

    def advance(self, iteration: int) -> None:
        """Move the bar to an iteration."""
        if self.enabled:
            self.bar.update(iteration - self.bar.n)

    def print_line(self, text: str) -> None:
        """Print a line on the terminal, above the bar if there is one."""
        if not self.enabled:
            return
        with ignore_lost_terminal():
            if self.bar.disable:
                print(text, flush=True)
            else:
                self.bar.write(text)

    def __enter__(self) -> "RunLogger":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

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


@contextmanager
def ignore_lost_terminal() -> Iterator[None]:
    """Let a run go on whose terminal is gone, as when ssh was closed. Its files go on, too."""
    try:
        yield
    except OSError as error:
        if error.errno != errno.EIO:
            raise


def format_terms(terms: Mapping[str, float | None]) -> str:
    """Write the terms that have a value in one line, such as "loss 0.52 lr 0.001"."""
    return " ".join(f"{name} {value:.4g}" for name, value in terms.items() if value is not None)


def is_kept(line: str, start: int, validated: int) -> bool:
    """Return whether a resumed run keeps a record of its log. It drops damaged ones and those of later iterations."""
    try:
        record = json.loads(line)
        return record["iteration"] <= (validated if record["event"] in ("val", "val_iou") else start)
    except (ValueError, LookupError, TypeError):
        return False
