"""The training loop: repeatable, resumable at any moment, and it never loses a checkpoint to bad input."""

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
    script.main([*TINY, "--save-dir", str(folder), *flags])
    return checkpoint.read(folder / "last.pth")


def records(folder: Path, event: str) -> list[dict]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["event"] == event]


def losses(folder: Path) -> list[tuple[int, float]]:
    return [(line["iteration"], line["loss"]) for line in records(folder, "train")]


def assert_equal(a: Any, b: Any, where: str = "") -> None:
    """Tensors in nested dicts and lists, to the last bit."""
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    elif isinstance(a, (dict, list, tuple)):
        assert len(a) == len(b), where
        for key in a if isinstance(a, dict) else range(len(a)):
            assert_equal(a[key], b[key], f"{where}/{key}")
    else:
        assert a == b, where


def assert_same(a: dict, b: dict) -> None:
    """Weights, optimizer state and progress of two checkpoints."""
    for key in ("model", "optimizer", "iteration", "best_miou", "best_iteration"):
        assert_equal(a[key], b[key], key)


@contextmanager
def crash_at(last: int) -> Iterator[None]:
    """Training within ends like a process that dies at an iteration: nothing is saved."""

    class Crash(BaseException):
        pass

    def crash(self, iteration):
        if iteration == last:
            raise Crash

    with pytest.raises(Crash), pytest.MonkeyPatch.context() as patch:  # noqa: PT012  the tests are inside
        patch.setattr(trainer.RunLogger, "advance", crash)
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """An uninterrupted teacher run, and the student distilled from it."""
    folder = tmp_path_factory.mktemp("finished")
    teacher = train(train_teacher, folder / "teacher", "--val-per-iters", "2")
    flags = ["--teacher-pretrained", str(folder / "teacher/last.pth"), *STUDENT]
    student = train(train_student, folder / "student", *flags)
    return folder, teacher, student


def test_the_same_seed_gives_the_same_bits(finished, tmp_path):
    folder, teacher, _ = finished
    assert_same(teacher, train(train_teacher, tmp_path, "--val-per-iters", "2", "--workers", "2"))
    assert losses(folder / "teacher") == losses(tmp_path)
    other = train(train_teacher, tmp_path, "--val-per-iters", "2", "--seed", "1", "--overwrite")
    assert not torch.equal(teacher["model"]["main.classifier.weight"], other["model"]["main.classifier.weight"])


def test_what_a_run_writes(finished):
    folder, teacher, student = finished
    assert {path.name for path in (folder / "teacher").iterdir()} >= {"last.pth", "best.pth", "config.yaml"}
    (start,) = records(folder / "teacher", "start")
    assert {"torch", "timm", "device", "git", "config", "world_size"} <= start.keys()
    assert [line["iteration"] for line in records(folder / "teacher", "val")] == [2, 4, 6]
    train_line = records(folder / "student", "train")[0]
    assert {"loss", "ce", "aux", "cwd", "kd", "dist", "lr", "images_per_second"} <= train_line.keys()
    assert not any(key.startswith("teacher") for key in student["model"])
    assert start["card"]["start"].startswith("random weights")
    assert teacher["arch"]["in_channels"] == 4
    assert student["arch"]["in_channels"] == 3
    best = checkpoint.read(folder / "teacher/best.pth")
    assert best["iteration"] == best["best_iteration"] == teacher["best_iteration"]
    assert "optimizer" not in best


@pytest.mark.parametrize("role", ["teacher", "student"])
def test_a_stopped_run_continues_to_the_same_bits(finished, tmp_path, role):
    folder, teacher, student = finished
    script, expected, flags = train_teacher, teacher, ["--val-per-iters", "2"]
    if role == "student":
        script, expected = train_student, student
        flags = ["--teacher-pretrained", f"{folder}/teacher/last.pth", *STUDENT]
    with crash_at(5):  # one iteration after a checkpoint
        train(script, tmp_path, *flags)
    assert checkpoint.read(tmp_path / "last.pth")["iteration"] == 4
    assert_same(expected, train(script, tmp_path, *flags, "--resume", "auto"))
    assert losses(tmp_path) == losses(folder / role)
    assert_same(expected, train(script, tmp_path, *flags, "--resume", "auto"))  # finished: nothing happens


