"""Test task losses against values of MMSegmentation's code (tests/data/mmseg_losses.npz) and other formulas."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from losses.task import (
    CRITERIA,
    TaskLoss,
    binary_dice_loss,
    cross_entropy,
    detail_loss,
    dice_loss,
    find_boundaries,
    ohem_loss,
    select_hard_pixels,
)
from losses.upsampled_cross_entropy import upsampled_cross_entropy
from utils.errors import UserError
from utils.types import Output, Supervision


@pytest.fixture(scope="module")
def reference():
    with np.load(Path(__file__).parent / "data/mmseg_losses.npz") as data:
        return {key: torch.from_numpy(data[key]) for key in data}


@pytest.fixture(scope="module")
def label(reference):
    return reference["label"][:, 0].long()


def test_cross_entropy_is_the_mean_over_valid_pixels(reference, label):
    """MMSegmentation divides by all pixels. LAD and this project divide by the valid ones."""
    ours = cross_entropy(reference["seg_logits"], label, True) * (label != 255).float().mean()
    torch.testing.assert_close(ours, reference["plain_ce_loss"], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("threshold", "kept"), [(0.7, 10000), (0.7, 200), (0.1, 200)])
def test_ohem_matches_mmsegmentation(reference, label, threshold, kept):
    name = f"ohem_thr{threshold}_keep{kept}"
    loss = ohem_loss(reference["seg_logits"], label, True, threshold, kept)
    torch.testing.assert_close(loss, reference[f"{name}_loss"], rtol=1e-6, atol=1e-6)
    logits = F.interpolate(reference["seg_logits"], label.shape[-2:], mode="bilinear", align_corners=True)
    pixels = F.cross_entropy(logits, label, ignore_index=255, reduction="none")
    mask = select_hard_pixels(pixels, label, threshold, kept * len(label))
    assert torch.equal(mask, reference[f"{name}_weight"].bool())


def test_detail_loss_matches_mmsegmentation(reference, label):
    assert torch.equal(find_boundaries(label), reference["detail_target"][:, 0].bool())
    logits = F.interpolate(reference["detail_logits"], label.shape[-2:], mode="bilinear", align_corners=True)
    target = F.one_hot(reference["detail_target"][:, 0].long(), 2).permute(0, 3, 1, 2).float()
    dice = binary_dice_loss(logits.sigmoid(), target)
    torch.testing.assert_close(dice, reference["detail_loss_dice"], rtol=1e-6, atol=1e-6)
    expected = reference["detail_loss_ce"] + reference["detail_loss_dice"]
    torch.testing.assert_close(detail_loss(reference["detail_logits"], label, True), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", CRITERIA)
@pytest.mark.parametrize("size", [(17, 23), (1, 1)])
def test_the_loss_without_labelled_pixels_is_zero_at_any_size(kind, size):
    label = torch.full((2, *size), 255)
    logits = torch.randn(2, 2, 3, 3, requires_grad=True)
    loss = CRITERIA[kind](logits, label, False)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(logits.grad).all()
    assert kind == "detail" or (loss == 0 and not logits.grad.any())


@pytest.mark.parametrize("kind", CRITERIA)
def test_the_loss_is_accurate_under_autocast(kind):
    label = torch.randint(0, 2, (2, 24, 24))
    label[0, :3] = 255
    logits = torch.randn(2, 2, 3, 3, dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        loss = CRITERIA[kind](logits, label, False)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, CRITERIA[kind](logits.float(), label, False), rtol=0.02, atol=0.02)


@pytest.mark.parametrize("kind", CRITERIA)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_the_loss_is_computed_in_full_precision(kind, dtype):
    """The loss and its upsampling use at least float32. Logits in float64 stay float64."""
    label = torch.randint(0, 2, (2, 24, 24))
    logits = torch.randn(2, 2, 3, 3).to(dtype)
    loss = CRITERIA[kind](logits, label, False)
    expected = CRITERIA[kind](logits.double(), label, False)
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_task_loss_adds_up_by_kind_and_weight(reference, label):
    kinds = (Supervision("ohem", True), Supervision("ce", False, 0.5), Supervision("detail", True, 1.0))
    output = Output(reference["seg_logits"], (reference["seg_logits"], reference["detail_logits"]), torch.zeros(()))
    parts = []
    for supervision, logits in zip(kinds, (output.logits, *output.aux), strict=True):
        parts.append(CRITERIA[supervision.kind](logits, label, supervision.align_corners))
    total, _ = TaskLoss(kinds)(output, label)
    torch.testing.assert_close(total, parts[0] + 0.5 * parts[1] + parts[2])
    total, _ = TaskLoss(kinds, 0.1)(output, label)
    torch.testing.assert_close(total, parts[0] + 0.1 * (parts[1] + parts[2]))


def test_the_error_for_an_unknown_criterion_suggests_the_nearest():
    with pytest.raises(UserError, match="'detail'"):
        TaskLoss([Supervision("details")])


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("size", [(37, 50), (5, 7), (1, 1)])
@pytest.mark.parametrize("deterministic", [True, False])
def test_cross_entropy_in_strips_has_the_value_and_gradient_of_the_plain_one(
    align_corners, smoothing, size, deterministic
):
    label = torch.randint(0, 9, (2, *size))
    label[0, :2] = 255
    values = []
    grads = []
    for in_strips in (True, False):
        torch.manual_seed(0)
        logits = torch.randn(2, 9, 5, 7, dtype=torch.float64, requires_grad=True)
        if in_strips:
            torch.use_deterministic_algorithms(deterministic)
            loss = upsampled_cross_entropy(logits, label, align_corners, smoothing)
            torch.use_deterministic_algorithms(False)
        else:
            up = F.interpolate(logits, size, mode="bilinear", align_corners=align_corners)
            loss = F.cross_entropy(up, label, ignore_index=255, reduction="sum", label_smoothing=smoothing)
        (3 * loss).backward()
        values.append(loss.detach())
        grads.append(logits.grad)
    torch.testing.assert_close(*values, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(*grads, rtol=1e-10, atol=1e-12)


def test_dice_loss_matches_a_hand_computation():
    """Predictions are certain. One of the two pixels of class 0 is taken for class 1; the pixel of class 1 is right."""
    label = torch.tensor([[[0, 0, 1, 255]]])
    certain = torch.tensor([[[[9.0, -9, -9, 9]], [[-9, 9, 9, -9]], [[-99, -99, -99, -99]]]]) * 9
    expected = ((1 - 2 * 1 / (1 + 2)) + (1 - 2 * 1 / (2 + 1))) / 2  # the third class has no pixel: it is ignored
    torch.testing.assert_close(dice_loss(certain, label, False), torch.tensor(expected))
    uniform = dice_loss(torch.zeros(1, 3, 1, 4), label, False)
    per_class = torch.tensor([1 - 2 * (2 / 3) / (3 / 9 + 2), 1 - 2 * (1 / 3) / (3 / 9 + 1)])
    torch.testing.assert_close(uniform, per_class.mean())


def test_the_task_loss_flag_replaces_all_losses_but_the_detail_loss(reference, label):
    supervisions = Supervision("ce", True), Supervision("ohem", True, 0.4), Supervision("detail", True, 0.5)
    logits = reference["seg_logits"]
    detail = reference["detail_logits"]
    total, terms = TaskLoss(supervisions, criterion="ce+dice")(Output(logits, (logits, detail), logits), label)
    both = cross_entropy(logits, label, True) + dice_loss(logits, label, True)
    torch.testing.assert_close(terms["ce"], both)
    expected = both + 0.4 * both + 0.5 * detail_loss(detail, label, True)
    torch.testing.assert_close(total, expected)
    with pytest.raises(UserError, match="unknown loss in --task-loss 'dize'; did you mean 'dice'"):
        TaskLoss(supervisions, criterion="ce+dize")


def test_cross_entropy_over_all_pixels_matches_mmsegmentation(reference, label):
    logits = reference["seg_logits"]
    _, terms = TaskLoss([Supervision("ce", True)], ignored_in_mean=True)(Output(logits, (), logits), label)
    torch.testing.assert_close(terms["ce"], reference["plain_ce_loss"], rtol=1e-6, atol=1e-6)
