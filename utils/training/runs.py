"""The folder of a run: who may write to it, and what a run continues from."""

import fcntl
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any, NamedTuple

from utils import checkpoint
from utils.errors import UserError
from utils.training.configuration import TrainConfig
from utils.training.naming import RESUMABLE
from utils.training.runtime import Runtime


class Run(NamedTuple):
    """A run's folder, locked against other runs until ``close`` or the end of the process."""

    folder: Path
    state: dict[str, Any] | None  # of the checkpoint it continues from
    lock: IO[str] | None
    card: Mapping[str, Any] = MappingProxyType({})  # what ``eval.py`` needs to rebuild the network

    def close(self) -> None:
        if self.lock is not None:
            self.lock.close()


def open_run(config: TrainConfig, runtime: Runtime) -> Run:
    """Lock the run's folder and read the state to continue from, if any. Nothing that exists is changed.

    Rank 0 alone looks and reads; what it finds is every process's, so that no folder need be shared.

    Raises:
        UserError: the folder cannot be written, holds a run that is neither resumed nor overwritten, the checkpoint
            to resume is missing or damaged, or it is of a run with other settings.
    """
    folder = Path(config.save_dir).expanduser()
    lock = None

    def look() -> dict[str, Any] | None:
        nonlocal lock
        lock = _lock(folder)
        return _state(config, folder)

    try:
        return Run(folder, runtime.agree(look), lock)
    except UserError:
        if lock is not None:
            lock.close()
        raise


def _state(config: TrainConfig, folder: Path) -> dict[str, Any] | None:
    last = folder / "last.pth"
    if config.resume == "auto":
        source = last if last.exists() and not config.overwrite else None
    else:
        source = Path(config.resume).expanduser() if config.resume else None
        if source is not None and source.is_dir():
            source = source / "last.pth"
        if source is not None and not source.is_file():
            raise UserError(f"--resume {source}: no such file")
        if last.exists() and not config.overwrite and (source is None or source.resolve() != last.resolve()):
            raise UserError(
                f"--save-dir {folder} holds a run: --resume auto continues it, --overwrite starts anew in its place, "
                "another --save-dir keeps both"
            )
    if source is None:
        return None
    state = checkpoint.read(source)
    if "optimizer" not in state:
        raise UserError(f"--resume {source} holds no training state; --pretrained starts a new run from its weights")
    # a setting that is younger than the run had its default value
    old, new = {**plain(asdict(type(config)())), **state["config"]}, plain(asdict(config))
    changed = [f"{k}: {old[k]!r} -> {new[k]!r}" for k in new if k not in RESUMABLE and new[k] != old[k]]
    if changed:
        raise UserError(
            f"--resume {source} is of a run with other settings ({'; '.join(changed)}): "
            "another --save-dir keeps both, --overwrite starts anew in its place"
        )
    return state


def clear(folder: Path) -> None:
    """Remove what an earlier run wrote, when a run starts anew; other files are left alone."""
    for pattern in ("last.pth", "best.pth", "metrics.jsonl", "events.out.tfevents.*"):
        for path in folder.glob(pattern):
            path.unlink()


def _lock(folder: Path) -> IO[str]:
    """An open file in the folder, whose lock ends with it, however the process ends."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / ".lock").open("w")
    except OSError as error:
        raise UserError(f"--save-dir {folder} cannot be written: {error.strerror}") from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise UserError(f"--save-dir {folder} is in use by another run") from None
    except OSError as error:
        print(f"--save-dir {folder} cannot be locked ({error.strerror}): start no second run in it", file=sys.stderr)
    return file


def plain(value: Any) -> Any:
    """Tuples as lists, the form yaml and json give back."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value
