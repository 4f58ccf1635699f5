"""The folder of a run: what it holds, who may write to it, and which checkpoint a run continues from."""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from engine.folder_lock import FolderLock
from engine.run_inputs import OtherRun, check_same_run
from engine.runtime import Runtime
from engine.settings import TrainConfig, list_file_settings, save_yaml
from engine.training_state import TrainingState
from models.checkpoints.reading import list_checkpoint_files
from utils import checkpoint
from utils.errors import UserError
from utils.files import read_bytes, read_yaml, write
from utils.options import get_flag

LAST = "last.pth"
PREVIOUS = "previous.pth"
BEST = "best.pth"
LOG = "metrics.jsonl"
DAMAGED = "damaged.pth"  # the name of an unusable last.pth after the previous one has taken its place
UNUSED = "unused.pth"  # the name of a last.pth after --resume has named another checkpoint of the same folder
# patterns of the files that a run writes, except for its config.yaml and its lock
RUN_FILES = (BEST, LOG, "events.out.tfevents.*", DAMAGED, UNUSED, PREVIOUS, LAST)
# what was measured of a run, as the documents and experiment.py name it
SCORE_FILES = ("eval*.json", "last.json", "best.json", "per_image*.npz", "robustness.*", "knowledge.json")
MAX_LISTED = 5  # files that an error lists


