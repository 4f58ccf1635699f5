"""Distillation losses, consistency and the task loss: values against other formulas, gradients, and error messages."""

import numpy as np
import pytest
import torch
from torch import nn

from losses import WeightedLosses, build_kd, parse_losses
from losses.consistency import Consistency
from losses.cwd import cwd_loss
from losses.dist import dist_loss
from losses.kd import kd_loss
from losses.task import TaskLoss, cross_entropy
from utils.errors import UserError
from utils.types import Output, Supervision


def make_maps(shape=(2, 5, 6, 7), seed=0):
    """Draw two random float64 maps, for student and teacher."""
    generator = torch.Generator().manual_seed(seed)
    return [3 * torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2)]


def make_output(logits: torch.Tensor) -> Output:
    """Make an output without auxiliary logits, whose features are the logits."""
    return Output(logits, (), logits)


@pytest.mark.parametrize(
    ("name", "loss"),
    [
        ("kd_T1", lambda s, t: kd_loss(s, t, 1)),
        ("kd_T4", lambda s, t: kd_loss(s, t, 4)),
        ("cwd_logits_T4", lambda s, t: cwd_loss(s, t, 4)),
    ],
)
def test_golden_numbers_of_cirkd(golden, name, loss):
    s, t = (golden[f"{who}_logits"] for who in ("student", "teacher"))
    assert loss(s, t).item() == pytest.approx(float(golden[f"loss_{name}"]), rel=1e-6)


def test_kd_by_an_independent_formula():
    s, t = make_maps()
    p, q = (torch.softmax(x / 2, 1).numpy() for x in (t, s))
    expected = 4 * (p * np.log(p / q)).sum(1).mean()
    assert kd_loss(s, t, 2).item() == pytest.approx(expected, rel=1e-12)


def test_cwd_by_an_independent_formula():
    s, t = make_maps()
    p, q = (np.exp(x.flatten(2).numpy() / 4) for x in (t, s))
    p, q = p / p.sum(2, keepdims=True), q / q.sum(2, keepdims=True)
    expected = 16 * (p * np.log(p / q)).sum(2).mean()
    assert cwd_loss(s, t, 4).item() == pytest.approx(expected, rel=1e-12)


def test_dist_by_an_independent_formula():
    s, t = make_maps()
    p, q = (torch.softmax(x, 1).permute(0, 2, 3, 1).reshape(-1, 5).numpy() for x in (s, t))
    inter = 1 - np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(p, q, strict=True)])
    intra = 1 - np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(p.T, q.T, strict=True)])
    assert dist_loss(s, t, 2, 3).item() == pytest.approx(2 * inter + 3 * intra, rel=1e-6)


@pytest.mark.parametrize("loss", [kd_loss, cwd_loss, dist_loss])
def test_losses_are_zero_for_equal_maps_and_give_the_teacher_no_gradient(loss):
    s, t = (x.requires_grad_() for x in make_maps())
    assert loss(s.detach(), s.detach()).item() == pytest.approx(0, abs=1e-7)
    loss(s, t).backward()
    assert t.grad is None
    assert s.grad.abs().sum() > 0


@pytest.mark.parametrize("loss", [kd_loss, cwd_loss])
def test_peaked_logits_stay_finite(loss):
    s, t = (1000 * x.float() for x in make_maps())
    assert torch.isfinite(loss(s, t, 1.0))


@pytest.mark.parametrize("loss", [dist_loss, cwd_loss])
def test_float32_is_enough_for_large_maps(loss):
    """A float32 sum by PyTorch over this many positions has an error of 1e-4."""
    torch.manual_seed(0)
    coarse = torch.randn(2, 8, 11, 16, 32)
    student, teacher = (nn.functional.interpolate(x, scale_factor=8, mode="bilinear") for x in coarse)
    if loss is cwd_loss:  # features with many zeros
        student, teacher = (0.3 * student - 0.1).relu(), teacher.relu()
    else:  # logits of frequent and of rare classes
        student, teacher = (6 * x + torch.linspace(-6, 3, 11).view(11, 1, 1) for x in (student, teacher))
    gradients = []
    for dtype in (torch.float32, torch.float64):
        x = student.detach().to(dtype).requires_grad_()
        loss(x, teacher.to(dtype)).backward()
        gradients.append(x.grad.double())
    difference = (gradients[0] - gradients[1]).norm() / gradients[1].norm()
    assert difference < 1e-5


