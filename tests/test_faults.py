"""A run keeps its files and its work when something goes wrong."""

import errno
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import train_student
import train_teacher
from datasets import DATASETS, build_train_and_val
from datasets.base import SegmentationDataset
from datasets.ids import IdMap
from engine import evaluator, lockstep, trainer
from engine.finite import FiniteWatch
from engine.folder_lock import FolderLock
from engine.loader import load_train_batches
from engine.lockstep import STOPPED_STATUS, Lockstep, Stopped
from engine.logger import RunLogger
from engine.run_folder import RunFolder, get_launch_id
from engine.run_inputs import agree_on_inputs, describe_inputs
from engine.runtime import Runtime
from engine.settings import StudentConfig, TeacherConfig
from engine.training_state import TrainingState
from models.checkpoints import reading
from tests import trees
from tests.breaking.processes import list_processes
from tests.conftest import BACKBONE, ENVIRONMENT, ROOT, TINY
from tests.test_engine import assert_same_checkpoints, read_losses, read_records
from utils import checkpoint
from utils.errors import UserError, explain_error

SHORT = [*TINY, "--max-iterations", "3", "--val-per-iters", "2", "--save-per-iters", "1"]


def train_small_teacher(folder: Path, *flags: str) -> dict:
    """Train a teacher for three iterations and return the content of last.pth."""
    train_teacher.main([*SHORT, "--save-dir", str(folder), *flags])
    return checkpoint.read(folder / "last.pth")