class RunFolder:
    """Hold the one record of a run: its folder, the lock on it, the checkpoint it continues from, and its inputs.

    Only rank 0 reads and writes. It sends the other ranks what it reads, so that hosts need not share a file system.
    """

    def __init__(self, path: Path, runtime: Runtime, inputs: Mapping[str, str], source: Path | None = None) -> None:
        """source: the checkpoint to continue from; None for a new run."""
        self.path = path
        self.runtime = runtime
        self.inputs = inputs
        self.source = source
        self.lock: FolderLock | None = None  # rank 0's; the other ranks have none
        # last.pth is missing, damaged, or without training state, so that previous.pth was restored
        self.fell_back_to_previous = False

    @property
    def resumes_in_place(self) -> bool:
        """Return whether the run continues in the folder that its checkpoint lies in."""
        return self.source is not None and self.source.parent == self.path

    def take_lock(self) -> None:
        """Lock the folder, on rank 0 only. The folder is made if it does not exist.

        Raises:
            UserError: the folder cannot be written, or another run has the lock.
        """
        self.lock = FolderLock(self.path)

    def restore(self, state: TrainingState, settings: TrainConfig) -> None:
        """Continue from the run's checkpoint, ``source``, which must not be None.

        Fall back to ``previous.pth`` if ``last.pth`` cannot be used. What a failed attempt has loaded is overwritten.

        Raises:
            UserError: neither file can be used, or the checkpoint is of a run with other settings or inputs.
        """
        candidates = [self.source]
        if self.source.name == LAST:
            candidates.append(self.source.with_name(PREVIOUS))
        problems: list[UserError] = []
        for path in candidates:
            try:
                content = self.runtime.on_rank0(read_resumable, path, settings, self.inputs)
                state.restore(content)
            except OtherRun:
                raise
            except UserError as error:
                problems.append(error if str(path) in str(error) else UserError(f"{path}: {error}"))
                continue
            self.source = path
            self.fell_back_to_previous = bool(problems)
            if self.runtime.is_main:
                warn_about_resume(path, problems, content.get("world_size"), self.runtime.size)
            return
        raise UserError(self._explain_failure(candidates, problems)) from problems[0]

    def _explain_failure(self, candidates: list[Path], problems: list[UserError]) -> str:
        """Say why no checkpoint can be used, and what could be done instead."""
        if not self.runtime.on_rank0(candidates[-1].exists):
            problems = problems[:1]
        message = f"--resume: {'; '.join(map(str, problems))}"
        last = candidates[0].with_name(LAST)
        if last != candidates[0] and self.runtime.on_rank0(last.exists):
            message += f"; --resume {last} continues the run"
        best = candidates[0].with_name(BEST)
        if best != candidates[0] and self.runtime.on_rank0(best.exists):
            message += f"; --pretrained {best} starts a new run from the best weights"
        return message

    def prepare_for_writing(self, settings: TrainConfig) -> None:
        """Delete another run's files and, when resuming from a different folder, copy this run's files here.

        When resuming in place, give an unusable or unwanted ``last.pth`` another name. Write ``config.yaml`` in any
        case.
        """
        self.runtime.on_rank0(self._prepare_for_writing, settings)

    def _prepare_for_writing(self, settings: TrainConfig) -> None:
        """Prepare the folder, on rank 0. Afterwards ``last.pth``, if it exists, is what the run continues from.

        With ``--overwrite`` the measurements of the other run are deleted, too (SCORE_FILES).
        """
        if not self.resumes_in_place:
            for pattern in RUN_FILES + (SCORE_FILES if settings.overwrite else ()):
                for path in self.path.glob(pattern):
                    path.unlink()
            if self.source is not None:
                self._copy_from_source()
        elif self.fell_back_to_previous:
            self._rename_last(DAMAGED)
        elif self.source.name != LAST:
            self._replace_last_by_source()
        save_yaml(settings, self.path / "config.yaml")

    def _rename_last(self, name: str) -> None:
        """Give ``last.pth`` another name, if there is one."""
        if (self.path / LAST).exists():
            os.replace(self.path / LAST, self.path / name)

    def _replace_last_by_source(self) -> None:
        """Put a copy of the source in the place of ``last.pth``.

        Without that, a run that is killed before its first save would go on from the wrong checkpoint. And the first
        save would keep the unwanted ``last.pth`` as ``previous.pth``.
        """
        content = read_bytes(self.source)
        self._rename_last(UNUSED)
        write(self.path / LAST, lambda file: file.write(content))

    def _copy_from_source(self) -> None:
        """Copy the source, which becomes ``last.pth``, and ``best.pth`` and the log that lie beside it."""
        for name in (BEST, LOG, LAST):
            path = self.source if name == LAST else self.source.with_name(name)
            if path.is_file():
                content = read_bytes(path)
                write(self.path / name, lambda file, content=content: file.write(content))

    def write_checkpoint(self, name: str, content: Mapping[str, Any], keep_previous: bool) -> None:
        """Write a checkpoint, on rank 0. With ``keep_previous`` the one before it becomes ``previous.pth``.

        Raises:
            UserError: the file cannot be written, another run has locked the folder since, or the log is gone.
        """
        if self.lock is not None:
            self.lock.retake_if_lost()
        checkpoint.save(content, self.path / name, self.path / PREVIOUS if keep_previous else None)
        if not (self.path / LOG).exists():
            lost = f"--save-dir {self.path} was emptied while its run went on, the log is lost"
            raise UserError(f"{lost}; {name} was written again: --resume auto continues from {LAST}")

    def close(self) -> None:
        """Release the lock. Remove the folder if this run made it and wrote nothing in it."""
        if self.lock is not None:
            self.lock.release()


def open_run_folder(settings: TrainConfig, runtime: Runtime, inputs: Mapping[str, str]) -> RunFolder:
    """Lock the run's folder and find the checkpoint to resume from. Files that exist are left as they are.

    Rank 0 does both. The other ranks are told the checkpoint, and hold no lock.

    Raises:
        UserError: the folder cannot be written, is in use, or holds what would be lost; or there is no such checkpoint.
    """
    path = Path(settings.save_dir).expanduser()
    folder = RunFolder(path, runtime, inputs)
    runtime.on_rank0(folder.take_lock)
    try:
        folder.source = runtime.on_rank0(find_resume_source, settings, path)
    except UserError:
        folder.close()
        raise
    return folder