def test_a_killed_run_continues_to_the_same_bits(finished, tmp_path, start):
    """SIGKILL to a process of its own, as soon as it has saved; tests/breaking kills at any other moment."""
    folder, teacher, _ = finished
    process = start("train_teacher.py", *TINY, "--val-per-iters", "2", "--save-dir", tmp_path)
    while not (tmp_path / "last.pth").exists() and process.poll() is None:
        time.sleep(0.005)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert_same(teacher, train(train_teacher, tmp_path, "--val-per-iters", "2", "--resume", "auto"))
    assert losses(tmp_path) == losses(folder / "teacher")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_saves_before_it_stops(finished, tmp_path, monkeypatch, number):
    _, teacher, _ = finished

    def send(self, iteration):
        if iteration == 3:
            os.kill(os.getpid(), number)

    with monkeypatch.context() as patch:
        patch.setattr(trainer.RunLogger, "advance", send)
        with pytest.raises(SystemExit) as stopped:
            train(train_teacher, tmp_path, "--val-per-iters", "2")
    assert stopped.value.code == STOPPED_STATUS
    assert checkpoint.read(tmp_path / "last.pth")["iteration"] == 3
    assert_same(teacher, train(train_teacher, tmp_path, "--val-per-iters", "2", "--resume", "auto"))


def test_a_signal_to_the_whole_job_saves_too(tmp_path, start):
    """Schedulers signal every process: the loader's workers leave the answer to the main one."""
    flags = [*TINY, "--workers", "2", "--max-iterations", "1000", "--save-dir", tmp_path]
    process = start("train_teacher.py", *flags)
    while not (tmp_path / "last.pth").exists() and process.poll() is None:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGTERM)
    assert process.wait() == STOPPED_STATUS
    assert checkpoint.read(tmp_path / "last.pth")["iteration"] == losses(tmp_path)[-1][0]


def test_a_loss_that_is_not_finite_names_the_images(tmp_path):
    with pytest.raises(UserError, match=r"not finite at iteration \d+ .*images: toy/train/000\d\.png, toy/train"):
        train(train_teacher, tmp_path, "--lr", "1e30", "--save-per-iters", "1")
    saved = checkpoint.read(tmp_path / "last.pth")
    assert saved["iteration"] >= 1


@pytest.mark.parametrize("workers", ["0", "2"])
def test_an_unreadable_image_does_not_cost_the_work_so_far(finished, tmp_path, monkeypatch, workers):
    _, teacher, _ = finished
    flags = ["--val-per-iters", "2", "--workers", workers]
    read = TrainStream.__getitem__

    def fail(stream, position):
        return UserError("a.png cannot be read") if position == 21 else read(stream, position)

    with monkeypatch.context() as patch:
        patch.setattr(TrainStream, "__getitem__", fail)
        with pytest.raises(UserError, match=r"a\.png cannot be read"):
            train(train_teacher, tmp_path, *flags)
    assert checkpoint.read(tmp_path / "last.pth")["iteration"] == 5
    assert_same(teacher, train(train_teacher, tmp_path, *flags, "--resume", "auto"))


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
def test_a_run_is_not_lost_to_a_mistake(finished, flags, message):
    folder = finished[0] / "teacher"
    before = {path.name: path.read_bytes() for path in folder.glob("*.*")}
    with pytest.raises(UserError, match=message):
        train(train_teacher, folder, "--val-per-iters", "2", *flags)
    assert before == {path.name: path.read_bytes() for path in folder.glob("*.*")}


def test_best_cannot_be_resumed(finished, tmp_path):
    with pytest.raises(UserError, match="holds no training state"):
        train(train_teacher, tmp_path, "--resume", f"{finished[0]}/teacher/best.pth")


def test_two_runs_do_not_share_a_folder(tmp_path):
    config, world = TeacherConfig(save_dir=str(tmp_path)), Runtime()
    run = open_run_folder(config, world, {})
    with pytest.raises(UserError, match="in use by another run"):
        open_run_folder(config, world, {})
    run.close()
    open_run_folder(config, world, {}).close()