def test_losses_are_full_precision_under_autocast():
    s, t = (x.float() for x in make_maps())
    losses = build_kd("cwd=3,kd=1,dist=2", 5, 5, 5)
    label = torch.zeros(2, 6, 7, dtype=torch.long)
    expected, _ = losses(make_output(s), make_output(t), label)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        total, terms = losses(make_output(s), make_output(t), label)
        half, _ = losses(make_output(s.bfloat16()), make_output(t.bfloat16()), label)
    assert total.item() == expected.item()
    assert half.dtype == torch.float32
    assert set(terms) == {"cwd", "kd", "dist"}


def test_a_teacher_of_another_size_is_resized():
    s, t = make_maps()
    big = nn.functional.interpolate(t, (12, 14), mode="bilinear")
    losses = build_kd("kd=1", 5, 5, 5)
    label = torch.zeros(2, 6, 7, dtype=torch.long)
    expected = kd_loss(s, nn.functional.interpolate(big, (6, 7), mode="bilinear"))
    assert losses(make_output(s), make_output(big), label)[0].item() == expected.item()


def test_weights_and_options_are_parsed():
    assert parse_losses("none") == {}
    assert parse_losses("cwd=3, kd=0.5:tau=4") == {"cwd": (3.0, {}), "kd": (0.5, {"tau": 4.0})}
    s, t = make_maps()
    total, terms = build_kd("cwd=3,kd=0.5:tau=4", 5, 5, 5)(make_output(s), make_output(t), None)
    assert terms["kd"].item() == kd_loss(s, t, 4).item()
    assert total.item() == pytest.approx(3 * terms["cwd"].item() + 0.5 * terms["kd"].item())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cdw=3", "did you mean 'cwd'"),
        ("cwd", "name=weight"),
        ("cwd=much", "name=weight"),
        ("cwd=1,cwd=2", "twice"),
        ("kd=1:taw=2", "did you mean 'tau'"),
        ("kd=1:num_classes=2", "no option"),
        ("kd=1:tau=0", "tau=0 of kd: give a positive number"),
        ("cirkd=1:tau=nan", "tau=nan of cirkd: give a positive number"),
        ("", "unknown loss"),
    ],
)
def test_a_bad_loss_list_is_explained(text, message):
    with pytest.raises(UserError, match=message):
        parse_losses(text)


def test_consistency_is_symmetric_and_stops_gradients_at_the_target():
    z1, z2 = (x.requires_grad_() for x in make_maps())
    consistency = Consistency(build_kd("cwd=5", 5, 5, 5))
    weighted, distance = consistency(make_output(z1), make_output(z2), None)
    assert distance.item() == pytest.approx(cwd_loss(z1, z2).item() + cwd_loss(z2, z1).item())
    assert weighted.item() == pytest.approx(5 * distance.item())
    distance.backward()
    (expected,) = torch.autograd.grad(cwd_loss(z1, z2), z1)
    torch.testing.assert_close(z1.grad, expected)


def test_the_teacher_gets_no_gradient_from_a_loss_that_does_not_detach_it():
    class Difference(nn.Module):
        def forward(self, student, teacher, label):
            parts = [(student.logits, teacher.logits), (student.feat, teacher.feat), (student.aux[0], teacher.aux[0])]
            return sum((s - t).square().mean() for s, t in parts)

    z1, z2 = (x.requires_grad_() for x in make_maps(seed=0))
    a1, a2 = (x.requires_grad_() for x in make_maps(seed=1))
    f1, f2 = (x.requires_grad_() for x in make_maps(seed=2))
    losses = WeightedLosses({"own": Difference()}, {"own": 1.0})
    losses(Output(z1, (a1,), f1), Output(z2, (a2,), f2), None)[0].backward()
    assert all(x.grad.any() for x in (z1, a1, f1))
    assert all(x.grad is None for x in (z2, a2, f2))


def test_auxiliary_weights_come_from_the_network_or_the_flag():
    z, a = make_maps()
    label = torch.randint(0, 5, (2, 12, 14), generator=torch.Generator().manual_seed(1))
    supervision = (Supervision(align_corners=True), Supervision(align_corners=True, weight=0.4))
    ce, aux = cross_entropy(z, label, True), cross_entropy(a, label, True)
    expected_totals = {None: ce + 0.4 * aux, 0.02: ce + 0.02 * aux, 0.0: ce}
    for weight, expected in expected_totals.items():
        total, terms = TaskLoss(supervision, weight)(Output(z, (a,), z), label)
        assert total.item() == pytest.approx(expected.item())
        assert terms["aux"].item() == aux.item()
    _, terms = TaskLoss(supervision[:1])(make_output(z), label)
    assert set(terms) == {"ce"}


def test_learnable_losses_are_parameters_of_the_container():
    losses = WeightedLosses({"a": nn.Conv2d(1, 1, 1)}, {"a": 1.0})
    assert [name for name, _ in losses.named_parameters()] == ["losses.a.weight", "losses.a.bias"]
