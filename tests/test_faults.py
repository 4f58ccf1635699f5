"""Nothing is lost: what happens to a run and its files when something goes wrong."""

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
from engine.run_folder import RunFolder
from engine.run_inputs import agree_on_inputs, describe_inputs
from engine.runtime import Runtime
from engine.settings import StudentConfig, TeacherConfig
from engine.training_state import TrainingState
from models.checkpoints import reading
from tests import trees
from tests.breaking.processes import members
from tests.conftest import BACKBONE, ENVIRONMENT, ROOT, TINY
from tests.test_engine import assert_same, losses, records
from utils import checkpoint
from utils.errors import UserError, explain_error

SHORT = [*TINY, "--max-iterations", "3", "--val-per-iters", "2", "--save-per-iters", "1"]


def teach(folder: Path, *flags: str) -> dict:
    train_teacher.main([*SHORT, "--save-dir", str(folder), *flags])
    return checkpoint.read(folder / "last.pth")


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("faults") / "run"
    teach(folder)
    return folder


@pytest.fixture
def run(finished, tmp_path):
    """A copy of a finished run: last.pth of iteration 3, previous.pth of iteration 2."""
    for name, data in content(finished).items():
        (tmp_path / "run").mkdir(exist_ok=True)
        (tmp_path / "run" / name).write_bytes(data)
    return tmp_path / "run"


def test_the_checkpoint_before_the_last_is_kept(finished):
    assert checkpoint.read(finished / "last.pth")["iteration"] == 3
    assert checkpoint.read(finished / "previous.pth")["iteration"] == 2


@pytest.mark.parametrize("kept", [["best.pth"], ["metrics.jsonl"], ["events"], ["best.pth", "metrics.jsonl"]])
@pytest.mark.parametrize("flags", [[], ["--resume", "auto"]])
def test_results_without_a_checkpoint_are_not_deleted(run, kept, flags):
    for path in run.iterdir():
        if not path.name.startswith(tuple(kept)):
            path.unlink()
    before = content(run)
    with pytest.raises(UserError, match=r"holds .* no last\.pth .*--overwrite starts anew"):
        teach(run, *flags)
    assert content(run) == before


def test_a_run_does_not_delete_what_it_starts_from(run):
    before = content(run)
    with pytest.raises(UserError, match=r"--pretrained .*last\.pth lies in --save-dir and would be deleted: give"):
        teach(run, "--pretrained", str(run / "last.pth"), "--overwrite")
    assert content(run) == before


def test_overwrite_leaves_nothing_of_the_run_before(run):
    for name in ("damaged.pth", "unused.pth"):
        (run / name).write_bytes(b"of the run before")
    teach(run, "--overwrite", "--max-iterations", "1")
    assert not {"damaged.pth", "unused.pth", "previous.pth"} & set(content(run))


def test_a_job_that_is_started_again_goes_on(run, monkeypatch, capsys):
    """With its flags, of which one said to begin anew."""
    before = content(run)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    teach(run, "--overwrite", "--resume", "auto")
    assert "is finished: 3 iterations" in capsys.readouterr().out
    assert content(run) == before


def test_checkpoints_alone_are_not_deleted(run):
    for path in [path for path in run.iterdir() if path.suffix != ".pth" or path.name == "best.pth"]:
        path.unlink()
    before = content(run)
    with pytest.raises(UserError, match="holds a run: --resume auto continues it"):
        teach(run)
    assert content(run) == before


def test_a_run_killed_before_its_first_checkpoint_is_done_again(run, finished):
    lines = (run / "metrics.jsonl").read_text().splitlines()
    for path in run.iterdir():
        path.unlink()
    (run / "metrics.jsonl").write_text("\n".join(line for line in lines if '"val' not in line)[:-5])
    assert_same(teach(run, "--resume", "auto"), checkpoint.read(finished / "last.pth"))
    assert losses(run) == losses(finished)