def test_the_lock_ends_with_the_run_not_with_its_loader_processes(tmp_path):
    config, world = TeacherConfig(save_dir=str(tmp_path)), Runtime()
    run = open_run_folder(config, world, {})
    fork = multiprocessing.get_context("fork")
    running = fork.Event()
    worker = fork.Process(target=lambda: (running.set(), time.sleep(60)))
    worker.start()
    try:
        assert running.wait(60)
        run.close()  # as at the run's death
        open_run_folder(config, world, {}).close()
    finally:
        worker.kill()
        worker.join()


def test_a_network_without_parameters_to_train_is_refused():
    step = Step()
    step.task = torch.nn.Linear(1, 1).requires_grad_(False)
    with pytest.raises(UserError, match="--model deeplabv3: the network has no parameters to train"):
        TrainingState(step, TeacherConfig(), Runtime())


def test_a_baseline_reads_no_teacher(tmp_path):
    flags = [*TINY, "--kd", "none", "--teacher-pretrained", "teacher.pth", "--save-dir", str(tmp_path / "run")]
    with pytest.raises(UserError, match=r"--teacher-pretrained teacher\.pth: --kd none trains without a teacher"):
        train_student.main(flags)


def test_learning_rate_follows_the_release():
    config = TeacherConfig(lr=0.001, max_iterations=40000)
    for i in (0, 1, 20000, 39999):
        assert trainer.compute_learning_rate(config, i) == pytest.approx(0.001 * (1 - i / 40000) ** 0.9, rel=1e-12)
    warm = TeacherConfig(lr=0.01, min_lr=1e-4, max_iterations=1000, warmup_iterations=100)
    assert trainer.compute_learning_rate(warm, 0) == pytest.approx(0.001)
    assert trainer.compute_learning_rate(warm, 500) == pytest.approx((0.01 - 1e-4) * 0.5**0.9 + 1e-4)


@pytest.mark.parametrize(("warmup", "warned"), [(1, False), (2, True)])
def test_a_warm_up_that_does_not_end_is_warned_about(warmup, warned, tmp_path, capsys):
    train(train_teacher, tmp_path, "--max-iterations", "2", "--warmup-iterations", str(warmup))
    said = "warning: --warmup-iterations 2 do not end within --max-iterations 2" in capsys.readouterr().out
    assert said == warned


def test_frozen_batchnorm_keeps_its_statistics(tmp_path, capsys):
    frozen = train(train_teacher, tmp_path, "--freeze-bn")["model"]
    assert "--freeze-bn freezes BatchNorm at mean 0 and variance 1" in capsys.readouterr().err
    assert all(not value.any() for key, value in frozen.items() if key.endswith("running_mean"))


def test_a_resumed_run_chooses_no_frozen_norms_anew(tmp_path, capsys):
    flags = ("--freeze-bn", "--pretrained-base", "package", "--backbone", "tf_efficientnet_lite0")
    whole = train(train_teacher, tmp_path / "whole", *flags)
    with crash_at(4):
        train(train_teacher, tmp_path / "run", *flags, "--save-per-iters", "2")
    continued = train(train_teacher, tmp_path / "run", *flags, "--save-per-iters", "2", "--resume", "auto")
    assert whole["frozen_norms"] == continued["frozen_norms"]
    assert whole["frozen_norms"]
    assert_same(whole, continued)
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


def test_one_image_a_process_with_batchnorm_on_one_position(tmp_path):
    with pytest.raises(UserError, match="needs at least 2 images a process"):
        train(train_teacher, tmp_path, "--model", "deeplabv3", "--batch-size", "1")
    train(train_teacher, tmp_path, "--model", "deeplabv3", "--batch-size", "1", "--freeze-bn", "--max-iterations", "1")


def test_bf16_autocast_runs_and_is_evaluated_as_trained(tmp_path):
    saved = train(train_teacher, tmp_path, "--amp", "bf16", "--max-iterations", "1", "--seed", "3")
    assert all(value.dtype != torch.bfloat16 for value in saved["model"].values())
    evaluation.main(["--pretrained", f"{tmp_path}/last.pth", "--json", f"{tmp_path}/score.json"])
    score = json.loads((tmp_path / "score.json").read_text())
    assert score["miou"] == records(tmp_path, "val")[-1]["miou"]
    assert "bf16" in score["protocol"]