def read_files(folder: Path) -> dict[str, bytes]:
    """Return the bytes of every file in a folder except the lock."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory):
    """Train a teacher to its end and return its folder."""
    folder = tmp_path_factory.mktemp("faults") / "run"
    train_small_teacher(folder)
    return folder


@pytest.fixture
def run(finished_run, tmp_path):
    """Copy the finished run. Its last.pth is of iteration 3, its previous.pth of iteration 2."""
    for name, data in read_files(finished_run).items():
        (tmp_path / "run").mkdir(exist_ok=True)
        (tmp_path / "run" / name).write_bytes(data)
    return tmp_path / "run"


def test_the_checkpoint_before_the_last_is_kept(finished_run):
    assert checkpoint.read(finished_run / "last.pth")["iteration"] == 3
    assert checkpoint.read(finished_run / "previous.pth")["iteration"] == 2


@pytest.mark.parametrize("kept", [["best.pth"], ["metrics.jsonl"], ["events"], ["best.pth", "metrics.jsonl"]])
@pytest.mark.parametrize("flags", [[], ["--resume", "auto"]])
def test_results_without_a_checkpoint_are_not_deleted(run, kept, flags):
    for path in run.iterdir():
        if not path.name.startswith(tuple(kept)):
            path.unlink()
    before = read_files(run)
    with pytest.raises(UserError, match=r"holds .* no last\.pth .*--overwrite starts anew"):
        train_small_teacher(run, *flags)
    assert read_files(run) == before


def test_a_run_does_not_delete_the_checkpoint_it_starts_from(run):
    before = read_files(run)
    with pytest.raises(UserError, match=r"--pretrained .*last\.pth lies in --save-dir and would be deleted: give"):
        train_small_teacher(run, "--pretrained", str(run / "last.pth"), "--overwrite")
    assert read_files(run) == before


def test_overwrite_removes_the_files_of_the_old_run(run):
    for name in ("damaged.pth", "unused.pth"):
        (run / name).write_bytes(b"of the run before")
    train_small_teacher(run, "--overwrite", "--max-iterations", "1")
    assert not {"damaged.pth", "unused.pth", "previous.pth"} & set(read_files(run))


def test_a_restarted_job_continues_despite_overwrite(run, monkeypatch, capsys):
    """torchrun restarts a job with the same flags, even if --overwrite is one of them."""
    before = read_files(run)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    train_small_teacher(run, "--overwrite", "--resume", "auto")
    assert "is finished: 3 iterations" in capsys.readouterr().out
    assert read_files(run) == before


@pytest.mark.parametrize("flags", [["--overwrite"], []])
def test_a_restarted_job_takes_no_other_jobs_run_for_its_own(flags, run, monkeypatch):
    """The first attempt may have failed before it wrote anything."""
    before = read_files(run)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "another job")
    if flags:
        train_small_teacher(run, *flags, "--max-iterations", "1")
        assert checkpoint.read(run / "last.pth")["iteration"] == 1
    else:
        with pytest.raises(UserError, match="holds a run: --resume auto continues it"):
            train_small_teacher(run)
        assert read_files(run) == before


def test_launches_of_torchrun_without_an_id_are_told_apart(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    names = set()
    for launch, attempt in (("none_a", 0), ("none_a", 1), ("none_b", 0)):
        monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", f"/tmp/{launch}/attempt_{attempt}/0/error.json")
        names.add(get_launch_id())
    assert names == {"/tmp/none_a", "/tmp/none_b"}


def test_checkpoints_alone_are_not_deleted(run):
    for path in list(run.iterdir()):
        if path.name not in ("last.pth", "previous.pth"):
            path.unlink()
    before = read_files(run)
    with pytest.raises(UserError, match="holds a run: --resume auto continues it"):
        train_small_teacher(run)
    assert read_files(run) == before


def test_a_run_killed_before_its_first_checkpoint_starts_again(run, finished_run):
    lines = (run / "metrics.jsonl").read_text().splitlines()
    for path in run.iterdir():
        path.unlink()
    (run / "metrics.jsonl").write_text("\n".join(line for line in lines if '"val' not in line)[:-5])
    assert_same_checkpoints(train_small_teacher(run, "--resume", "auto"), checkpoint.read(finished_run / "last.pth"))
    assert read_losses(run) == read_losses(finished_run)


@pytest.mark.parametrize("damage", [lambda data: b"", lambda data: data[: len(data) // 2], lambda data: None])
def test_the_previous_checkpoint_replaces_a_damaged_one(run, finished_run, damage, capsys):
    data = damage((run / "last.pth").read_bytes())
    if data is None:
        (run / "last.pth").unlink()
    else:
        (run / "last.pth").write_bytes(data)
    assert_same_checkpoints(train_small_teacher(run, "--resume", "auto"), checkpoint.read(finished_run / "last.pth"))
    assert "previous.pth" in capsys.readouterr().err
    assert checkpoint.read(run / "previous.pth")["iteration"] == 2
    assert data is None or (run / "damaged.pth").read_bytes() == data
    assert read_losses(run) == read_losses(finished_run)


def test_a_checkpoint_that_does_not_fit_in_memory_is_not_treated_as_damaged(run, monkeypatch):
    def exhaust(self, saved):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(TrainingState, "_restore_optimizer", exhaust)
    with pytest.raises(torch.OutOfMemoryError):
        train_small_teacher(run, "--resume", "auto")
    assert (run / "last.pth").exists()
    assert not (run / "damaged.pth").exists()


def test_a_run_continues_in_another_folder_with_all_its_files(finished_run, run, tmp_path):
    other = tmp_path / "other"
    train_small_teacher(other, "--seed", "1")
    assert_same_checkpoints(
        train_small_teacher(other, "--resume", str(run / "previous.pth"), "--overwrite"),
        checkpoint.read(finished_run / "last.pth"),
    )
    assert read_losses(other) == read_losses(finished_run)
    assert [line["config"]["seed"] for line in read_records(other, "start")] == [0, 0]
    before = read_files(run)
    assert_same_checkpoints(
        train_small_teacher(tmp_path / "copy", "--resume", str(run)), checkpoint.read(finished_run / "last.pth")
    )
    assert all(
        (tmp_path / "copy" / name).read_bytes() == before[name] for name in ("best.pth", "last.pth", "metrics.jsonl")
    )
    (other / "previous.pth").write_bytes(b"of another run")
    RunFolder(other, Runtime(), {}, run / "previous.pth").prepare_for_writing(TeacherConfig())
    assert read_files(run) == before
    assert read_files(other).keys() == {"best.pth", "last.pth", "metrics.jsonl", "config.yaml"}
    assert (other / "best.pth").read_bytes() == before["best.pth"]
    # as if the run was killed at its start
    assert_same_checkpoints(train_small_teacher(other, "--resume", "auto"), checkpoint.read(finished_run / "last.pth"))


@pytest.mark.parametrize("is_damaged", [False, True])
def test_a_run_killed_after_resuming_from_previous_continues_from_there(run, finished_run, is_damaged, monkeypatch):
    """``--resume previous.pth`` renames this file to last.pth. The old last.pth becomes unused.pth."""

    def fail(*args):
        raise UserError("as if it were killed")

    if is_damaged:
        (run / "last.pth").write_bytes(b"x")
    before = read_files(run)
    with monkeypatch.context() as patch:
        patch.setattr(trainer.Trainer, "train_step", fail)
        with pytest.raises(UserError, match="as if it were killed"):
            train_small_teacher(run, "--resume", str(run / "previous.pth"))
    assert (run / "last.pth").read_bytes() == before["previous.pth"]
    assert (run / "unused.pth").read_bytes() == before["last.pth"]
    assert_same_checkpoints(train_small_teacher(run, "--resume", "auto"), checkpoint.read(finished_run / "last.pth"))
    assert checkpoint.read(run / "previous.pth")["iteration"] == 2
    assert read_losses(run) == read_losses(finished_run)


def test_two_damaged_checkpoints_are_reported_with_advice(run):
    for name in ("last.pth", "previous.pth"):
        (run / name).write_bytes(b"x")
    with pytest.raises(UserError, match=r"last\.pth is no plain checkpoint.*previous\.pth is no plain checkpoint"):
        train_small_teacher(run, "--resume", "auto")
    (run / "previous.pth").unlink()
    with pytest.raises(UserError, match=r"--pretrained .*best\.pth starts a new run"):
        train_small_teacher(run, "--resume", "auto")


@pytest.mark.parametrize("iteration", [2, 3])
def test_a_validation_that_failed_is_done_on_resume(finished_run, tmp_path, monkeypatch, iteration):
    calls = []
    evaluate = trainer.evaluate

    def fail(*args, **kwargs):
        calls.append(1)
        if len(calls) == iteration - 1:
            raise UserError("b.png cannot be read")
        return evaluate(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "evaluate", fail)
        with pytest.raises(UserError, match=r"b\.png cannot be read"):
            train_small_teacher(tmp_path)
    assert checkpoint.read(tmp_path / "last.pth")["iteration"] == iteration
    assert_same_checkpoints(
        train_small_teacher(tmp_path, "--resume", "auto"), checkpoint.read(finished_run / "last.pth")
    )
    assert read_records(tmp_path, "val") == read_records(finished_run, "val")
    assert (tmp_path / "best.pth").exists()


def test_a_signal_interrupts_a_validation(finished_run, tmp_path, monkeypatch):
    read = SegmentationDataset.__getitem__

    def send(self, index):
        os.kill(os.getpid(), signal.SIGHUP)
        return read(self, index)

    with monkeypatch.context() as patch:
        patch.setattr(SegmentationDataset, "__getitem__", send)
        with pytest.raises(SystemExit) as stopped:
            train_small_teacher(tmp_path)
    assert stopped.value.code == STOPPED_STATUS
    assert not read_records(tmp_path, "val")
    assert_same_checkpoints(
        train_small_teacher(tmp_path, "--resume", "auto"), checkpoint.read(finished_run / "last.pth")
    )
    assert read_records(tmp_path, "val") == read_records(finished_run, "val")


def act_after_first_checkpoint(patch, act):
    """Make a run call ``act`` between two iterations, after its first checkpoint."""
    watch = FiniteWatch.watch

    def watch_and_act(self, iteration, terms):
        watch(self, iteration, terms)
        if iteration == 1:
            act()

    patch.setattr(FiniteWatch, "watch", watch_and_act)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # from TensorBoard's thread
def test_a_folder_removed_during_training_is_written_again(finished_run, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        act_after_first_checkpoint(patch, lambda: shutil.rmtree(folder))
        with pytest.raises(UserError, match=r"was emptied while its run went on.* last\.pth was written again"):
            train_small_teacher(folder)
    assert checkpoint.read(folder / "last.pth")["iteration"] == 2
    assert_same_checkpoints(train_small_teacher(folder, "--resume", "auto"), checkpoint.read(finished_run / "last.pth"))


def test_a_run_does_not_write_into_its_folder_after_another_run_took_it_over(finished_run, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    other_locks = []

    def take_over():
        shutil.rmtree(folder)
        other_locks.append(FolderLock(folder))
        (folder / "last.pth").write_bytes(b"another run's")

    with monkeypatch.context() as patch:
        act_after_first_checkpoint(patch, take_over)
        with pytest.raises(UserError, match="in use by another run"):
            train_small_teacher(folder)
    # TensorBoard opens its file by name at every write, so its file may be here as well
    assert {path.name for path in folder.iterdir() if "tfevents" not in path.name} == {".lock", "last.pth"}
    assert (folder / "last.pth").read_bytes() == b"another run's"


def test_a_lock_removed_during_training_is_taken_again(finished_run, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        act_after_first_checkpoint(patch, (tmp_path / ".lock").unlink)
        assert_same_checkpoints(train_small_teacher(tmp_path), checkpoint.read(finished_run / "last.pth"))
    assert (tmp_path / ".lock").exists()


def set_vote_of_other_rank(monkeypatch, vote):
    """Pretend that there is another rank, and that it gives this vote before each batch."""
    monkeypatch.setattr(lockstep, "all_reduce", lambda value, op: value.clamp(min=vote))


@pytest.mark.parametrize(("vote", "error"), [(2, Stopped), (3, UserError)])
def test_a_rank_that_stops_or_fails_ends_all_ranks(vote, error, monkeypatch):
    set_vote_of_other_rank(monkeypatch, vote)
    batches = Lockstep(iter([1, 2]))
    with pytest.raises(error):
        next(iter(batches))
    assert batches.all_ranks_stopped


def test_a_failure_between_steps_ends_all_ranks_before_the_next_batch():
    batches = Lockstep(iter([1, 2]))
    loop = iter(batches)
    assert next(loop) == 1
    batches.stop_all_ranks(OSError("the disk is full"))
    with pytest.raises(OSError, match="the disk is full"):
        next(loop)
    assert batches.all_ranks_stopped


@pytest.mark.parametrize("method", ["log_training", "write_record"])
def test_a_log_that_cannot_be_written_loses_no_work(method, tmp_path, monkeypatch):
    write = getattr(RunLogger, method)

    def fail(logger, what, *more, **options):
        is_training = method == "log_training" or what["event"] == "train"
        if is_training and (tmp_path / "last.pth").exists():
            raise BrokenPipeError(errno.EPIPE, "Broken pipe")
        return write(logger, what, *more, **options)

    monkeypatch.setattr(RunLogger, method, fail)
    with pytest.raises(BrokenPipeError):
        train_teacher.main([*TINY, "--max-iterations", "100", "--save-per-iters", "2", "--save-dir", str(tmp_path)])
    assert checkpoint.read(tmp_path / "last.pth")["iteration"] == 3


def test_a_rank_without_batches_waits_for_the_others(monkeypatch):
    set_vote_of_other_rank(monkeypatch, 1)
    batches = Lockstep(iter([7]))
    loop = iter(batches)
    assert next(loop) == 7
    set_vote_of_other_rank(monkeypatch, 0)
    assert list(loop) == []
    assert not batches.all_ranks_stopped


@pytest.mark.parametrize("where", ["weight", "statistics", "momentum"])
def test_a_state_that_is_not_finite_is_not_saved(finished_run, tmp_path, monkeypatch, where):
    states = []
    init = TrainingState.__init__

    def init_and_record(self, *arguments):
        states.append(self)
        init(self, *arguments)

    def spoil(self, iteration):
        state = states[0]
        tensors = {
            "weight": next(state.step.parameters()),
            "statistics": next(b for name, b in state.step.named_buffers() if "running_var" in name),
            "momentum": next(iter(state.optimizer.state.values()))["momentum_buffer"],
        }
        if iteration == 3:
            tensors[where].data[(0,) * tensors[where].ndim] = math.nan

    monkeypatch.setattr(TrainingState, "__init__", init_and_record)
    monkeypatch.setattr(trainer.RunLogger, "advance", spoil)
    with pytest.raises(UserError, match="not finite at iteration 3"):
        train_small_teacher(tmp_path)
    assert checkpoint.read(tmp_path / "last.pth")["iteration"] == 2


def test_a_checkpoint_with_weights_that_are_not_finite_is_refused(run):
    saved = checkpoint.read(run / "best.pth")
    saved["model"]["main.classifier.weight"][0, 0] = math.inf
    checkpoint.save(saved, run / "best.pth")
    with pytest.raises(UserError, match=r"not finite \(1 of \d+ tensors, first main.classifier.weight"):
        train_small_teacher(run.parent / "new", "--pretrained", f"{run}/best.pth")


WRONG_VALUES = {
    "iteration": ["3", -1, None, 2.5],
    "best_miou": ["high", [1]],
    "best_iteration": ["x", -3],
    "config": [None, 5, [1]],
    "model": [None, 3, {"a": 1}],
    "optimizer": [None, {}, {"state": 3, "param_groups": []}, "x"],
    "losses": [None, [1], {"kd.queue": 3}],
    "start": [None, 5],
    "inputs": [3],
    "frozen_norms": [3, [1], ["model.no_such_layer"]],
}


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in WRONG_VALUES.items() for value in values])
def test_a_field_of_a_wrong_type_is_treated_as_damage(run, key, value):
    checkpoint.save({**checkpoint.read(run / "last.pth"), key: value}, run / "last.pth")
    (run / "previous.pth").unlink()
    with pytest.raises(UserError, match=r"last\.pth: it (is damaged|was trained with other losses).*best\.pth starts"):
        train_small_teacher(run, "--resume", "auto")


def shorten_momentum(state):
    """Cut the first momentum buffer of the optimizer to one row."""
    first = next(iter(state["optimizer"]["state"].values()))
    first["momentum_buffer"] = first["momentum_buffer"][:1]


@pytest.mark.parametrize(
    "damage",
    [lambda s: s.update(start=5), lambda s: s["model"].popitem(), lambda s: s.pop("optimizer"), shorten_momentum],
)
def test_the_previous_checkpoint_replaces_one_that_cannot_be_restored(run, finished_run, damage, capsys):
    saved = checkpoint.read(run / "last.pth")
    damage(saved)
    checkpoint.save(saved, run / "last.pth")
    assert_same_checkpoints(train_small_teacher(run, "--resume", "auto"), checkpoint.read(finished_run / "last.pth"))
    assert f"continuing from {run / 'previous.pth'}" in capsys.readouterr().err


def test_other_settings_are_not_treated_as_damage(run):
    """previous.pth has the settings of this run. Still, the run must not silently fall back to it."""
    saved = checkpoint.read(run / "last.pth")
    checkpoint.save(saved | {"config": saved["config"] | {"lr": 0.5}}, run / "last.pth")
    with pytest.raises(UserError, match=r"other settings \(lr: 0\.5 -> 0\.01\)"):
        train_small_teacher(run, "--resume", "auto")


def test_changed_inputs_are_refused(finished_run, tmp_path, monkeypatch):
    from datasets import toy

    teacher = tmp_path / "teacher.pth"
    teacher.write_bytes((finished_run / "last.pth").read_bytes())
    flags = [*SHORT, "--teacher-pretrained", str(teacher), "--save-dir", str(tmp_path / "student")]
    train_student.main(flags)
    train_student.main([*flags, "--resume", "auto"])
    monkeypatch.setattr(toy, "IMAGES", {"train": 5, "val": 3})
    with pytest.raises(UserError, match=r"other inputs \(training: 6 images, \w+ -> 5 images"):
        train_student.main([*flags, "--resume", "auto"])
    monkeypatch.setattr(toy, "IMAGES", {"train": 6, "val": 2})
    with pytest.raises(UserError, match=r"other inputs \(validation: 3 images, \w+ -> 2 images"):
        train_student.main([*flags, "--resume", "auto"])
    monkeypatch.setattr(toy, "IMAGES", {"train": 6, "val": 3})
    with monkeypatch.context() as patch:
        patch.setitem(DATASETS, "toy", replace(toy.TOY, ids=IdMap.from_ids((1, 0, *range(2, 7)))))
        with pytest.raises(UserError, match=r"other inputs \(classes: 7, \w+ -> 7, \w+\)"):
            train_student.main([*flags, "--resume", "auto"])
    moved = tmp_path / "moved.pth"  # the same file may be at another path now
    moved.write_bytes(teacher.read_bytes())
    train_student.main([*flags, "--teacher-pretrained", str(moved), "--resume", "auto"])
    # other initial weights are another setting
    with pytest.raises(UserError, match=r"other settings \(pretrained: '' -> .*teacher.pth'\)"):
        train_student.main([*flags, "--pretrained", str(teacher), "--resume", "auto"])
    teacher.write_bytes((finished_run / "previous.pth").read_bytes())
    with pytest.raises(UserError, match=r"other inputs \(teacher_pretrained: \w+ -> \w+\)"):
        train_student.main([*flags, "--resume", "auto"])
    # a change of a shipped checkpoint, which is given by its name, is noticed as well
    teacher.rename(tmp_path / "street.safetensors")
    monkeypatch.setattr(reading, "SHIPPED", tmp_path)
    config = StudentConfig(teacher_pretrained="street", pretrained="none", pretrained_base="package")
    data = build_train_and_val("toy")
    before = describe_inputs(config, data)
    (tmp_path / "street.safetensors").write_bytes(b"another")
    assert before.keys() == {"teacher_pretrained", "training", "validation", "classes"}
    assert describe_inputs(config, data)["teacher_pretrained"] != before["teacher_pretrained"]
    teacher.write_bytes((finished_run / "previous.pth").read_bytes())
    saved = checkpoint.read(tmp_path / "student/last.pth")
    del saved["inputs"]  # as in an old checkpoint, from before inputs were recorded
    checkpoint.save(saved, tmp_path / "student/last.pth")
    train_student.main([*flags, "--resume", "auto"])


def test_inputs_are_described_the_same_from_every_working_folder(tmp_path, monkeypatch):
    trees.camvid(tmp_path / "street")
    for name in ("config.json", "model.safetensors"):  # a model of another library that no flag names
        (tmp_path / name).write_bytes(b"{}")
    described = []
    for folder, data in ((tmp_path, str(tmp_path / "street")), (tmp_path, "street/"), (tmp_path / "street", ".")):
        monkeypatch.chdir(folder)
        config = StudentConfig(dataset="camvid", data=data)
        described.append(describe_inputs(config, build_train_and_val("camvid", data)))
    assert described[0] == described[1] == described[2]
    assert described[0].keys() == {"training", "validation", "classes"}


@pytest.mark.parametrize("changed", ["config.json", "model.safetensors"])
def test_a_folder_of_another_library_is_described_by_both_of_its_files(tmp_path, changed):
    for name in ("config.json", "model.safetensors", "README.md"):
        (tmp_path / name).write_bytes(b"{}")
    config = StudentConfig(pretrained=str(tmp_path))
    data = build_train_and_val("toy")
    before = describe_inputs(config, data)["pretrained"]
    (tmp_path / "README.md").write_bytes(b"other words")
    assert describe_inputs(config, data)["pretrained"] == before
    (tmp_path / changed).write_bytes(b"{} ")
    assert describe_inputs(config, data)["pretrained"] != before


def test_a_rank_with_other_files_is_refused(monkeypatch):
    data = build_train_and_val("toy")
    config = StudentConfig()
    inputs = describe_inputs(config, data)
    assert agree_on_inputs(config, data, Runtime()) == inputs
    monkeypatch.setattr(Runtime, "broadcast", lambda self, value: inputs | {"training": "5 images, 1234"})
    with pytest.raises(UserError, match=r"rank 1 on .* other files than rank 0 \(training: 6 images, \w+, rank 0: 5"):
        agree_on_inputs(config, data, Runtime(rank=1, size=2))


def test_a_checkpoint_without_newer_entries_can_be_resumed(run, finished_run):
    saved = checkpoint.read(run / "previous.pth")
    (run / "previous.pth").unlink()
    for key in ("validated", "inputs", "world_size"):
        del saved[key]
    checkpoint.save({**saved, "best_miou": 0.0, "best_iteration": 2}, run / "last.pth")
    assert train_small_teacher(run, "--resume", "auto")["iteration"] == 3


def test_another_world_size_is_reported(run, capsys):
    checkpoint.save({**checkpoint.read(run / "last.pth"), "world_size": 2}, run / "last.pth")
    train_small_teacher(run, "--resume", "auto")
    assert "1 processes continue what 2 began" in capsys.readouterr().err


@pytest.mark.parametrize("line", [b"\xff\xfe\x00", b"12", b"[]", b'{"event": 3}', b"null"])
def test_a_damaged_log_does_not_end_a_run(run, finished_run, line):
    (run / "last.pth").write_bytes((run / "previous.pth").read_bytes())
    log = (run / "metrics.jsonl").read_bytes().split(b"\n")
    (run / "metrics.jsonl").write_bytes(b"\n".join([log[0], line, *log[1:]]))
    train_small_teacher(run, "--resume", "auto")
    assert read_losses(run) == read_losses(finished_run)


def test_links_in_a_shared_folder_are_not_followed(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    folder = tmp_path / "run"
    folder.mkdir()
    for name in (".last.pth.tmp", ".config.yaml.tmp", ".metrics.jsonl.tmp", ".previous.pth.tmp", "config.yaml"):
        (folder / name).symlink_to(victim)
    train_small_teacher(folder)
    assert victim.read_text() == "precious"
    (tmp_path / "other").mkdir()
    (tmp_path / "other/.lock").symlink_to(victim)
    with pytest.raises(UserError, match="cannot be written"):
        train_small_teacher(tmp_path / "other")
    assert victim.read_text() == "precious"


@pytest.mark.parametrize(("flag", "value"), [("--lr", "inf"), ("--lr", "nan"), ("--batch-size", "100000000")])
def test_impossible_values_are_refused(tmp_path, flag, value):
    with pytest.raises(UserError, match=flag):
        train_small_teacher(tmp_path, flag, value)


def test_a_batch_that_does_not_fit_is_evaluated_image_by_image():
    class SmallPredictor:
        max_images = 1

        def predict_classes(self, image, label, draws):
            if len(image) > self.max_images:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return image[:, 0] + draws[0]

    image = torch.arange(24.0).view(2, 3, 2, 2)
    classes = evaluator.predict_within_memory(SmallPredictor(), image, image[:, 0], [1, 2])
    assert torch.equal(classes, image[:, 0] + torch.tensor([1, 2]).view(2, 1, 1))
    SmallPredictor.max_images = 0
    with pytest.raises(UserError, match=r"for one image of 2x2: .*--window H W"):
        evaluator.predict_within_memory(SmallPredictor(), image, image[:, 0], [1, 2])


def test_a_closed_terminal_does_not_end_a_run(tmp_path, monkeypatch):
    """The ssh connection was closed, but SIGHUP has not arrived yet."""

    def fail_to_print(*args, **kwargs):
        raise OSError(errno.EIO, "Input/output error")

    logger = RunLogger(tmp_path, True, 0, 0, 3, {"card": {}})
    monkeypatch.setattr("builtins.print", fail_to_print)
    logger.log_training({"loss": 1.0}, {"images_per_second": 1.0}, None, 1)
    logger.close()
    assert read_losses(tmp_path) == [(1, 1.0)]


def test_a_killed_loader_worker_loses_no_work(tmp_path, start):
    flags = [*TINY, "--workers", "2", "--max-iterations", "100000", "--save-per-iters", "100000"]
    process = start("train_teacher.py", *flags, "--save-dir", tmp_path, stderr=subprocess.PIPE)
    while not (tmp_path / "metrics.jsonl").exists() or len(read_losses(tmp_path)) < 3:
        assert process.poll() is None
        time.sleep(0.05)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(children[0]), signal.SIGKILL)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert errors.decode().count("error: a loader process was killed") == 1
    assert "Traceback" not in errors.decode()
    assert checkpoint.read(tmp_path / "last.pth")["iteration"] >= 3


class BrokenBatch(Exception):
    """Raise a connection error when unpickled, as if the worker died while it sent this batch."""

    def __reduce__(self):
        return raise_connection_reset, ()


def raise_connection_reset():
    raise ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")


class DatasetWithBrokenBatch(torch.utils.data.Dataset):
    def __getitem__(self, index):
        if index == 3:
            return BrokenBatch()
        return torch.zeros(3, 8, 8), torch.zeros(8, 8)


def test_a_loader_worker_that_dies_while_sending_gives_the_same_message():
    batches = load_train_batches(DatasetWithBrokenBatch(), 0, 4, 1, 1, Runtime())
    assert len([next(batches) for _ in range(3)]) == 3
    with pytest.raises(RuntimeError) as raised:
        next(batches)
    assert str(explain_error(raised.value)).startswith("a loader process was killed")


def test_a_finite_check_before_the_first_iteration_names_the_gradient():
    with pytest.raises(UserError, match="gradient"):
        FiniteWatch(lambda what, iteration, terms: what).check([torch.tensor(math.nan)])


FAILING_SCRIPT = """
import os, sys
sys.path.insert(0, {root!r})
import torch, train_teacher
from utils.entry import run_main
forward, calls = train_teacher.TeacherStep.forward, []
def fail(self, *args):
    calls.append(1)
    if os.environ["RANK"] == "1" and len(calls) == 4:
        raise torch.OutOfMemoryError("CUDA out of memory.")
    return forward(self, *args)