@pytest.mark.parametrize("damage", [lambda data: b"", lambda data: data[: len(data) // 2], lambda data: None])
def test_the_previous_checkpoint_takes_a_damaged_ones_place(run, finished, damage, capsys):
    data = damage((run / "last.pth").read_bytes())
    (run / "last.pth").unlink() if data is None else (run / "last.pth").write_bytes(data)
    assert_same(teach(run, "--resume", "auto"), checkpoint.read(finished / "last.pth"))
    assert "previous.pth" in capsys.readouterr().err
    assert checkpoint.read(run / "previous.pth")["iteration"] == 2
    assert data is None or (run / "damaged.pth").read_bytes() == data
    assert losses(run) == losses(finished)


def test_a_checkpoint_is_not_damaged_because_it_does_not_fit_in_memory(run, monkeypatch):
    def exhaust(self, saved):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(TrainingState, "_restore_optimizer", exhaust)
    with pytest.raises(torch.OutOfMemoryError):
        teach(run, "--resume", "auto")
    assert (run / "last.pth").exists()
    assert not (run / "damaged.pth").exists()


def test_a_run_goes_on_in_another_folder_with_all_that_belongs_to_it(finished, run, tmp_path):
    other = tmp_path / "other"
    teach(other, "--seed", "1")
    assert_same(
        teach(other, "--resume", str(run / "previous.pth"), "--overwrite"), checkpoint.read(finished / "last.pth")
    )
    assert losses(other) == losses(finished)
    assert [line["config"]["seed"] for line in records(other, "start")] == [0, 0]
    before = content(run)
    assert_same(teach(tmp_path / "copy", "--resume", str(run)), checkpoint.read(finished / "last.pth"))
    assert all(
        (tmp_path / "copy" / name).read_bytes() == before[name] for name in ("best.pth", "last.pth", "metrics.jsonl")
    )
    (other / "previous.pth").write_bytes(b"of another run")
    RunFolder(other, Runtime(), {}, run / "previous.pth").prepare_for_writing(TeacherConfig())
    assert content(run) == before
    assert content(other).keys() == {"best.pth", "last.pth", "metrics.jsonl", "config.yaml"}
    assert (other / "best.pth").read_bytes() == before["best.pth"]
    assert_same(teach(other, "--resume", "auto"), checkpoint.read(finished / "last.pth"))  # killed at its very start


@pytest.mark.parametrize("is_damaged", [False, True])
def test_a_run_that_is_killed_after_a_step_back_goes_on_from_there(run, finished, is_damaged, monkeypatch):
    """``--resume previous.pth`` makes it the last one, so that no other last.pth is continued from or kept."""

    def fail(*args):
        raise UserError("as if it were killed")

    if is_damaged:
        (run / "last.pth").write_bytes(b"x")
    before = content(run)
    with monkeypatch.context() as patch:
        patch.setattr(trainer.Trainer, "train_step", fail)
        with pytest.raises(UserError, match="as if it were killed"):
            teach(run, "--resume", str(run / "previous.pth"))
    assert (run / "last.pth").read_bytes() == before["previous.pth"]
    assert (run / "unused.pth").read_bytes() == before["last.pth"]
    assert_same(teach(run, "--resume", "auto"), checkpoint.read(finished / "last.pth"))
    assert checkpoint.read(run / "previous.pth")["iteration"] == 2
    assert losses(run) == losses(finished)


def test_two_damaged_checkpoints_leave_advice(run):
    for name in ("last.pth", "previous.pth"):
        (run / name).write_bytes(b"x")
    with pytest.raises(UserError, match=r"last\.pth is no plain checkpoint.*previous\.pth is no plain checkpoint"):
        teach(run, "--resume", "auto")
    (run / "previous.pth").unlink()
    with pytest.raises(UserError, match=r"--pretrained .*best\.pth starts a new run"):
        teach(run, "--resume", "auto")


@pytest.mark.parametrize("at", [2, 3])
def test_a_validation_that_failed_is_done_on_resume(finished, tmp_path, monkeypatch, at):
    calls, evaluate = [], trainer.evaluate

    def fail(*args, **kwargs):
        calls.append(1)
        if len(calls) == at - 1:
            raise UserError("b.png cannot be read")
        return evaluate(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "evaluate", fail)
        with pytest.raises(UserError, match=r"b\.png cannot be read"):
            teach(tmp_path)
    assert checkpoint.read(tmp_path / "last.pth")["iteration"] == at
    assert_same(teach(tmp_path, "--resume", "auto"), checkpoint.read(finished / "last.pth"))
    assert records(tmp_path, "val") == records(finished, "val")
    assert (tmp_path / "best.pth").exists()


def test_a_signal_leaves_a_validation(finished, tmp_path, monkeypatch):
    def send(self, index):
        os.kill(os.getpid(), signal.SIGHUP)
        return read(self, index)

    read = SegmentationDataset.__getitem__
    with monkeypatch.context() as patch:
        patch.setattr(SegmentationDataset, "__getitem__", send)
        with pytest.raises(SystemExit) as stopped:
            teach(tmp_path)
    assert stopped.value.code == STOPPED_STATUS
    assert not records(tmp_path, "val")
    assert_same(teach(tmp_path, "--resume", "auto"), checkpoint.read(finished / "last.pth"))
    assert records(tmp_path, "val") == records(finished, "val")


def during(patch, act):
    """``act`` between two iterations, after the first checkpoint."""

    def late(self, iteration, terms):
        watch(self, iteration, terms)
        if iteration == 1:
            act()

    watch = FiniteWatch.watch
    patch.setattr(FiniteWatch, "watch", late)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # of TensorBoard's thread
def test_a_folder_that_is_removed_meanwhile_costs_no_weights(finished, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        during(patch, lambda: shutil.rmtree(folder))
        with pytest.raises(UserError, match=r"was emptied while its run went on.* last\.pth was written again"):
            teach(folder)
    assert checkpoint.read(folder / "last.pth")["iteration"] == 2
    assert_same(teach(folder, "--resume", "auto"), checkpoint.read(finished / "last.pth"))


def test_a_run_does_not_write_into_the_folder_of_one_that_was_begun_in_its_place(finished, tmp_path, monkeypatch):
    folder, other = tmp_path / "run", []

    def replace():
        shutil.rmtree(folder)
        other.append(FolderLock(folder))
        (folder / "last.pth").write_bytes(b"another run's")

    with monkeypatch.context() as patch:
        during(patch, replace)
        with pytest.raises(UserError, match="in use by another run"):
            teach(folder)
    # TensorBoard opens its file by name for each write
    assert {path.name for path in folder.iterdir() if "tfevents" not in path.name} == {".lock", "last.pth"}
    assert (folder / "last.pth").read_bytes() == b"another run's"


def test_a_lock_that_is_removed_meanwhile_is_taken_again(finished, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        during(patch, (tmp_path / ".lock").unlink)
        assert_same(teach(tmp_path), checkpoint.read(finished / "last.pth"))
    assert (tmp_path / ".lock").exists()


def neighbour_says(monkeypatch, other):
    monkeypatch.setattr(lockstep, "all_reduce", lambda value, op: value.clamp(min=other))


@pytest.mark.parametrize(("other", "kind"), [(2, Stopped), (3, UserError)])
def test_what_happens_to_one_process_ends_all(other, kind, monkeypatch):
    neighbour_says(monkeypatch, other)
    batches = Lockstep(iter([1, 2]))
    with pytest.raises(kind):
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
def test_a_log_that_cannot_be_written_costs_no_work(method, tmp_path, monkeypatch):
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


def test_a_process_without_batches_waits_for_the_others(monkeypatch):
    neighbour_says(monkeypatch, 1)
    batches = Lockstep(iter([7]))
    seen = iter(batches)
    assert next(seen) == 7
    neighbour_says(monkeypatch, 0)
    assert list(seen) == []
    assert not batches.all_ranks_stopped


@pytest.mark.parametrize("where", ["weight", "statistics", "momentum"])
def test_what_is_not_finite_is_not_saved(finished, tmp_path, monkeypatch, where):
    def spoil(self, iteration):
        state = found[0]
        tensors = {
            "weight": next(state.step.parameters()),
            "statistics": next(b for name, b in state.step.named_buffers() if "running_var" in name),
            "momentum": next(iter(state.optimizer.state.values()))["momentum_buffer"],
        }
        if iteration == 3:
            tensors[where].data[(0,) * tensors[where].ndim] = math.nan

    found, made = [], TrainingState.__init__
    monkeypatch.setattr(TrainingState, "__init__", lambda self, *a: (found.append(self), made(self, *a))[1])
    monkeypatch.setattr(trainer.RunLogger, "advance", spoil)
    with pytest.raises(UserError, match="not finite at iteration 3"):
        teach(tmp_path)
    assert checkpoint.read(tmp_path / "last.pth")["iteration"] == 2


def test_weights_that_are_not_finite_are_no_network(run):
    saved = checkpoint.read(run / "best.pth")
    saved["model"]["main.classifier.weight"][0, 0] = math.inf
    checkpoint.save(saved, run / "best.pth")
    with pytest.raises(UserError, match=r"not finite \(1 of \d+ tensors, first main.classifier.weight"):
        teach(run.parent / "new", "--pretrained", f"{run}/best.pth")


CHANGES = {
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


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in CHANGES.items() for value in values])
def test_fields_of_a_wrong_type_are_damage(run, key, value):
    checkpoint.save({**checkpoint.read(run / "last.pth"), key: value}, run / "last.pth")
    (run / "previous.pth").unlink()
    with pytest.raises(UserError, match=r"last\.pth: it (is damaged|was trained with other losses).*best\.pth starts"):
        teach(run, "--resume", "auto")


def shorter(state):
    first = next(iter(state["optimizer"]["state"].values()))
    first["momentum_buffer"] = first["momentum_buffer"][:1]


@pytest.mark.parametrize(
    "damage", [lambda s: s.update(start=5), lambda s: s["model"].popitem(), lambda s: s.pop("optimizer"), shorter]
)
def test_the_previous_checkpoint_takes_the_place_of_one_that_cannot_be_restored(run, finished, damage, capsys):
    saved = checkpoint.read(run / "last.pth")
    damage(saved)
    checkpoint.save(saved, run / "last.pth")
    assert_same(teach(run, "--resume", "auto"), checkpoint.read(finished / "last.pth"))
    assert f"continuing from {run / 'previous.pth'}" in capsys.readouterr().err


def test_other_settings_are_no_damage(run):
    """The checkpoint before is of the run that was asked for, and yet not what it should continue from."""
    saved = checkpoint.read(run / "last.pth")
    checkpoint.save(saved | {"config": saved["config"] | {"lr": 0.5}}, run / "last.pth")
    with pytest.raises(UserError, match=r"other settings \(lr: 0\.5 -> 0\.01\)"):
        teach(run, "--resume", "auto")


def test_changed_inputs_are_refused(finished, tmp_path, monkeypatch):
    from datasets import toy

    teacher = tmp_path / "teacher.pth"
    teacher.write_bytes((finished / "last.pth").read_bytes())
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
    moved = tmp_path / "moved.pth"  # the same file may lie elsewhere now
    moved.write_bytes(teacher.read_bytes())
    train_student.main([*flags, "--teacher-pretrained", str(moved), "--resume", "auto"])
    with pytest.raises(UserError, match=r"other settings \(pretrained: '' -> .*teacher.pth'\)"):  # another start
        train_student.main([*flags, "--pretrained", str(teacher), "--resume", "auto"])
    teacher.write_bytes((finished / "previous.pth").read_bytes())
    with pytest.raises(UserError, match=r"other inputs \(teacher_pretrained: \w+ -> \w+\)"):
        train_student.main([*flags, "--resume", "auto"])
    teacher.rename(tmp_path / "street.safetensors")  # any other file: known by its name, it is noticed as well
    monkeypatch.setattr(reading, "SHIPPED", tmp_path)
    config = StudentConfig(teacher_pretrained="street", pretrained="none", pretrained_base="package")
    data = build_train_and_val("toy")
    before = describe_inputs(config, data)
    (tmp_path / "street.safetensors").write_bytes(b"another")
    assert before.keys() == {"teacher_pretrained", "training", "validation", "classes"}
    assert describe_inputs(config, data)["teacher_pretrained"] != before["teacher_pretrained"]
    teacher.write_bytes((finished / "previous.pth").read_bytes())
    saved = checkpoint.read(tmp_path / "student/last.pth")
    del saved["inputs"]  # a file from before inputs were recorded
    checkpoint.save(saved, tmp_path / "student/last.pth")
    train_student.main([*flags, "--resume", "auto"])


def test_the_images_are_the_same_from_whatever_folder_they_are_named(tmp_path, monkeypatch):
    trees.camvid(tmp_path / "street")
    described = []
    for folder, data in ((tmp_path, str(tmp_path / "street")), (tmp_path, "street/"), (tmp_path / "street", ".")):
        monkeypatch.chdir(folder)
        config = StudentConfig(dataset="camvid", data=data)
        described.append(describe_inputs(config, build_train_and_val("camvid", data)))
    assert described[0] == described[1] == described[2]


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


def test_a_checkpoint_without_the_younger_entries_continues(run, finished):
    saved = checkpoint.read(run / "previous.pth")
    (run / "previous.pth").unlink()
    for key in ("validated", "inputs", "world_size"):
        del saved[key]
    checkpoint.save({**saved, "best_miou": 0.0, "best_iteration": 2}, run / "last.pth")
    assert teach(run, "--resume", "auto")["iteration"] == 3


def test_another_number_of_processes_is_said(run, capsys):
    checkpoint.save({**checkpoint.read(run / "last.pth"), "world_size": 2}, run / "last.pth")
    teach(run, "--resume", "auto")
    assert "1 processes continue what 2 began" in capsys.readouterr().err


@pytest.mark.parametrize("line", [b"\xff\xfe\x00", b"12", b"[]", b'{"event": 3}', b"null"])
def test_a_damaged_log_does_not_end_a_run(run, finished, line):
    (run / "last.pth").write_bytes((run / "previous.pth").read_bytes())
    log = (run / "metrics.jsonl").read_bytes().split(b"\n")
    (run / "metrics.jsonl").write_bytes(b"\n".join([log[0], line, *log[1:]]))
    teach(run, "--resume", "auto")
    assert losses(run) == losses(finished)


def test_links_in_a_shared_folder_are_not_followed(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    folder = tmp_path / "run"
    folder.mkdir()
    for name in (".last.pth.tmp", ".config.yaml.tmp", ".metrics.jsonl.tmp", ".previous.pth.tmp", "config.yaml"):
        (folder / name).symlink_to(victim)
    teach(folder)
    assert victim.read_text() == "precious"
    (tmp_path / "other").mkdir()
    (tmp_path / "other/.lock").symlink_to(victim)
    with pytest.raises(UserError, match="cannot be written"):
        teach(tmp_path / "other")
    assert victim.read_text() == "precious"


@pytest.mark.parametrize(("flag", "value"), [("--lr", "inf"), ("--lr", "nan"), ("--batch-size", "100000000")])
def test_values_that_cannot_be_meant(tmp_path, flag, value):
    with pytest.raises(UserError, match=flag):
        teach(tmp_path, flag, value)


def test_a_batch_that_does_not_fit_is_evaluated_image_by_image():
    class Small:
        holds = 1

        def predict_classes(self, image, label, draws):
            if len(image) > self.holds:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return image[:, 0] + draws[0]

    image = torch.arange(24.0).view(2, 3, 2, 2)
    found = evaluator.predict_within_memory(Small(), image, image[:, 0], [1, 2])
    assert torch.equal(found, image[:, 0] + torch.tensor([1, 2]).view(2, 1, 1))
    Small.holds = 0
    with pytest.raises(UserError, match=r"for one image of 2x2: .*--window H W"):
        evaluator.predict_within_memory(Small(), image, image[:, 0], [1, 2])


def test_a_terminal_that_is_gone_does_not_end_a_run(tmp_path, monkeypatch):
    """ssh was closed, and SIGHUP is on its way."""

    def gone(*args, **kwargs):
        raise OSError(errno.EIO, "Input/output error")

    logger = RunLogger(tmp_path, True, 0, 0, 3, {"card": {}})
    monkeypatch.setattr("builtins.print", gone)
    logger.log_training({"loss": 1.0}, {"images_per_second": 1.0}, None, 1)
    logger.close()
    assert losses(tmp_path) == [(1, 1.0)]


def test_a_killed_loader_process_costs_nothing(tmp_path, start):
    flags = [*TINY, "--workers", "2", "--max-iterations", "100000", "--save-per-iters", "100000"]
    process = start("train_teacher.py", *flags, "--save-dir", tmp_path, stderr=subprocess.PIPE)
    while not (tmp_path / "metrics.jsonl").exists() or len(losses(tmp_path)) < 3:
        assert process.poll() is None
        time.sleep(0.05)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(children[0]), signal.SIGKILL)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert errors.decode().count("error: a loader process was killed") == 1
    assert "Traceback" not in errors.decode()
    assert checkpoint.read(tmp_path / "last.pth")["iteration"] >= 3


class Reset(Exception):
    """A batch whose worker dies while it sends it."""

    def __reduce__(self):
        return _reset, ()


def _reset():
    raise ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")


class Resetting(torch.utils.data.Dataset):
    def __getitem__(self, index):
        return Reset() if index == 3 else (torch.zeros(3, 8, 8), torch.zeros(8, 8))


def test_a_loader_process_that_dies_while_it_sends_has_the_same_message():
    batches = load_train_batches(Resetting(), 0, 4, 1, 1, Runtime())
    assert len([next(batches) for _ in range(3)]) == 3
    with pytest.raises(RuntimeError) as raised:
        next(batches)
    assert str(explain_error(raised.value)).startswith("a loader process was killed")


def test_a_watch_before_the_first_iteration_has_a_message():
    with pytest.raises(UserError, match="gradient"):
        FiniteWatch(lambda what, iteration, terms: what).check([torch.tensor(math.nan)])


FAILING = """
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


def test_a_process_that_fails_in_a_step_ends_the_others(tmp_path, command):
    """With its own message alone. What is lost is the work since the last checkpoint: the statistics of BatchNorm and
    what losses remember have moved with the failed step already."""
    (tmp_path / "failing.py").write_text(FAILING.format(root=str(ROOT)))
    flags = [*TINY, "--max-iterations", "1000", "--save-dir", tmp_path]
    failed = command(tmp_path / "failing.py", *flags, processes=2, check=False)
    assert failed.returncode
    assert re.findall("^error: .*", failed.stderr, re.MULTILINE) == [
        "error: CUDA out of memory. Try a smaller --batch-size or --crop-size, --accumulate 2, or --amp bf16."
    ]
    assert checkpoint.read(tmp_path / "last.pth")["iteration"] == 2
    assert losses(tmp_path)[-1][0] == 3


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGUSR1, marks=pytest.mark.slow)])
def test_a_signal_to_the_launcher_saves_in_every_process(tmp_path, number):
    """And leaves no process behind."""
    flags = ["toy", "fcn", BACKBONE, *TINY[6:], "--max-iterations", "100000", "--log-iter", "1000"]
    line = ["bash", f"{ROOT}/scripts/train_teacher.sh", *flags, "--save-per-iters", "1000", "--save-dir", str(tmp_path)]
    path = f"{Path(sys.executable).parent}:{ENVIRONMENT['PATH']}"
    environment = {**ENVIRONMENT, "PATH": path, "NGPUS": "2"}
    process = subprocess.Popen(line, cwd=ROOT, env=environment, start_new_session=True)
    try:
        while not (tmp_path / "metrics.jsonl").exists() or not losses(tmp_path):
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(number)
        assert process.wait(timeout=60) == 3  # after the others: SLURM kills what is left behind
        deadline = time.monotonic() + 15
        while members(tmp_path) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not members(tmp_path)
    finally:
        for pid in members(tmp_path):
            os.kill(pid, signal.SIGKILL)
    assert checkpoint.read(tmp_path / "last.pth")["iteration"] >= 1
