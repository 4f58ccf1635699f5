"""Optimizers by name: which parameters decay, and that a run with AdamW continues to the same bits."""

import pytest
import torch

import train_student
from engine.optimizers import OPTIMIZERS
from engine.settings import StudentConfig
from models import build_model
from tests.conftest import TINY
from tests.test_engine import assert_same, crash_at
from utils import checkpoint
from utils.errors import UserError


def test_norms_biases_and_layer_scales_do_not_decay_in_adamw():
    model = build_model("fcn", "convnext_atto", 5)
    optimizer = OPTIMIZERS["adamw"](list(model.parameters()), StudentConfig(lr=0.001, weight_decay=0.05))
    free = {id(p) for group in optimizer.param_groups for p in group["params"] if group["weight_decay"] == 0}
    for name, parameter in model.named_parameters():
        one_number_a_channel = name.endswith((".bias", ".gamma")) or ".norm" in name or ".bn" in name
        assert (id(parameter) in free) == (one_number_a_channel or parameter.ndim < 2), name
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.0, 0.05}
    before = model.main.classifier.bias.detach().clone()
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    weight = model.main.classifier.weight.detach().clone()
    optimizer.step()
    assert torch.equal(model.main.classifier.bias, before)
    torch.testing.assert_close(model.main.classifier.weight.detach(), weight * (1 - 0.001 * 0.05))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("overflowed", [0, 1])
def test_a_step_that_the_loss_scale_skips_leaves_no_trace(optimizer, overflowed):
    """As with float16 gradients that overflow, which the first ones usually do."""
    finite, weights = [1.0, 2.0], []
    for gradients in (finite, [*finite[:overflowed], torch.inf, *finite[overflowed:]]):
        garbage = [torch.full((16, 16), 1e30) for _ in range(20)]  # what new memory may hold
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
def test_a_momentum_that_does_not_fade_is_refused(optimizer):
    with pytest.raises(UserError, match="--momentum 1: it must be below 1"):
        OPTIMIZERS[optimizer]([torch.nn.Parameter(torch.ones(2))], StudentConfig(momentum=1.0))


def test_a_run_of_adamw_continues_to_the_same_bits(tmp_path):
    flags = [*TINY, "--kd", "none", "--optimizer", "adamw", "--lr", "0.001", "--save-per-iters", "2"]
    train_student.main([*flags, "--max-iterations", "4", "--save-dir", str(tmp_path / "whole")])
    with crash_at(3):
        train_student.main([*flags, "--max-iterations", "4", "--save-dir", str(tmp_path / "halves")])
    train_student.main([*flags, "--max-iterations", "4", "--save-dir", str(tmp_path / "halves"), "--resume", "auto"])
    assert_same(*(checkpoint.read(tmp_path / name / "last.pth") for name in ("whole", "halves")))
