"""The BatchNorm layers with which training replaces those of a network."""

import pytest
import torch
import torch.nn.functional as F
from timm.layers import BatchNormAct2d
from torch import nn

from engine.norms import ExactNorm, SyncedNorm, replace_norms
from engine.runtime import Runtime
from scripts.study.benchmarks.steps import build_teacher_step
from utils.seeding import RowGenerator
from utils.types import IGNORE_INDEX

LAST = torch.channels_last


def replace_norm(norm: nn.Module, kind: type) -> nn.Module:
    """Let replace_norms replace a layer. Return the new layer, whose type must be ``kind``."""
    net = nn.Sequential(norm)
    replace_norms(net, kind)
    assert type(net[0]) is kind
    return net[0]


@pytest.mark.parametrize("kind", [SyncedNorm, ExactNorm])
def test_replaced_norms_keep_activation_and_parameters_and_spare_a_frozen_teacher(kind):
    net = nn.ModuleDict({"a": nn.Sequential(nn.Conv2d(3, 4, 1), BatchNormAct2d(4)), "teacher": nn.BatchNorm2d(4)})
    net["teacher"].requires_grad_(False)
    x = torch.randn(2, 3, 5, 5)
    keys = list(net.state_dict())
    net["a"](x)
    expected = net.eval()["a"](x)
    weight = net["a"][1].weight
    replace_norms(net, kind)
    assert type(net["a"][1]) is kind
    assert not net["a"][1].training
    assert type(net["teacher"]) is nn.BatchNorm2d
    assert net["a"][1].weight is weight
    assert list(net.state_dict()) == keys
    assert (expected >= 0).all()
    torch.testing.assert_close(net["a"](x), expected)


@pytest.mark.parametrize("shape", [(8, 5, 90, 120), (2, 7, 300, 1), (1, 3, 1, 400), (3, 16, 7, 5)])
def test_statistics_of_channels_last_maps_are_exact(shape):
    torch.manual_seed(0)
    x = (2 * torch.randn(shape) + 3).contiguous(memory_format=LAST)
    norm = replace_norm(nn.BatchNorm2d(shape[1]), ExactNorm)
    exact = nn.BatchNorm2d(shape[1]).double()
    expected = exact(x.double())
    torch.testing.assert_close(norm(x).double(), expected, rtol=0, atol=2e-6)
    for key, value in exact.state_dict().items():
        torch.testing.assert_close(norm.state_dict()[key].to(value), value, rtol=5e-7, atol=1e-7)
    norm.eval()
    exact.eval()
    torch.testing.assert_close(norm(x).double(), exact(x.double()), rtol=0, atol=2e-6)


@pytest.mark.parametrize("trainable", ["weight and bias", "bias", "weight"])
def test_gradients_equal_those_of_batchnorm(trainable):
    torch.manual_seed(0)
    x, output_gradient = torch.randn(2, 2, 4, 6, 5)
    batch_norm = nn.BatchNorm2d(4)
    for name, parameter in batch_norm.named_parameters():
        nn.init.normal_(parameter).requires_grad_(name in trainable)
    batch_norm.double()
    expected = x.double().requires_grad_()
    batch_norm(expected).backward(output_gradient.double())
    norm = replace_norm(nn.BatchNorm2d(4), ExactNorm)
    norm.load_state_dict(batch_norm.float().state_dict())
    norm_input = x.clone(memory_format=LAST).requires_grad_()
    for parameter, other in zip(norm.parameters(), batch_norm.parameters(), strict=True):
        parameter.requires_grad_(other.requires_grad)
    norm(norm_input).backward(output_gradient)
    torch.testing.assert_close(norm_input.grad.double(), expected.grad, rtol=1e-5, atol=1e-6)
    for parameter, other in zip(norm.parameters(), batch_norm.parameters(), strict=True):
        assert (parameter.grad is None) == (other.grad is None)
        if parameter.grad is not None:
            torch.testing.assert_close(parameter.grad, other.grad.float(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", [SyncedNorm, ExactNorm])
def test_a_layer_without_parameters_is_replaced_too(kind):
    torch.manual_seed(0)
    x, output_gradient = torch.randn(2, 2, 4, 6, 5)
    expected = x.double().requires_grad_()
    nn.BatchNorm2d(4, affine=False).double()(expected).backward(output_gradient.double())
    norm = replace_norm(nn.BatchNorm2d(4, affine=False), kind)
    if kind is ExactNorm:
        norm_input = x.clone(memory_format=LAST).requires_grad_()
        norm(norm_input).backward(output_gradient)
        torch.testing.assert_close(norm_input.grad.double(), expected.grad, rtol=1e-5, atol=1e-6)


def test_statistics_over_all_ranks_without_waiting_for_the_device(command):
    command("tests/synced_norm.py", processes=2)


def test_cumulative_statistics_equal_those_of_batchnorm():
    torch.manual_seed(0)
    norm = replace_norm(nn.BatchNorm2d(4, momentum=None), ExactNorm)
    plain = nn.BatchNorm2d(4, momentum=None)
    for _ in range(3):
        x = torch.randn(2, 4, 6, 5).contiguous(memory_format=LAST)
        norm(x)
        plain(x)
    for key, value in plain.state_dict().items():
        torch.testing.assert_close(norm.state_dict()[key], value)


def test_other_inputs_are_left_to_pytorch():
    norm = replace_norm(nn.BatchNorm1d(4), ExactNorm)
    plain = nn.BatchNorm1d(4)
    for x in (torch.randn(6, 4), torch.randn(2, 4, 5)):
        assert torch.equal(norm(x), plain(x))
    half = torch.randn(2, 4, 6, 5, dtype=torch.bfloat16).contiguous(memory_format=LAST)
    assert torch.equal(norm(half), F.batch_norm(half, None, None, plain.weight, plain.bias, True))
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        norm(torch.randn(1, 4, 1, 1))


@pytest.mark.parametrize("backbone", ["tf_efficientnet_lite0", "mobilenetv2_100", "resnet18_v1s"])
def test_channels_last_gives_the_losses_of_the_default_layout(backbone):
    """The losses agree to 1e-6 in float32 on the CPU."""
    image = 100 * torch.randn(2, 3, 128, 128, generator=torch.manual_seed(0))
    label = torch.zeros(2, 128, 128).long()
    label[:, :50] = 1
    label[:, :, 30:40] = IGNORE_INDEX
    losses = []
    for channels_last in (True, False):
        step = build_teacher_step(5, backbone)
        Runtime(channels_last=channels_last).prepare(step).train()
        with torch.no_grad():
            losses += [step(image, label, RowGenerator(i))["loss"].item() for i in range(2)]
    assert losses[:2] == pytest.approx(losses[2:], rel=1e-6)
