"""The adversarial loss: its gradients, the training of its discriminator and its state dict."""

import copy
import io

import pytest
import torch

from losses import build_kd
from losses.adv import Adversarial, adv_loss, discriminator_loss
from utils.types import Output

LABEL = torch.zeros(2, 16, 16, dtype=torch.long)


def make_outputs(seed: int = 0, size: tuple[int, int] = (9, 12)) -> tuple[Output, Output]:
    generator = torch.Generator().manual_seed(seed)
    s, t = (torch.randn(2, 5, *size, generator=generator) for _ in range(2))
    return Output(s.requires_grad_(), (), s), Output(t, (), t)


def save_and_load_state(loss: Adversarial) -> dict:
    """Save the state dict of a loss to a file and load it again, as a checkpoint does."""
    file = io.BytesIO()
    torch.save(loss.state_dict(), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def copy_weights(loss: Adversarial) -> list[torch.Tensor]:
    return [value.detach().clone() for value in loss.discriminator.state_dict().values()]


def are_equal(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.fixture
def loss() -> Adversarial:
    torch.manual_seed(0)
    return Adversarial(8, 8, 5).train()


def test_hinge_losses():
    s, t = torch.tensor([-2.0, 0.5]), torch.tensor([0.25, 3.0])
    assert adv_loss(s).item() == 0.75
    assert discriminator_loss(s, t).item() == 0.75 / 2 + 1.5 / 2


def test_logits_that_overflowed_do_not_spoil_the_discriminator(loss):
    s, t = make_outputs()
    loss(s, t, LABEL)
    infinite = Output(s.logits.detach() * torch.inf, (), s.feat)
    assert not loss(infinite, t, LABEL).isfinite()
    assert all(value.isfinite().all() for value in copy_weights(loss))
    assert loss(s, t, LABEL).isfinite()


def test_the_student_gets_the_gradient_of_the_discriminator_before_its_update(loss):
    s, t = make_outputs()
    twin = Adversarial(8, 8, 5).train()
    twin.load_state_dict(save_and_load_state(loss))
    value = loss(s, t, LABEL)
    value.backward()
    logits = s.logits.detach().clone().requires_grad_()
    expected = -twin.discriminator(logits).mean()
    expected.backward()
    assert value.item() == expected.item()
    torch.testing.assert_close(s.logits.grad, logits.grad, rtol=0, atol=0)
    assert s.logits.grad.abs().sum() > 0


def test_the_discriminator_learns_to_tell_student_from_teacher(loss):
    s, t = make_outputs()
    before = discriminator_loss(loss.discriminator(s.logits), loss.discriminator(t.logits)).item()
    for _ in range(8):
        loss(s, t, LABEL)
    after = discriminator_loss(loss.discriminator(s.logits), loss.discriminator(t.logits)).item()
    assert after < before - 0.5
    assert all(p.grad is None for p in loss.discriminator.parameters())


def test_the_loss_hides_its_discriminator_but_passes_on_dtype_and_mode(loss):
    assert list(loss.parameters()) == list(loss.buffers()) == []
    kd = build_kd("adv=0.001", 8, 8, 5)
    assert list(kd.parameters()) == []
    kd.double().eval()
    inner = kd.losses["adv"].discriminator
    assert all(p.dtype == torch.float64 for p in inner.parameters())
    assert not inner.training


def test_eval_mode_does_not_train_the_discriminator(loss):
    before = copy_weights(loss.eval())
    s, t = make_outputs()
    loss(s, t, LABEL).backward()
    assert s.logits.grad.abs().sum() > 0
    assert are_equal(before, copy_weights(loss))


def test_a_loaded_loss_continues_to_the_same_bits(loss):
    for seed in range(2):
        loss(*make_outputs(seed), LABEL)
    saved = save_and_load_state(loss)
    torch.manual_seed(7)
    twin = Adversarial(8, 8, 5).train()
    assert not are_equal(copy_weights(loss), copy_weights(twin))
    twin.load_state_dict(saved)
    for seed in range(2, 4):
        assert loss(*make_outputs(seed), LABEL).item() == twin(*make_outputs(seed), LABEL).item()
    assert are_equal(copy_weights(loss), copy_weights(twin))
    moments = [one.optimizer.state_dict()["state"] for one in (loss, twin)]
    for one, other in zip(*(m.values() for m in moments), strict=True):
        assert all(torch.equal(one[key], other[key]) for key in ("step", "exp_avg", "exp_avg_sq"))


def test_the_layout_of_the_logits_does_not_matter(loss):
    maps = 2 * torch.randn(8, loss.discriminator.norm.num_features, 45, 60) - 20
    gradients = []
    for layout in (torch.contiguous_format, torch.channels_last):
        logits = maps.clone(memory_format=layout).requires_grad_()
        # in a copy, because a forward pass changes the spectral norm
        copy.deepcopy(loss.discriminator)(logits).mean().backward()
        gradients.append(logits.grad)
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6 * gradients[0].abs().max().item())


@pytest.mark.parametrize("size", [(4, 4), (45, 45), (64, 128), (65, 97)])
def test_the_discriminator_accepts_maps_of_any_size(loss, size):
    scores = loss.discriminator(make_outputs(size=size)[0].logits)
    assert scores.shape[:2] == (2, 1)
    assert scores.shape[2] == max(size[0], 64) // 16 - 3
