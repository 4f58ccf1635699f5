"""The estimates before a run: the memory of a step, and when the run ends."""

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
        assert memory.live == MIB  # the view holds it
        del view
    assert memory.live == 0
    assert memory.peak == 2 * MIB


class Squares(Step):
    """A step whose memory is known: one map of 8 channels that its square saves."""

    def __init__(self):
        super().__init__()
        self.model = nn.Conv2d(3, 8, 1, bias=False)
        self.task = TaskLoss([Supervision()])

    def forward(self, image, label, draw, avg_factor):
        return {"loss": self.model(image).pow(2).sum()}


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_step_of_known_size(accumulate, optimizer):
    settings = TeacherConfig(batch_size=4, crop_size=(256, 256), accumulate=accumulate, optimizer=optimizer)
    step = Squares()
    needed = estimate_step_memory(step, settings, Runtime())
    weights = 3 * 8 * 4
    assert needed.lasting == weights * (2 if optimizer == "sgd" else 3)
    pixels = 4 * 256 * 256
    images = pixels * (3 + 1)  # bytes of images and labels
    part = pixels // accumulate * (3 * 4 + 8 + 8 * 4)  # normalised image, long label, map
    assert images + part < needed.passing < images + 3 * part
    assert step.model.weight.grad is None


def test_a_real_step_is_estimated_and_left_as_it_was():
    step = build_teacher_step(5)
    runtime = Runtime(channels_last=True)
    runtime.prepare(step)
    before = {key: value.clone() for key, value in step.state_dict().items()}
    random = torch.get_rng_state()
    sizes = [
        sum(estimate_step_memory(step, TeacherConfig(batch_size=count, crop_size=(64, 64)), runtime))
        for count in (16, 32, 48)
    ]
    assert sizes[2] - sizes[1] == pytest.approx(sizes[1] - sizes[0], rel=0.2)  # images add to it evenly
    assert sizes[0] > 3 * sum(parameter.nbytes for parameter in step.parameters())
    assert all(torch.equal(value, before[key]) for key, value in step.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)


def test_a_loss_that_looks_at_values_has_no_estimate():
    class Looks(Squares):
        def forward(self, *batch):
            loss = super().forward(*batch)["loss"]
            return {"loss": loss if loss.item() > 0 else -loss}

    assert estimate_step_memory(Looks(), TeacherConfig(batch_size=1, crop_size=(32, 32)), Runtime()) is None


def test_the_first_iteration_is_not_counted(monkeypatch):
    now = 100.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    measured = Progress(10, 1010, batch_size=4)
    now += 50
    measured.note_iteration(11)
    assert measured.estimate_seconds_left(11) is None
    now += 4
    measured.note_iteration(13)
    assert measured.estimate_seconds_left(13) == 2.0 * (1010 - 13)
    assert measured.measure_interval(13)["images_per_second"] == 4 * 3 / 54
    measured.start_interval(13)
    now += 2
    assert measured.measure_interval(14)["images_per_second"] == 2


def test_the_time_of_validations_is_left_out(monkeypatch):
    now = 100.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    measured = Progress(0, 1000, batch_size=4)
    measured.note_iteration(1)
    measured.start_interval(1)
    with measured.pause():
        now += 50
    now += 4
    assert measured.get_seconds_since_first() == 4
    assert measured.estimate_seconds_left(3) == 2.0 * (1000 - 3)
    assert measured.measure_interval(3)["images_per_second"] == 2


@pytest.mark.parametrize(("interval", "wait", "lines"), [(1, 1e9, 1), (50, 1e9, 0), (50, 0.0, 1)])
def test_the_end_is_told_once_at_a_record_or_after_a_while(interval, wait, lines, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(trainer, "LONGEST_WAIT", wait)
    flags = [*TINY, "--max-iterations", "5", "--log-iter", str(interval)]
    train_teacher.main([*flags, "--save-dir", str(tmp_path)])
    assert capsys.readouterr().out.count("expected to finish in") == lines


def test_days_on_a_cpu_are_warned_about():
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


def test_a_run_says_both(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(trainer, "SMALL", 0)
    monkeypatch.setattr(trainer, "get_free_memory", lambda device: 1000)
    train_teacher.main([*TINY, "--max-iterations", "3", "--skip-val", "--save-dir", str(tmp_path)])
    lines = capsys.readouterr().out.splitlines()
    (memory,) = (i for i, line in enumerate(lines) if line.startswith("a step needs about 0."))
    assert lines[memory].endswith("GiB on cpu (counted on tensors without content)")
    assert lines[memory + 1].startswith("warning: 0.0 GiB are free, which may be too little: take a smaller")
    assert lines[memory + 2].startswith("train 1/3")
    assert sum(line.startswith("expected to finish in 0:0") for line in lines) == 1
