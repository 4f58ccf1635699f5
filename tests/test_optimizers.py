"""Optimizers: which parameters decay, skipped steps, and resuming a run with AdamW bit by bit."""

import pytest
import torch

import train_student
from engine.optimizers import OPTIMIZERS
from engine.settings import StudentConfig
from models import build_model
from tests.conftest import TINY
from tests.test_engine import assert_same_checkpoints, crash_at
from utils import checkpoint
from utils.errors import UserError


def test_norms_biases_and_layer_scales_do_not_decay_in_adamw():
    model = build_model("fcn", "convnext_atto", 5)
    optimizer = OPTIMIZERS["adamw"](list(model.parameters()), StudentConfig(lr=0.001, weight_decay=0.05))
    without_decay = {id(p) for group in optimizer.param_groups for p in group["params"] if group["weight_decay"] == 0}
    for name, parameter in model.named_parameters():
        is_one_number_per_channel = name.endswith((".bias", ".gamma")) or ".norm" in name or ".bn" in name
        assert (id(parameter) in without_decay) == (is_one_number_per_channel or parameter.ndim < 2), name
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.0, 0.05}
    before = model.main.classifier.bias.detach().clone()
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    weight = model.main.classifier.weight.detach().clone()
    optimizer.step()
    assert torch.equal(model.main.classifier.bias, before)
    torch.testing.assert_close(model.main.classifier.weight.detach(), weight * (1 - 0.001 * 0.05))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("overflow_step", [0, 1])
def test_a_step_that_the_grad_scaler_skips_changes_nothing(optimizer, overflow_step):
    """GradScaler skips a step whose gradients overflow. In float16 the first steps usually do."""
    finite_gradients = [1.0, 2.0]
    gradients_with_overflow = [*finite_gradients[:overflow_step], torch.inf, *finite_gradients[overflow_step:]]
    weights = []
    for gradients in (finite_gradients, gradients_with_overflow):
        # fill memory that is used again below, so that uninitialised state would change the result
        garbage = [torch.full((16, 16), 1e30) for _ in range(20)]
        del garbage
        weight = torch.nn.Parameter(torch.ones(16, 16))
        updater = OPTIMIZERS[optimizer]([weight], StudentConfig(lr=0.1))
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
        for gradient in gradients:
            updater.zero_grad()
            scaler.scale((weight * gradient).sum()).backward()
            scaler.step(updater)
            scaler.update()
        weights.append(weight.detach())
    assert torch.equal(*weights)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_momentum_of_1_is_refused(optimizer):
    with pytest.raises(UserError, match="--momentum 1: it must be below 1"):
        OPTIMIZERS[optimizer]([torch.nn.Parameter(torch.ones(2))], StudentConfig(momentum=1.0))


def test_a_resumed_run_of_adamw_ends_with_the_same_bits(tmp_path):
    flags = [*TINY, "--kd", "none", "--optimizer", "adamw", "--lr", "0.001", "--save-per-iters", "2"]
    train_student.main([*flags, "--max-iterations", "4", "--save-dir", str(tmp_path / "whole")])
    with crash_at(3):
        train_student.main([*flags, "--max-iterations", "4", "--save-dir", str(tmp_path / "halves")])
    train_student.main([*flags, "--max-iterations", "4", "--save-dir", str(tmp_path / "halves"), "--resume", "auto"])
    assert_same_checkpoints(*(checkpoint.read(tmp_path / name / "last.pth") for name in ("whole", "halves")))
