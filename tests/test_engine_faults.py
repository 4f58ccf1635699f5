"""Regression tests of the engine. Each test fails on the code that still had the bug."""

import json
import math
import multiprocessing
import os
import subprocess
import sys

import pytest
import torch
from torch import nn

import eval as evaluation
import train_student
import train_teacher
from datasets import build_dataset
from engine import loader, trainer
from engine.runtime import Runtime
from engine.settings import TeacherConfig
from engine.step import Step
from engine.training_state import TrainingState
from models.checkpoints.card import Card
from tests import trees
from tests.conftest import ENVIRONMENT, ROOT, TINY
from tests.networks import write_checkpoint
from tests.test_engine import assert_equal, assert_same_checkpoints, crash_at, read_records, train
from utils import checkpoint
from utils.entry import run_main
from utils.errors import UserError

SHORT = ["--max-iterations", "4", "--save-per-iters", "1", "--skip-val"]


def make_iterations_overflow(patch, iterations, step=train_teacher.TeacherStep):
    """Make some iterations overflow: a running mean becomes NaN and the loss infinite. ``iterations`` counts from 0."""
    forward = step.forward
    calls = []

    def fail(self, *args):
        terms = forward(self, *args)
        if len(calls) in iterations:
            next(b for name, b in self.named_buffers() if "running_mean" in name).data.fill_(math.nan)
            terms["loss"] = terms["loss"] * math.inf
        calls.append(1)
        return terms

    patch.setattr(step, "forward", fail)


def test_a_step_that_overflows_in_fp16_is_skipped(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        make_iterations_overflow(patch, [1])
        skipped = train(train_teacher, tmp_path / "skipped", "--amp", "fp16", *SHORT, "--max-iterations", "2")
    before = checkpoint.read(tmp_path / "skipped/previous.pth")
    assert (before["iteration"], skipped["iteration"]) == (1, 2)
    assert_equal(before["model"], skipped["model"])
    assert skipped["scaler"]["scale"] == before["scaler"]["scale"] / 2
    assert read_records(tmp_path / "skipped", "train")[-1]["loss"] is None


def test_a_skipped_step_leaves_the_queues_as_they_were(tmp_path, monkeypatch):
    flags = ["--kd", "cirkd_pixel=1:size=9", "--teacher-pretrained", write_checkpoint(tmp_path / "teacher.pth")]
    flags += [*SHORT, "--amp", "fp16", "--max-iterations", "2"]
    make_iterations_overflow(monkeypatch, [1], train_student.StudentStep)
    skipped = train(train_student, tmp_path / "student", *flags)
    before = checkpoint.read(tmp_path / "student/previous.pth")
    assert before["losses"]["kd.losses.cirkd_pixel.pointer"].any()
    assert_equal(before["losses"], skipped["losses"])


@pytest.mark.slow
def test_many_steps_that_overflow_in_a_row_end_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "MAX_SKIPPED", 2)
    make_iterations_overflow(monkeypatch, [1, 2, 3])
    with pytest.raises(UserError, match=r"not finite 3 times in a row .*at iteration 4"):
        train(train_teacher, tmp_path, "--amp", "fp16", *SHORT)
    assert checkpoint.read(tmp_path / "last.pth")["iteration"] == 3


def test_norms_that_were_never_trained_are_not_frozen(tmp_path):
    train(train_student, tmp_path / "start", "--kd", "none", *SHORT)
    start = f"{tmp_path}/start/last.pth"
    flags = [*SHORT, "--freeze-bn", "--kd", "cirkd_pixel=1:size=9"]
    flags += ["--pretrained", start, "--teacher-pretrained", start]
    whole = train(train_student, tmp_path / "whole", *flags)
    assert whole["frozen_norms"]
    assert all(name.startswith("model.") for name in whole["frozen_norms"])
    statistics = {key: value for key, value in whole["model"].items() if "running" in key}
    assert_equal(statistics, {key: checkpoint.read(start)["model"][key] for key in statistics})
    (projector,) = (value for key, value in whole["losses"].items() if key.endswith("running_mean"))
    assert projector.any()
    with crash_at(3):
        train(train_student, tmp_path / "stopped", *flags)
    assert_same_checkpoints(whole, train(train_student, tmp_path / "stopped", *flags, "--resume", "auto"))


