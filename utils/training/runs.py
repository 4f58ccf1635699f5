"""The folder of a run: what it holds, who may write to it, and what a run continues from."""

import json
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from utils import checkpoint
from utils.errors import UserError
from utils.files import read_bytes, write
from utils.training.configuration import TrainConfig, save_yaml
from utils.training.inputs import differences
from utils.training.locks import Lock
from utils.training.runtime import Runtime

LAST, PREVIOUS, BEST, LOG = "last.pth", "previous.pth", "best.pth", "metrics.jsonl"
DAMAGED = "damaged.pth"  # what last.pth is called once the previous one has taken its place
WRITTEN = (BEST, LOG, "events.out.tfevents.*", PREVIOUS, LAST)  # by a run
SHOWN = 5  # files that an error lists


class Run(NamedTuple):
    """A run's folder, locked against other runs until ``close`` or the end of the process."""

    folder: Path
    state: dict[str, Any] | None  # of the checkpoint it continues from
    lock: Lock | None
    inputs: Mapping[str, Any] = MappingProxyType({})  # what it is trained with besides its settings
    origin: Path | None = None  # that checkpoint
    damaged: bool = False  # it is the previous one, the last one cannot be read
    card: Mapping[str, Any] = MappingProxyType({})  # what ``eval.py`` needs to rebuild the network

    @property
    def elsewhere(self) -> bool:
        """Whether what it continues, if anything, lies in another folder."""
        return self.origin is None or self.origin.parent != self.folder

    def begin(self, config: TrainConfig) -> None:
        """From here on the folder is changed: what another run wrote there is removed, what belongs to this one and
        lies elsewhere comes along."""
        for path in (path for pattern in WRITTEN if self.elsewhere for path in self.folder.glob(pattern)):
            path.unlink()
        for name in (BEST, LOG, LAST) if self.origin and self.elsewhere else ():
            path = self.origin if name == LAST else self.origin.with_name(name)
            if path.is_file():
                write(self.folder / name, lambda file, path=path: file.write(read_bytes(path)))
        if self.damaged and not self.elsewhere and (self.folder / LAST).exists():
            os.replace(self.folder / LAST, self.folder / DAMAGED)
        save_yaml(config, self.folder / "config.yaml")

    def close(self) -> None:
        if self.lock is not None:
            self.lock.release()


def open_run(config: TrainConfig, runtime: Runtime, inputs: Callable = dict, usable: Callable = bool) -> Run:
    """Lock the run's folder and read the state to continue from, if any. Nothing that exists is changed.

    Rank 0 alone looks and reads; what it finds is every process's, so that no folder need be shared.
    inputs: gives ``Run.inputs``. usable: raises UserError for a state that cannot be restored; the one before may be.

    Raises UserError: the folder cannot be written, holds what would be lost, the checkpoint to resume is missing or
    damaged, or it is of a run with other settings or inputs.
    """
    folder = Path(config.save_dir).expanduser()
    lock = None

    def look() -> tuple[dict[str, Any] | None, Path | None, bool, Mapping[str, Any]]:
        nonlocal lock
        lock = Lock(folder)
        now = inputs()
        return *_state(_restarted(config, folder), folder, now, usable, runtime), now

    try:
        state, origin, damaged, now = runtime.agree(look)
        return Run(folder, state, lock, now, origin, damaged)
    except UserError:
        if lock is not None:
            lock.release()
        raise


def _restarted(config: TrainConfig, folder: Path) -> TrainConfig:
    """torchrun restarts a failed job with its flags: then the run goes on, also one that was to start anew."""
    begun = any((folder / name).exists() for name in (LAST, PREVIOUS)) or not config.resume
    if os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0" and begun:
        return replace(config, resume="auto", overwrite=False)
    return config


def _state(
    config: TrainConfig, folder: Path, inputs: Mapping[str, Any], usable: Callable, runtime: Runtime
) -> tuple[dict[str, Any] | None, Path | None, bool]:
    """The checkpoint to continue from, its file, and whether that is the previous one for want of the last."""
    source = _source(config, folder)
    if source is None:
        return None, None, False
    paths, problems = [source, source.with_name(PREVIOUS)] if source.name == LAST else [source], []
    for path in paths:
        try:
            state = checkpoint.read(path)
            if "optimizer" not in state:
                raise UserError("it holds no training state; --pretrained starts a new run from its weights")
            different = differences(state, config, inputs)
            if not different:
                usable(state)
            break
        except UserError as error:
            problems.append(error if str(path) in str(error) else UserError(f"{path}: {error}"))
    else:
        best, listed = source.with_name(BEST), problems if paths[-1].exists() else problems[:1]
        advice = f"; --pretrained {best} starts a new run from the best weights" if best.exists() else ""
        raise UserError(f"--resume: {'; '.join(map(str, listed))}{advice}") from problems[0]
    if problems:
        print(f"warning: {problems[0]}: continuing from {path}", file=sys.stderr)
    if different:
        raise UserError(different)
    before = state.get("world_size", runtime.size)
    if before != runtime.size and runtime.device.type != "cuda":
        share = "each has BatchNorm statistics of its share of the batch, so results differ from those of either"
        print(f"warning: {runtime.size} processes continue what {before} began: {share}", file=sys.stderr)
    return state, path, bool(problems)


def _source(config: TrainConfig, folder: Path) -> Path | None:
    """The file to continue from. Raises UserError: there is none, or what the folder holds would be lost."""
    there = [path.name for pattern in WRITTEN for path in sorted(folder.glob(pattern))]
    resumable = LAST in there or PREVIOUS in there
    source = None
    if config.resume == "auto":
        if resumable and not config.overwrite:
            return folder / LAST
    elif config.resume:
        source = Path(config.resume).expanduser()
        source = source / LAST if source.is_dir() else source
        if not (source.is_file() or (source.name == LAST and source.with_name(PREVIOUS).exists())):
            raise UserError(f"--resume {source}: no such file")
        if source.parent.resolve() == folder.resolve():
            return folder / source.name
    undone = {"start", "train"} if config.resume == "auto" else {"start"}  # events of no value without a checkpoint
    only_begun = LOG in there and not resumable and BEST not in there and _events(folder / LOG) <= undone
    if config.overwrite or only_begun or not there:
        return source
    if resumable:
        continues = "holds a run: --resume auto continues it, "
    else:
        continues = f"holds {', '.join(there[:SHOWN])} of a run and no {LAST} to continue it from: "
    raise UserError(
        f"--save-dir {folder} {continues}--overwrite starts anew in its place, another --save-dir keeps both"
    )


def _events(log: Path) -> set[str]:
    """The kinds of the records in a log; "unknown" for what is none."""
    lines = log.read_bytes().split(b"\n")[:-1] if log.is_file() else []  # a kill may cut the last one off
    try:
        return {json.loads(line)["event"] for line in lines}
    except (ValueError, KeyError, TypeError):
        return {"unknown"}
