"""Test the estimates at the start of a run: the memory of a step, and when the run ends."""

import pytest
import torch
from torch import nn

import train_teacher
from engine import progress, trainer
from engine.progress import Progress, describe_finish
from engine.runtime import Runtime
from engine.settings import TeacherConfig
from engine.step import Step
from engine.step_memory import LiveMemory, StepMemory, estimate_step_memory
from losses.task import TaskLoss
from scripts.study.benchmarks.steps import build_teacher_step
from tests.conftest import TINY
from utils.types import Supervision

MIB = 2**20


def test_live_tensors_are_counted_once_and_only_while_they_live():
    with LiveMemory() as memory:
        first = torch.empty(MIB, dtype=torch.uint8)
        view = first.view(2, -1)[0]
        assert memory.live == MIB
        second = first + 1
        assert memory.live == 2 * MIB
        del first, second
        assert memory.live == MIB  # the view keeps the tensor alive
        del view
    assert memory.live == 0
    assert memory.peak == 2 * MIB


class Squares(Step):
    """A step of known memory: autograd keeps one feature map of 8 channels for the square."""

    def __init__(self):
        super().__init__()
        self.model = nn.Conv2d(3, 8, 1, bias=False)
        self.task = TaskLoss([Supervision()])

    def forward(self, image, label, draw, avg_factor):
        return {"loss": self.model(image).pow(2).sum()}


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_the_estimate_of_a_step_of_known_size(accumulate, optimizer):
    settings = TeacherConfig(batch_size=4, crop_size=(256, 256), accumulate=accumulate, optimizer=optimizer)
    step = Squares()
    needed = estimate_step_memory(step, settings, Runtime())
    weights = 3 * 8 * 4
    assert needed.lasting == weights * (2 if optimizer == "sgd" else 3)
    pixels = 4 * 256 * 256
    images = pixels * (3 + 1)  # bytes of images and labels
    microbatch = pixels // accumulate * (3 * 4 + 8 + 8 * 4)  # normalised image, long label, map
    assert images + microbatch < needed.passing < images + 3 * microbatch
    assert step.model.weight.grad is None


def test_estimating_a_real_step_does_not_change_it():
    step = build_teacher_step(5)
    runtime = Runtime(channels_last=True)
    runtime.prepare(step)
    before = {key: value.clone() for key, value in step.state_dict().items()}
    rng_state = torch.get_rng_state()
    sizes = []
    for batch_size in (16, 32, 48):
        settings = TeacherConfig(batch_size=batch_size, crop_size=(64, 64))
        sizes.append(sum(estimate_step_memory(step, settings, runtime)))
    # memory grows linearly with the number of images
    assert sizes[2] - sizes[1] == pytest.approx(sizes[1] - sizes[0], rel=0.2)
    assert sizes[0] > 3 * sum(parameter.nbytes for parameter in step.parameters())
    assert all(torch.equal(value, before[key]) for key, value in step.state_dict().items())
    assert torch.equal(torch.get_rng_state(), rng_state)


def test_a_loss_that_reads_tensor_values_has_no_estimate():
    class ReadsLossValue(Squares):
        def forward(self, *batch):
            loss = super().forward(*batch)["loss"]
            return {"loss": loss if loss.item() > 0 else -loss}

    assert estimate_step_memory(ReadsLossValue(), TeacherConfig(batch_size=1, crop_size=(32, 32)), Runtime()) is None


def test_the_time_left_ignores_the_first_iteration(monkeypatch):
    now = 100.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    progress_of_run = Progress(10, 1010, batch_size=4)
    now += 50
    progress_of_run.note_iteration(11)
    assert progress_of_run.estimate_seconds_left(11) is None
    now += 4
    progress_of_run.note_iteration(13)
    assert progress_of_run.estimate_seconds_left(13) == 2.0 * (1010 - 13)
    assert progress_of_run.measure_interval(13)["images_per_second"] == 4 * 3 / 54
    progress_of_run.start_interval(13)
    now += 2
    assert progress_of_run.measure_interval(14)["images_per_second"] == 2


def test_the_time_left_ignores_validations(monkeypatch):
    now = 100.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    progress_of_run = Progress(0, 1000, batch_size=4)
    progress_of_run.note_iteration(1)
    progress_of_run.start_interval(1)
    with progress_of_run.pause():
        now += 50
    now += 4
    assert progress_of_run.get_seconds_since_first() == 4
    assert progress_of_run.estimate_seconds_left(3) == 2.0 * (1000 - 3)
    assert progress_of_run.measure_interval(3)["images_per_second"] == 2


@pytest.mark.parametrize(("interval", "wait", "lines"), [(1, 1e9, 1), (50, 1e9, 0), (50, 0.0, 1)])
def test_the_finish_time_is_printed_once_at_a_log_line_or_after_a_wait(
    interval, wait, lines, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(trainer, "LONGEST_WAIT", wait)
    flags = [*TINY, "--max-iterations", "5", "--log-iter", str(interval)]
    train_teacher.main([*flags, "--save-dir", str(tmp_path)])
    assert capsys.readouterr().out.count("expected to finish in") == lines


def test_a_run_of_days_on_a_cpu_gives_a_warning():
    assert describe_finish(3600, is_cpu=True).startswith("expected to finish in 1:00:00, on ")
    slow = describe_finish(74 * 24 * 3600, is_cpu=True)
    assert slow.startswith("warning: expected to finish in 74 days")
    assert "--max-iterations" in slow
    assert "warning" not in describe_finish(74 * 24 * 3600, is_cpu=False)


@pytest.mark.parametrize("processes", [1, 2])
def test_processes_of_one_host_share_its_memory(processes, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(trainer, "SMALL", 0)
    monkeypatch.setattr(trainer, "estimate_step_memory", lambda *given: StepMemory(lasting=0, passing=600))
    monkeypatch.setattr(trainer, "get_free_memory", lambda device: 1000)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    train_teacher.main([*TINY, "--max-iterations", "1", "--skip-val", "--save-dir", str(tmp_path)])
    out = capsys.readouterr().out
    assert ("in each of 2 processes" in out) == (processes == 2)
    assert ("which may be too little" in out) == (processes == 2)


def test_a_run_prints_its_memory_and_its_finish_time(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(trainer, "SMALL", 0)
    monkeypatch.setattr(trainer, "get_free_memory", lambda device: 1000)
    train_teacher.main([*TINY, "--max-iterations", "3", "--skip-val", "--save-dir", str(tmp_path)])
    lines = capsys.readouterr().out.splitlines()
    (memory,) = (i for i, line in enumerate(lines) if line.startswith("a step needs about 0."))
    assert lines[memory].endswith("GiB on cpu (counted on tensors without content)")
    assert lines[memory + 1].startswith("warning: 0.0 GiB are free, which may be too little: take a smaller")
    assert lines[memory + 2].startswith("train 1/3")
    assert sum(line.startswith("expected to finish in 0:0") for line in lines) == 1