train_teacher.TeacherStep.forward = fail
run_main(train_teacher.main)
"""


def test_a_rank_that_fails_in_a_step_ends_the_others(tmp_path, command):
    """Only the failed rank prints its error. The work since the last checkpoint is lost.

    The ranks cannot save, because the failed step has already changed running statistics and the queues of losses.
    """
    (tmp_path / "failing.py").write_text(FAILING_SCRIPT.format(root=str(ROOT)))
    flags = [*TINY, "--max-iterations", "1000", "--save-dir", tmp_path]
    failed = command(tmp_path / "failing.py", *flags, processes=2, check=False)
    assert failed.returncode
    assert re.findall("^error: .*", failed.stderr, re.MULTILINE) == [
        "error: CUDA out of memory. Try a smaller --batch-size or --amp bf16; in training a smaller --crop-size or "
        "--accumulate 2, too."
    ]
    assert checkpoint.read(tmp_path / "last.pth")["iteration"] == 2
    assert read_losses(tmp_path)[-1][0] == 3


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGUSR1, marks=pytest.mark.slow)])
def test_a_signal_to_the_launcher_saves_and_leaves_no_process_behind(tmp_path, number):
    flags = ["toy", "fcn", BACKBONE, *TINY[6:], "--max-iterations", "100000", "--log-iter", "1000"]
    line = ["bash", f"{ROOT}/scripts/train_teacher.sh", *flags, "--save-per-iters", "1000", "--save-dir", str(tmp_path)]
    path = f"{Path(sys.executable).parent}:{ENVIRONMENT['PATH']}"
    environment = {**ENVIRONMENT, "PATH": path, "NGPUS": "2"}
    process = subprocess.Popen(line, cwd=ROOT, env=environment, start_new_session=True)
    try:
        while not (tmp_path / "metrics.jsonl").exists() or not read_losses(tmp_path):
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(number)
        assert process.wait(timeout=60) == 3  # the launcher ends last, because SLURM kills processes that outlive it
        deadline = time.monotonic() + 15
        while list_processes(tmp_path) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not list_processes(tmp_path)
    finally:
        for pid in list_processes(tmp_path):
            os.kill(pid, signal.SIGKILL)
    assert checkpoint.read(tmp_path / "last.pth")["iteration"] >= 1