def adapt_to_restart(settings: TrainConfig, folder: Path) -> TrainConfig:
    """Change the settings of a job that torchrun restarts: it continues its run, also if flags say to start anew.

    If the job failed before it wrote to the folder, the folder may hold another run. Then the settings stay as they
    are.
    """
    is_restart = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"
    if not is_restart or read_launch_id(folder / LOG) != get_launch_id():
        return settings
    can_continue = any((folder / name).exists() for name in (LAST, PREVIOUS))
    if can_continue or not settings.resume:
        return replace(settings, resume="auto", overwrite=False)
    return settings


def get_launch_id() -> str | None:
    """Return torchrun's name of the job, the same after a restart. None without torchrun.

    torchrun calls every job "none" unless it has --standalone or --rdzv-id. Then the folder of its logs is the name.
    """
    launch_id = os.environ.get("TORCHELASTIC_RUN_ID")
    error_file = os.environ.get("TORCHELASTIC_ERROR_FILE")  # LOGS/ATTEMPT/RANK/error.json
    if launch_id == "none" and error_file:
        return str(Path(error_file).parents[2])
    return launch_id


def read_launch_id(log: Path) -> str | None:
    """Return the name of the job that started last, by its log (``get_launch_id``). None if it has none."""
    launch_id = None
    for line in read_log_lines(log):
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and record.get("event") == "start":
            launch_id = record.get("launch")
    return launch_id


def find_resume_source(settings: TrainConfig, folder: Path) -> Path | None:
    """Decide whether a run resumes, and from which checkpoint. Return None if it starts anew. Nothing is changed here.

    - ``--resume auto`` continues the run of the folder if there is one. Otherwise, or with ``--overwrite``, the run
      starts anew.
    - ``--resume FILE`` continues that checkpoint, in the folder. A run of its own there must not be lost.
    - Without ``--resume`` a run starts anew. A run that is there must not be lost.

    A job that torchrun restarts continues its run (``adapt_to_restart``). If a folder holds only ``previous.pth``, the
    result still names ``last.pth``. ``RunFolder.restore`` then takes ``previous.pth``.

    Raises:
        UserError: ``--resume`` names a checkpoint that does not exist. Or the folder holds files of a run that would be
            replaced, and ``--overwrite`` is not given. Or one of them is an input of the new run.
    """
    settings = adapt_to_restart(settings, folder)
    files = [path.name for pattern in RUN_FILES for path in sorted(folder.glob(pattern))]
    if settings.resume == "auto" and has_checkpoint(files) and not settings.overwrite:
        return folder / LAST
    source = None
    if settings.resume not in ("", "auto"):
        source = locate_checkpoint(settings.resume)
        for path in (source, source.resolve()):  # the folder may be named by a link, or the file
            if path.parent.resolve() == folder.resolve():
                return folder / path.name
    require_nothing_lost(settings, folder, files)
    return source


def has_checkpoint(files: Sequence[str]) -> bool:
    """Return whether a run can be continued from one of the files with these names."""
    return LAST in files or PREVIOUS in files


def require_nothing_lost(settings: TrainConfig, folder: Path, files: Sequence[str]) -> None:
    """Check that a run that writes to a folder anew replaces nothing of value there, or may do so (``--overwrite``).

    files: the names of the files of a run in the folder. They will be deleted.

    Raises:
        UserError: the files are of value and ``--overwrite`` is not given, or the new run starts from one of them.
    """
    is_worthless = not files or is_barely_started(folder, files, resumes=settings.resume == "auto")
    if settings.overwrite or is_worthless:
        require_inputs_elsewhere(settings, folder, files)
        return
    if has_checkpoint(files):
        what = "holds a run: --resume auto continues it, "
    else:
        what = f"holds {', '.join(files[:MAX_LISTED])} of a run and no {LAST} to continue it from: "
    advice = "--overwrite starts anew in its place, another --save-dir keeps both"
    raise UserError(f"--save-dir {folder} {what}{advice}")


