"""Test the training loop: a run is repeatable, can be resumed at any moment, and loses no checkpoint to bad input."""

import json
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

import eval as evaluation
import train_student
import train_teacher
from datasets.base import TrainStream
from engine import trainer
from engine.lockstep import STOPPED_STATUS
from engine.run_folder import find_resume_source, open_run_folder
from engine.runtime import Runtime
from engine.settings import TeacherConfig
from engine.step import Step
from engine.training_state import TrainingState
from tests.conftest import BACKBONE, TINY, WIDE_BACKBONE
from utils import checkpoint
from utils.errors import UserError

STUDENT = ["--backbone", WIDE_BACKBONE, "--kd", "cwd=3,kd=1,dist=1"]


def train(script, folder: Path, *flags: str) -> dict:
    """Train with small settings and return the content of last.pth."""
    script.main([*TINY, "--save-dir", str(folder), *flags])
    return checkpoint.read(folder / "last.pth")


def read_records(folder: Path, event: str) -> list[dict]:
    """Read all records of one kind of event from metrics.jsonl."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["event"] == event]


def read_losses(folder: Path) -> list[tuple[int, float]]:
    """Read the iteration and the loss of every training record."""
    return [(line["iteration"], line["loss"]) for line in read_records(folder, "train")]


def assert_equal(a: Any, b: Any, where: str = "") -> None:
    """Assert that all tensors in two nested dicts or lists are equal to the last bit."""
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    elif isinstance(a, (dict, list, tuple)):
        assert len(a) == len(b), where
        for key in a if isinstance(a, dict) else range(len(a)):
            assert_equal(a[key], b[key], f"{where}/{key}")
    else:
        assert a == b, where


def assert_same_checkpoints(a: dict, b: dict) -> None:
    """Assert that two checkpoints have the same weights, optimizer state and progress."""
    for key in ("model", "optimizer", "iteration", "best_miou", "best_iteration"):
        assert_equal(a[key], b[key], key)


@contextmanager
def crash_at(last: int) -> Iterator[None]:
    """Make the training inside this context die at the iteration ``last`` without saving."""

    class Crash(BaseException):
        pass

    def crash(self, iteration):
        if iteration == last:
            raise Crash

    with pytest.raises(Crash), pytest.MonkeyPatch.context() as patch:  # noqa: PT012  the training is inside
        patch.setattr(trainer.RunLogger, "advance", crash)
        yield


@pytest.fixture(scope="module")
def finished_runs(tmp_path_factory):
    """Train a teacher and its student without interruption. Return the folder and both last checkpoints."""
    folder = tmp_path_factory.mktemp("finished")
    teacher = train(train_teacher, folder / "teacher", "--val-per-iters", "2")
    flags = ["--teacher-pretrained", str(folder / "teacher/last.pth"), *STUDENT]
    student = train(train_student, folder / "student", *flags)
    return folder, teacher, student


def test_the_same_seed_gives_the_same_bits(finished_runs, tmp_path):
    folder, teacher, _ = finished_runs
    assert_same_checkpoints(teacher, train(train_teacher, tmp_path, "--val-per-iters", "2", "--workers", "2"))
    assert read_losses(folder / "teacher") == read_losses(tmp_path)
    other = train(train_teacher, tmp_path, "--val-per-iters", "2", "--seed", "1", "--overwrite")
    assert not torch.equal(teacher["model"]["main.classifier.weight"], other["model"]["main.classifier.weight"])


def test_a_run_writes_checkpoints_settings_and_records(finished_runs):
    folder, teacher, student = finished_runs
    assert {path.name for path in (folder / "teacher").iterdir()} >= {"last.pth", "best.pth", "config.yaml"}
    (start,) = read_records(folder / "teacher", "start")
    assert {"torch", "timm", "device", "git", "config", "world_size"} <= start.keys()
    assert [line["iteration"] for line in read_records(folder / "teacher", "val")] == [2, 4, 6]
    train_line = read_records(folder / "student", "train")[0]
    assert {"loss", "ce", "aux", "cwd", "kd", "dist", "lr", "images_per_second"} <= train_line.keys()
    assert not any(key.startswith("teacher") for key in student["model"])
    assert start["card"]["start"].startswith("random weights")
    assert teacher["arch"]["in_channels"] == 4
    assert student["arch"]["in_channels"] == 3
    best = checkpoint.read(folder / "teacher/best.pth")
    assert best["iteration"] == best["best_iteration"] == teacher["best_iteration"]
    assert "optimizer" not in best


@pytest.mark.parametrize("role", ["teacher", "student"])
def test_a_stopped_run_continues_to_the_same_bits(finished_runs, tmp_path, role):
    folder, teacher, student = finished_runs
    if role == "teacher":
        script = train_teacher
        expected = teacher
        flags = ["--val-per-iters", "2"]
    else:
        script = train_student
        expected = student
        flags = ["--teacher-pretrained", f"{folder}/teacher/last.pth", *STUDENT]
    with crash_at(5):  # one iteration after a checkpoint
        train(script, tmp_path, *flags)
    assert checkpoint.read(tmp_path / "last.pth")["iteration"] == 4
    assert_same_checkpoints(expected, train(script, tmp_path, *flags, "--resume", "auto"))
    assert read_losses(tmp_path) == read_losses(folder / role)
    assert_same_checkpoints(expected, train(script, tmp_path, *flags, "--resume", "auto"))  # finished: nothing happens


def test_a_killed_run_continues_to_the_same_bits(finished_runs, tmp_path, start):
    """Kill a separate training process as soon as it has saved. tests/breaking kills runs at other moments."""
    folder, teacher, _ = finished_runs
    process = start("train_teacher.py", *TINY, "--val-per-iters", "2", "--save-dir", tmp_path)
    while not (tmp_path / "last.pth").exists() and process.poll() is None:
        time.sleep(0.005)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert_same_checkpoints(teacher, train(train_teacher, tmp_path, "--val-per-iters", "2", "--resume", "auto"))
    assert read_losses(tmp_path) == read_losses(folder / "teacher")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_saves_before_it_stops(finished_runs, tmp_path, monkeypatch, number):
    _, teacher, _ = finished_runs

    def send(self, iteration):
        if iteration == 3:
            os.kill(os.getpid(), number)

    with monkeypatch.context() as patch:
        patch.setattr(trainer.RunLogger, "advance", send)
        with pytest.raises(SystemExit) as stopped:
            train(train_teacher, tmp_path, "--val-per-iters", "2")
    assert stopped.value.code == STOPPED_STATUS
    assert checkpoint.read(tmp_path / "last.pth")["iteration"] == 3
    assert_same_checkpoints(teacher, train(train_teacher, tmp_path, "--val-per-iters", "2", "--resume", "auto"))


def test_a_signal_to_the_whole_job_saves_too(tmp_path, start):
    """A scheduler sends the signal to every process. The loader workers ignore it, and the main process saves."""
    flags = [*TINY, "--workers", "2", "--max-iterations", "1000", "--save-dir", tmp_path]
    process = start("train_teacher.py", *flags)
    while not (tmp_path / "last.pth").exists() and process.poll() is None:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGTERM)
    assert process.wait() == STOPPED_STATUS
    assert checkpoint.read(tmp_path / "last.pth")["iteration"] == read_losses(tmp_path)[-1][0]


def test_a_loss_that_is_not_finite_names_the_images(tmp_path):
    with pytest.raises(UserError, match=r"not finite at iteration \d+ .*images: toy/train/000\d\.png, toy/train"):
        train(train_teacher, tmp_path, "--lr", "1e30", "--save-per-iters", "1")
    saved = checkpoint.read(tmp_path / "last.pth")
    assert saved["iteration"] >= 1


@pytest.mark.parametrize("workers", ["0", "2"])
def test_an_unreadable_image_does_not_lose_the_work_so_far(finished_runs, tmp_path, monkeypatch, workers):
    _, teacher, _ = finished_runs
    flags = ["--val-per-iters", "2", "--workers", workers]
    read = TrainStream.__getitem__

    def fail(stream, position):
        if position == 21:
            return UserError("a.png cannot be read")
        return read(stream, position)

    with monkeypatch.context() as patch:
        patch.setattr(TrainStream, "__getitem__", fail)
        with pytest.raises(UserError, match=r"a\.png cannot be read"):
            train(train_teacher, tmp_path, *flags)
    assert checkpoint.read(tmp_path / "last.pth")["iteration"] == 5
    assert_same_checkpoints(teacher, train(train_teacher, tmp_path, *flags, "--resume", "auto"))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((), "holds a run: --resume auto continues it, --overwrite starts anew"),
        (("--resume", "nowhere.pth"), "--resume nowhere.pth: no such file"),
        (("--resume", "auto", "--lr", "0.5"), r"other settings \(lr: 0.01 -> 0.5\)"),
        (("--resume", "auto", "--backbone", "resnet18"), f"backbone: '{BACKBONE}' -> 'resnet18'"),
        (("--resume", "auto", "--batch-size", "8"), "batch_size: 4 -> 8"),
        (("--resume", "auto", "--max-iterations", "9"), r"max_iterations: 6 -> 9\).*--pretrained takes its last\.pth"),
    ],
)
def test_wrong_flags_do_not_change_an_existing_run(finished_runs, flags, message):
    folder = finished_runs[0] / "teacher"
    before = {path.name: path.read_bytes() for path in folder.glob("*.*")}
    with pytest.raises(UserError, match=message):
        train(train_teacher, folder, "--val-per-iters", "2", *flags)
    assert before == {path.name: path.read_bytes() for path in folder.glob("*.*")}


def test_the_best_checkpoint_cannot_be_resumed(finished_runs, tmp_path):
    with pytest.raises(UserError, match=r"holds no training state; .* --resume .*last\.pth continues the run$"):
        train(train_teacher, tmp_path, "--resume", f"{finished_runs[0]}/teacher/best.pth")


def test_two_runs_do_not_share_a_folder(tmp_path):
    config = TeacherConfig(save_dir=str(tmp_path))
    runtime = Runtime()
    run = open_run_folder(config, runtime, {})
    with pytest.raises(UserError, match="in use by another run"):
        open_run_folder(config, runtime, {})
    run.close()
    open_run_folder(config, runtime, {}).close()


def test_the_lock_ends_with_the_run_not_with_its_loader_workers(tmp_path):
    config = TeacherConfig(save_dir=str(tmp_path))
    runtime = Runtime()
    run = open_run_folder(config, runtime, {})
    context = multiprocessing.get_context("fork")
    is_running = context.Event()
    worker = context.Process(target=lambda: (is_running.set(), time.sleep(60)))
    worker.start()
    try:
        assert is_running.wait(60)
        run.close()  # as when the run dies
        open_run_folder(config, runtime, {}).close()
    finally:
        worker.kill()
        worker.join()


def test_a_network_without_parameters_to_train_is_refused():
    step = Step()
    step.task = torch.nn.Linear(1, 1).requires_grad_(False)
    with pytest.raises(UserError, match="--model deeplabv3: the network has no parameters to train"):
        TrainingState(step, TeacherConfig(), Runtime())


def test_a_baseline_refuses_a_teacher(tmp_path):
    flags = [*TINY, "--kd", "none", "--teacher-pretrained", "teacher.pth", "--save-dir", str(tmp_path / "run")]
    with pytest.raises(UserError, match=r"--teacher-pretrained teacher\.pth: --kd none trains without a teacher"):
        train_student.main(flags)


def test_learning_rate_follows_the_released_code():
    config = TeacherConfig(lr=0.001, max_iterations=40000)
    for i in (0, 1, 20000, 39999):
        assert trainer.compute_learning_rate(config, i) == pytest.approx(0.001 * (1 - i / 40000) ** 0.9, rel=1e-12)
    warm = TeacherConfig(lr=0.01, min_lr=1e-4, max_iterations=1000, warmup_iterations=100)
    assert trainer.compute_learning_rate(warm, 0) == pytest.approx(0.001)
    assert trainer.compute_learning_rate(warm, 500) == pytest.approx((0.01 - 1e-4) * 0.5**0.9 + 1e-4)


@pytest.mark.parametrize(("warmup", "warned"), [(1, False), (2, True)])
def test_a_warm_up_that_does_not_end_is_warned_about(warmup, warned, tmp_path, capsys):
    train(train_teacher, tmp_path, "--max-iterations", "2", "--warmup-iterations", str(warmup))
    has_warning = "warning: --warmup-iterations 2 do not end within --max-iterations 2" in capsys.readouterr().out
    assert has_warning == warned


def test_frozen_batchnorm_keeps_its_statistics(tmp_path, capsys):
    frozen = train(train_teacher, tmp_path, "--freeze-bn")["model"]
    assert "--freeze-bn freezes BatchNorm at mean 0 and variance 1" in capsys.readouterr().err
    assert all(not value.any() for key, value in frozen.items() if key.endswith("running_mean"))


def test_a_resumed_run_keeps_its_choice_of_frozen_norms(tmp_path, capsys):
    flags = ("--freeze-bn", "--pretrained-base", "package", "--backbone", "tf_efficientnet_lite0")
    whole = train(train_teacher, tmp_path / "whole", *flags)
    with crash_at(4):
        train(train_teacher, tmp_path / "run", *flags, "--save-per-iters", "2")
    continued = train(train_teacher, tmp_path / "run", *flags, "--save-per-iters", "2", "--resume", "auto")
    assert whole["frozen_norms"] == continued["frozen_norms"]
    assert whole["frozen_norms"]
    assert_same_checkpoints(whole, continued)
    assert "no layer was trained before" not in capsys.readouterr().err


def test_a_link_to_the_runs_own_checkpoint_resumes_in_place(tmp_path):
    folder = tmp_path / "run"
    train(train_teacher, folder, "--max-iterations", "2")
    (tmp_path / "links").mkdir()
    for link in (tmp_path / "links/last.pth", tmp_path / "links/other.pth"):
        link.symlink_to(folder / "last.pth")
        settings = TeacherConfig(save_dir=str(folder), resume=str(link), overwrite=True)
        assert find_resume_source(settings, folder) == folder / "last.pth"


def test_a_new_run_keeps_no_scores_of_the_old_one(tmp_path):
    train(train_teacher, tmp_path, "--max-iterations", "1")
    for name in ("eval.json", "last.json", "per_image_last.npz", "notes.json"):
        (tmp_path / name).write_text("{}")
    train(train_teacher, tmp_path, "--max-iterations", "1", "--overwrite")
    assert {path.name for path in tmp_path.glob("*.json")} == {"notes.json"}
    assert not list(tmp_path.glob("*.npz"))


def test_batchnorm_on_one_position_needs_two_images_per_rank(tmp_path):
    with pytest.raises(UserError, match="needs at least 2 images a process"):
        train(train_teacher, tmp_path, "--model", "deeplabv3", "--batch-size", "1")
    train(train_teacher, tmp_path, "--model", "deeplabv3", "--batch-size", "1", "--freeze-bn", "--max-iterations", "1")


def test_bf16_autocast_runs_and_is_evaluated_as_trained(tmp_path):
    saved = train(train_teacher, tmp_path, "--amp", "bf16", "--max-iterations", "1", "--seed", "3")
    assert all(value.dtype != torch.bfloat16 for value in saved["model"].values())
    evaluation.main(["--pretrained", f"{tmp_path}/last.pth", "--json", f"{tmp_path}/score.json"])
    score = json.loads((tmp_path / "score.json").read_text())
    assert score["miou"] == read_records(tmp_path, "val")[-1]["miou"]
    assert "bf16" in score["protocol"]