COUNTING_LOSS = """
import os, torch
from torch import nn
class Counting(nn.Module):
    def __init__(self, student_channels, teacher_channels, num_classes):
        super().__init__()
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("seen", torch.zeros(2, dtype=torch.bool))
    def forward(self, student, teacher, label):
        rank = int(os.environ["RANK"])
        self.calls = getattr(self, "calls", 0) + 1
        if self.calls == int(os.environ.get("FAIL_AT", 0)):
            raise RuntimeError("as if killed")
        self.mean += 0.1 * (student.logits.detach().mean() + rank)
        self.seen[rank] = True
        return (student.logits - teacher.logits).square().mean() + 0 * self.mean
"""


@pytest.fixture
def counting_flags(tmp_path, monkeypatch):
    """Return the flags of a student whose loss has buffers. The loss fails at the step in the environment's FAIL_AT."""
    (tmp_path / "my_counting.py").write_text(COUNTING_LOSS)
    monkeypatch.setitem(ENVIRONMENT, "PYTHONPATH", str(tmp_path))
    teacher = write_checkpoint(tmp_path / "teacher.pth")
    return [*TINY, *SHORT, "--kd", "my_counting:Counting=1", "--teacher-pretrained", teacher]


def read_rank_states(folder):
    """Read the states that tests/rank_states.py saved, one of each rank."""
    return [torch.load(folder / f"rank{rank}.pth", weights_only=True) for rank in range(2)]


@pytest.mark.slow
def test_buffers_of_a_custom_loss_are_the_same_on_every_rank(counting_flags, tmp_path, command):
    command("tests/rank_states.py", *counting_flags, "--save-dir", tmp_path / "run", processes=2)
    one, two = read_rank_states(tmp_path / "run")
    assert one["kd.losses.Counting.mean"] != 0
    assert_equal(one, two)


@pytest.mark.slow
def test_a_custom_loss_continues_on_every_rank(counting_flags, tmp_path, command, monkeypatch):
    command("tests/rank_states.py", *counting_flags, "--save-dir", tmp_path / "whole", processes=2)
    flags = [*counting_flags, "--save-dir", tmp_path / "halves"]
    with monkeypatch.context() as patch:
        patch.setitem(ENVIRONMENT, "FAIL_AT", "4")
        command("tests/rank_states.py", *flags, processes=2, check=False)
    assert checkpoint.read(tmp_path / "halves/last.pth")["iteration"] == 3
    command("tests/rank_states.py", *flags, "--resume", "auto", processes=2)
    assert_equal(read_rank_states(tmp_path / "whole"), read_rank_states(tmp_path / "halves"))


class StepWithNorms(Step):
    """Hold three BatchNorm layers: one with weights, one without, and one in a frozen network."""

    network_names = ("model", "teacher")

    def __init__(self):
        super().__init__()
        self.model = nn.Sequential(nn.BatchNorm2d(3), nn.BatchNorm2d(3, affine=False))
        self.teacher = nn.BatchNorm2d(3).requires_grad_(False)


def test_running_statistics_of_norms_without_weights_are_shared_and_checked():
    step = StepWithNorms()
    state = TrainingState(step, TeacherConfig(), Runtime())
    shared = {id(buffer) for buffer in state.list_buffers_changed_by_forward()}
    assert shared == {id(buffer) for buffer in step.model.buffers()}
    checked = {value.data_ptr() for value in state.list_tensors_to_check()}
    assert step.model[1].running_var.data_ptr() in checked
    assert step.teacher.running_var.data_ptr() not in checked


def test_buffers_are_broadcast_before_the_first_step(tmp_path, monkeypatch):
    events = []
    train_step = trainer.Trainer.train_step

    def record_and_step(*arguments):
        events.append("step")
        return train_step(*arguments)

    monkeypatch.setattr(trainer, "broadcast_values", lambda values: events.append(len(values)))
    monkeypatch.setattr(trainer.Trainer, "train_step", record_and_step)
    train(train_teacher, tmp_path, "--max-iterations", "1", "--skip-val")
    assert events[0] > 0
    assert events[1] == "step"