def require_inputs_elsewhere(settings: TrainConfig, folder: Path, files: Sequence[str]) -> None:
    """Check that a run that starts anew does not delete what it starts from.

    files: the names of the files in the folder that will be deleted.

    Raises:
        UserError: a setting names a file that will be deleted.
    """
    deleted = {(folder / name).resolve() for name in files}
    for name in sorted(list_file_settings(type(settings))):
        value = getattr(settings, name)
        if value and any(path.resolve() in deleted for path in list_checkpoint_files(value)):
            flag = get_flag(name)
            raise UserError(f"{flag} {value} lies in --save-dir and would be deleted: give another --save-dir")


def read_saved_settings(settings: TrainConfig) -> dict[str, Any]:
    """Read the config.yaml of the run that is resumed. Return {} without such a run or a sound file.

    Raises:
        UserError: as ``find_resume_source``.
    """
    source = find_resume_source(settings, Path(settings.save_dir).expanduser())
    if source is None:
        return {}
    try:
        saved = read_yaml(source.parent / "config.yaml")
    except UserError:
        return {}
    return saved if isinstance(saved, dict) else {}


def locate_checkpoint(resume: str) -> Path:
    """Return the checkpoint that ``--resume`` names, by its file or its folder.

    The result may be a ``last.pth`` that does not exist, if ``previous.pth`` lies beside it.

    Raises:
        UserError: neither file exists.
    """
    path = Path(resume).expanduser()
    if path.is_dir():
        path = path / LAST
    has_previous = path.name == LAST and path.with_name(PREVIOUS).exists()
    if not path.is_file() and not has_previous:
        raise UserError(f"--resume {path}: no such file")
    return path


def is_barely_started(folder: Path, files: Sequence[str], resumes: bool) -> bool:
    """Return whether a folder holds the log of a run that ended before its first checkpoint, and nothing of value.

    resumes: whether the user gave ``--resume auto``. Without a checkpoint such a run must start again, so that its
    records of training have no value either.
    """
    if LOG not in files or {LAST, PREVIOUS, BEST, DAMAGED, UNUSED} & {*files}:
        return False
    worthless = {"start", "train"} if resumes else {"start"}
    return read_events(folder / LOG) <= worthless


def read_log_lines(log: Path) -> list[bytes]:
    """Return the lines of a log, or none if there is no log. A last line that a kill has cut off is left out."""
    return log.read_bytes().split(b"\n")[:-1] if log.is_file() else []


def read_events(log: Path) -> set[str]:
    """Return the kinds of the records in a log, or {"unknown"} if a record is damaged."""
    try:
        return {json.loads(line)["event"] for line in read_log_lines(log)}
    except (ValueError, KeyError, TypeError):
        return {"unknown"}


def read_resumable(path: Path, settings: TrainConfig, inputs: Mapping[str, str]) -> dict[str, Any]:
    """Read a checkpoint to continue from.

    Raises:
        OtherRun: the checkpoint is of a run with other settings or inputs.
        UserError: the checkpoint is damaged, or holds weights only.
    """
    content = checkpoint.read(path)
    if "optimizer" not in content:
        raise UserError("it holds no training state; --pretrained starts a new run from its weights")
    check_same_run(content, settings, inputs)
    return content


def warn_about_resume(path: Path, problems: list[UserError], size_before: int | None, size: int) -> None:
    """Warn if the previous checkpoint is used, or if the world size has changed."""
    if problems:
        print(f"warning: {problems[0]}: continuing from {path}", file=sys.stderr)
    if size_before not in (None, size):
        print(
            f"warning: {size} processes continue what {size_before} began: BatchNorm without synchronisation, dropout "
            "and some losses (ohem, dice, dist, adv, mgd, af_dcd and CIRKD's) depend on how the batch is split, so the "
            "results differ from those of either",
            file=sys.stderr,
        )
