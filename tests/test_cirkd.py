"""CIRKD's losses and queues, compared with reference numbers and an independent formula, and in short runs."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import train_student
from losses import build_kd, cirkd_memory
from losses.cirkd import cirkd_loss
from losses.cirkd_memory import CIRKDPixel, CIRKDRegion, memory_loss, select_pixel_keys
from losses.vector_queues import write_to_queues
from tests.conftest import TINY
from tests.networks import write_checkpoint
from utils import checkpoint
from utils.errors import UserError
from utils.types import Output

MEMORY_LOSSES = {"pixel": CIRKDPixel, "region": CIRKDRegion}
KD = "kd=1,cirkd=1,cirkd_pixel=0.1:size=40,cirkd_region=0.1:size=5"
QUEUES = [f"kd.losses.cirkd_{name}.queue" for name in MEMORY_LOSSES]


def load_reference_outputs(golden) -> tuple[Output, Output]:
    return tuple(Output(golden[f"{who}_logits"], (), golden[f"{who}_feat"]) for who in ("student", "teacher"))


def make_reference_memory(kind: str, golden):
    """Build a memory loss with the projector weights and the queue of the reference."""
    queue = golden[f"{kind}_queue"]
    memory = MEMORY_LOSSES[kind](6, 9, 5, size=queue.shape[1]).double()
    names = ("project1", "project1_bn_weight", "project1_bn_bias", "project2")
    keys = ("0.weight", "1.weight", "1.bias", "3.weight")
    weights = {f"projector.{key}": golden[name] for key, name in zip(keys, names, strict=True)}
    missing, _ = memory.load_state_dict({**weights, "queue": queue}, strict=False)
    assert {key for key in missing if "running" not in key and "batches" not in key} == {"pointer"}
    return memory


def make_random_outputs(seed: int = 0, student_channels: int = 6) -> tuple[Output, Output, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    s, t = (torch.randn(2, c, 4, 6, generator=generator) for c in (student_channels, 9))
    label = torch.randint(0, 5, (2, 16, 24), generator=generator)
    return Output(s[:, :5], (), s.requires_grad_()), Output(t[:, :5], (), t.requires_grad_()), label


def test_the_mini_batch_loss_matches_the_reference(golden):
    s, t = load_reference_outputs(golden)
    expected = golden["loss_cirkd_minibatch"].item()
    assert cirkd_loss(s.feat, t.feat).item() == pytest.approx(expected, rel=1e-6)


def test_the_mini_batch_loss_matches_an_independent_formula():
    s, t, _ = make_random_outputs()
    values = []
    for i in range(2):
        for j in range(2):
            rows = []
            for feat in (s.feat, t.feat):
                a, b = (feat[k].detach().double().reshape(len(feat[k]), -1).numpy() for k in (i, j))
                e = np.exp((a / np.linalg.norm(a, axis=0)).T @ (b / np.linalg.norm(b, axis=0)) / 0.2)
                rows.append(e / e.sum(1, keepdims=True))
            q, p = rows
            values.append((p * np.log(p / q)).sum(1).mean())
    assert cirkd_loss(s.feat, t.feat, 0.2).item() == pytest.approx(np.mean(values), rel=1e-5)


@pytest.mark.parametrize("kind", MEMORY_LOSSES)
def test_the_memory_losses_match_the_reference(golden, kind):
    memory = make_reference_memory(kind, golden).eval()
    memory.projector.train()
    loss = memory(*load_reference_outputs(golden), golden["label"].long())
    assert loss.item() == pytest.approx(golden[f"loss_cirkd_memory_{kind}"].item(), rel=1e-6)
    assert torch.equal(memory.queue, golden[f"{kind}_queue"]), "eval mode stores nothing"


def test_the_region_queue_after_one_update_matches_the_reference(golden):
    memory = make_reference_memory("region", golden).train()
    memory(*load_reference_outputs(golden), golden["label"].long())
    np.testing.assert_allclose(memory.queue, golden["region_queue_after_one_update"], rtol=1e-6, atol=1e-7)
    assert memory.pointer.tolist() == golden["region_pointer_after"].tolist()


def test_stored_pixels_belong_to_the_class_of_their_queue(golden):
    memory = make_reference_memory("pixel", golden).train()
    _, teacher = load_reference_outputs(golden)
    label = golden["label"].long()
    memory(*load_reference_outputs(golden), label)
    small = F.interpolate(golden["label"][:, None], teacher.feat.shape[-2:], mode="nearest")[:, 0].long()
    unit = F.normalize(teacher.feat, dim=1).permute(0, 2, 3, 1)
    for k in range(5):
        stored = min(16, int((small[0] == k).sum())) + min(16, int((small[1] == k).sum()))
        assert memory.pointer[k] == stored % 24
        assert stored > 2
        distance = torch.cdist(memory.queue[k, : min(stored, 24)], unit[small == k]).amin(1)
        assert distance.max() < 1e-6
        assert torch.equal(memory.queue[k, stored:], golden["pixel_queue"][k, stored:])


def test_pixels_of_an_image_are_drawn_without_repetition():
    feat = torch.arange(12.0).view(1, 12, 1)
    member = torch.zeros(1, 3, 12, dtype=torch.bool)
    member[0, 0, :7] = True
    member[0, 1, 7:9] = True
    draws = set()
    for seed in range(20):
        torch.manual_seed(seed)
        keys, valid = select_pixel_keys(feat, member, 4)
        assert valid[0].sum(1).tolist() == [4, 2, 0]
        first = keys[0, 0, :, 0].tolist()
        assert len(set(first)) == 4
        assert max(first) < 7
        assert set(keys[0, 1, valid[0, 1], 0].tolist()) == {7, 8}
        draws |= set(first)
    assert draws == set(range(7))


def test_a_full_queue_continues_at_its_start():
    queue, pointer = torch.zeros(2, 5, 1), torch.tensor([3, 0])
    keys = torch.arange(1.0, 17).view(2, 2, 4, 1)  # image 0: 1..4 and 5..8, image 1: 9..12 and 13..16
    valid = torch.ones(2, 2, 4, dtype=torch.bool)
    valid[0, 0, 2:] = valid[1, 0, 1:] = False
    write_to_queues(queue, pointer, keys, valid)
    assert queue[0, :, 0].tolist() == [9, 0, 0, 1, 2]
    assert queue[1, :, 0].tolist() == [14, 15, 16, 8, 13], "of eight keys the last five"
    assert pointer.tolist() == [1, 3]


def test_default_sizes_match_the_released_code():
    for classes, pixel, region in ((19, 216, 54), (21, 196, 49), (11, 373, 94)):
        assert CIRKDPixel(1, 1, classes, size=8).contrasts_per_class == pixel
        assert CIRKDRegion(1, 1, classes, size=8).contrasts_per_class == region
    assert CIRKDPixel(1, 1, 2).queue.shape == (2, 20_000, 1)
    assert CIRKDRegion(1, 1, 2).queue.shape == (2, 2000, 1)


def test_gradients_reach_the_student_and_the_projector_only():
    student, teacher, label = make_random_outputs()
    kd = build_kd("cirkd=1,cirkd_pixel=0.1:size=40,cirkd_region=0.1:size=9", 6, 9, 5).train()
    total, terms = kd(student, teacher, label)
    total.backward()
    expected = terms["cirkd"] + 0.1 * terms["cirkd_pixel"] + 0.1 * terms["cirkd_region"]
    assert total.item() == pytest.approx(expected.item())
    assert student.feat.grad.abs().sum() > 0
    assert teacher.feat.grad is None
    parameters = dict(kd.named_parameters())
    assert len(parameters) == 4, "both memories share one projector"
    assert all(p.grad.abs().sum() > 0 for p in parameters.values())


@pytest.mark.parametrize("kd", ["cirkd=1", "cirkd_pixel=1:size=10", "cirkd_region=1:size=10"])
def test_no_similarities_are_kept_for_the_backward_pass(kd):
    student, teacher, label = make_random_outputs()
    sizes = []

    def record_size(tensor: torch.Tensor) -> torch.Tensor:
        sizes.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(record_size, lambda tensor: tensor):
        build_kd(kd, 6, 9, 5).train()(student, teacher, label)
    assert 0 < max(sizes) <= 50 * 9, "24 pixels an image: 24 x 24 or 24 x 50 similarities, 50 contrasts of 9 channels"


def test_a_training_step_updates_the_queues_and_they_depend_only_on_the_seed():
    queues = []
    for _ in range(2):
        torch.manual_seed(3)
        kd = build_kd("cirkd_pixel=1:size=40,cirkd_region=1:size=9", 6, 9, 5).train()
        for iteration in range(2):
            before = {name: loss.queue.clone() for name, loss in kd.losses.items()}
            _, terms = kd(*make_random_outputs(iteration))
            assert all(math.isfinite(term.item()) for term in terms.values())
            for name, loss in kd.losses.items():
                assert not torch.equal(before[name], loss.queue)
                torch.testing.assert_close(loss.queue.norm(dim=2), torch.ones(loss.queue.shape[:2]))
        assert kd.losses["cirkd_region"].pointer.tolist() == [4] * 5
        queues.append(kd.losses["cirkd_pixel"].queue)
    assert torch.equal(*queues)


@pytest.mark.parametrize("kind", MEMORY_LOSSES)
def test_a_batch_without_labels_has_loss_zero_and_stores_nothing(kind):
    student, teacher, label = make_random_outputs()
    memory = MEMORY_LOSSES[kind](6, 9, 5, size=7).train()
    before = memory.queue.clone()
    loss = memory(student, teacher, torch.full_like(label, 255))
    loss.backward()
    assert loss.item() == 0
    assert not student.feat.grad.any()
    assert torch.equal(memory.queue, before)


def test_a_lone_labelled_pixel_counts_the_same_on_one_and_on_two_ranks(monkeypatch):
    """If one of two ranks has the only labelled pixel, the mean of both losses equals the loss on one rank."""
    s, t = (F.normalize(torch.randn(2, 6, 3), dim=2) for _ in range(2))
    contrasts = F.normalize(torch.randn(4, 3), dim=1)
    labelled = torch.zeros(2, 6, dtype=torch.bool)
    labelled[0, 3] = True
    whole = memory_loss(s, t, contrasts, labelled)
    monkeypatch.setattr(cirkd_memory, "all_reduce", lambda count, op: torch.full_like(count, 0.5))
    parts = [memory_loss(s[i : i + 1], t[i : i + 1], contrasts, labelled[i : i + 1]) for i in range(2)]
    assert torch.stack(parts).mean().item() == pytest.approx(whole.item())


@pytest.mark.parametrize("option", ["size=0", "size=2.5", "contrasts=nan", "per_image=-1"])
def test_a_bad_size_is_explained(option):
    with pytest.raises(UserError, match=rf"{option.split('=')[0]}=.*positive whole number"):
        build_kd(f"cirkd_pixel=1:{option}", 6, 9, 5)


@pytest.mark.slow
def test_two_ranks_store_the_same_regions_as_one_rank(command, tmp_path):
    flags = [*TINY, "--freeze-bn", "--dropout", "0", "--skip-val", "--max-iterations", "2", "--kd", KD]
    flags += ["--teacher-pretrained", write_checkpoint(tmp_path / "teacher.pth", codes="random"), "--save-dir"]
    train_student.main([*flags, str(tmp_path / "1")])
    command("train_student.py", *flags, str(tmp_path / "2"), processes=2)
    one, two = (checkpoint.read(tmp_path / name / "last.pth")["losses"] for name in "12")
    pixels, regions = QUEUES
    np.testing.assert_allclose(one[regions], two[regions], rtol=1e-4, atol=1e-5)
    counts = pixels.replace("queue", "pointer")
    assert torch.equal(one[counts], two[counts]), "as many pixels"