def test_a_network_is_evaluated_with_the_precision_and_layout_of_its_training():
    config = {"amp": "bf16", "tf32": False, "channels_last": False, "deterministic": True, "compile": True}
    card = Card({"num_classes": 7}, training={"config": config})
    settings = evaluation.take_precision_from_training(evaluation.EvalConfig(compile=False, amp="none"), card)
    values = (settings.amp, settings.compile, settings.tf32, settings.channels_last, settings.deterministic)
    assert values == ("none", False, False, False, True)
    unknown = evaluation.take_precision_from_training(evaluation.EvalConfig(), Card({"num_classes": 7}))
    assert (unknown.amp, unknown.tf32, unknown.compile) == ("none", None, None)
    damaged = Card({"num_classes": 7}, training={"config": {"amp": 5}})
    with pytest.raises(UserError, match=r"a\.pth: amp of its training: '5' .*choices: none, bf16, fp16"):
        evaluation.take_precision_from_training(evaluation.EvalConfig(pretrained="a.pth"), damaged)


def test_workers_share_the_image_cache_with_any_default_start_method(tmp_path):
    trees.camvid(tmp_path)
    dataset = build_dataset("camvid", str(tmp_path), "val", cache_gb=1)
    method = multiprocessing.get_start_method()
    multiprocessing.set_start_method("forkserver", force=True)
    try:
        images = [image for image, _, _ in loader.load_eval_batches(dataset, 1, Runtime())]
    finally:
        multiprocessing.set_start_method(method, force=True)
    assert len(images) == len(dataset)
    assert dataset.cache.filled.all()


class RecordingLock:
    """Take the place of a cache's lock, and record the cache's flags whenever it is acquired or released."""

    def __init__(self, cache):
        self.cache = cache
        self.recorded_flags = []

    def __enter__(self):
        self.recorded_flags.append(self.cache.filled.tolist())

    def __exit__(self, *failure):
        self.recorded_flags.append(self.cache.filled.tolist())


def test_flags_of_the_image_cache_are_read_and_written_under_its_lock(tmp_path):
    trees.camvid(tmp_path)
    dataset = build_dataset("camvid", str(tmp_path), "val", cache_gb=1)
    lock = RecordingLock(dataset.cache)
    dataset.cache.lock = lock
    dataset.read(0)
    before = [0] * len(dataset)
    after = [1, *before[1:]]
    lookup = [before, before]
    write = [before, after]
    assert lock.recorded_flags == [*lookup, *write]


def test_loader_workers_do_not_exceed_the_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(6))
    for ranks, workers in (("1", 4), ("2", 3), ("8", 1)):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", ranks)
        assert loader.count_default_workers() == workers


def test_the_best_checkpoint_is_written_before_the_preview(tmp_path, monkeypatch):
    def fail(*args):
        raise UserError("out of memory for one image")

    monkeypatch.setattr(trainer, "make_preview", fail)
    with pytest.raises(UserError, match="out of memory"):
        train(train_teacher, tmp_path, "--max-iterations", "2")
    best = checkpoint.read(tmp_path / "best.pth")
    assert best["iteration"] == 2
    assert json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])["event"] == "val_iou"


@pytest.mark.parametrize("shown", [False, True])
def test_the_traceback_of_a_known_error_can_be_shown(shown, monkeypatch, capsys):
    def main():
        raise UserError("a disk is full")

    monkeypatch.setenv("LAD_TRACEBACK", "1" if shown else "")
    with pytest.raises(SystemExit):
        run_main(main)
    printed = capsys.readouterr().err
    assert printed.endswith("error: a disk is full\n")
    assert ("Traceback" in printed) == shown


def test_the_scripts_import_no_optional_packages_at_the_start():
    code = "import sys, train_student, train_teacher, eval; print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    loaded = {name.partition(".")[0] for name in result.stdout.split()}
    assert {"torch", "models", "engine"} <= loaded
    assert not loaded & {"timm", "mmcv", "mmengine", "torchvision", "tensorboard", "segmentation_models_pytorch"}
