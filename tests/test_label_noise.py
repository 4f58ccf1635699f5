"""The label planes of an assisted teacher: codes, pixel noise, label dropout, and the widened stem."""

import numpy as np
import pytest
import torch

from models import build_model
from models.backbones import find_stem_convs
from models.label_noise import CODES, LabelNoise, compute_noised_planes, list_fitting_codes, make_fixed_table
from utils.errors import UserError
from utils.seeding import RowGenerator


def make_label_map(batch=3, size=(9, 14), classes=5, seed=0):
    """Draw random labels ``[batch, height, width]``, with some ignored pixels in the first row."""
    label = torch.randint(0, classes, (batch, *size), generator=torch.Generator().manual_seed(seed))
    label[:, 0, :4] = 255
    return label.to(torch.uint8)


def test_the_fixed_table_at_21_classes_is_that_of_the_release():
    assert make_fixed_table(21).tolist() == [(k - 11) / 10 for k in range(22)]


@pytest.mark.parametrize("classes", [2, 11, 19, 21, 150, 171, 182])
def test_the_fixed_table_spans_the_same_interval_for_any_class_count(classes):
    table = make_fixed_table(classes)
    assert len(table) == classes + 1
    assert table[0].item() == pytest.approx(-1.1)
    assert table[-1].item() == pytest.approx(1.0)
    assert (table.diff() > 0).all()


def test_planes_equal_a_loop_over_pixels():
    label = make_label_map()
    codes, noise = torch.randn(3, 6), torch.randn(3, 9, 14)
    plane = compute_noised_planes(label, codes, noise, 0.03, 100.0)
    expected = np.empty((3, 9, 14))
    for b, y, x in np.ndindex(3, 9, 14):
        k = min(int(label[b, y, x]), 5)
        expected[b, y, x] = 100 * (codes[b, k] + 0.03 * noise[b, y, x])
    np.testing.assert_allclose(plane[:, 0].numpy(), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_random_codes_are_one_number_per_image_and_class(dtype):
    label = make_label_map().to(dtype)
    plane = LabelNoise(5, "random", 0.0, 10.0)(label, RowGenerator(7))[:, 0]
    values = set()
    for b in range(3):
        for k in (0, 1, 2, 3, 4, 255):
            codes = plane[b][label[b] == k].unique()
            assert len(codes) == 1
            values.add(codes.item())
    assert len(values) == 18  # 3 images x (5 classes + ignore): every code differs


def test_mean_and_deviation_of_codes_and_pixel_noise():
    label = make_label_map(500, (20, 20))
    noise = LabelNoise(5, "random", 0.03, 1.0)
    plane = noise(label, RowGenerator(1))[:, 0]
    codes = LabelNoise(5, "random", 0.0, 1.0)(label, RowGenerator(1))[:, 0]
    assert codes[:, 5, 5].mean().item() == pytest.approx(0, abs=0.15)
    assert codes[:, 5, 5].std().item() == pytest.approx(1, abs=0.1)
    residual = plane - codes
    assert residual.std().item() == pytest.approx(0.03, rel=0.02)
    assert residual.mean().item() == pytest.approx(0, abs=1e-3)


def test_shuffled_codes_are_the_fixed_table_in_another_order():
    codes = LabelNoise(21, "shuffled", 0.0, 1.0).draw_codes(make_fixed_table(21), 4, RowGenerator(3), 0)
    for row in codes:
        assert sorted(row.tolist()) == make_fixed_table(21).tolist()
    assert len({tuple(row.tolist()) for row in codes}) == 4


def test_paths_are_independent_and_draws_can_be_repeated():
    label = make_label_map()
    noise = LabelNoise(5, "random", 0.03, 100.0)
    first, second = (noise(label, RowGenerator(5), path) for path in (0, 1))
    assert abs(torch.corrcoef(torch.stack([first.flatten(), second.flatten()]))[0, 1]) < 0.6
    assert not torch.equal(first, second)
    assert torch.equal(first, noise(label, RowGenerator(5), 0))
    assert not torch.equal(first, noise(label, RowGenerator(6), 0))


def test_each_path_has_its_own_pixel_noise():
    label = make_label_map()
    clean = LabelNoise(5, "fixed", 0.0, 100.0)(label, RowGenerator(5))
    noise = LabelNoise(5, "fixed", 0.03, 100.0)
    first, second = ((noise(label, RowGenerator(5), path) - clean).flatten() for path in (0, 1))
    assert abs(torch.corrcoef(torch.stack([first, second]))[0, 1]) < 4 / len(first) ** 0.5


def test_one_hot_planes():
    label = make_label_map(3)
    noise = LabelNoise(5, "onehot", 0.0, 100.0)
    planes = noise(label, RowGenerator(1))
    assert noise.planes == 5
    assert planes.shape == (3, 5, *label.shape[1:])
    for k in range(5):
        assert torch.equal(planes[:, k], 100.0 * (label == k))
    noisy = LabelNoise(5, "onehot", 0.03, 100.0)(label, RowGenerator(1)) - planes
    assert noisy.std().item() == pytest.approx(3, rel=0.1)
    flat = noisy.transpose(0, 1).flatten(1)  # each plane of each image has its own noise
    assert torch.corrcoef(flat).fill_diagonal_(0).abs().max() < 0.5
    assert not torch.equal(noisy[0], noisy[1])


@pytest.mark.parametrize("codes", CODES)
def test_a_sample_sees_the_same_noise_in_every_split_of_the_batch(codes):
    label = make_label_map(4)
    noise = LabelNoise(5, codes, 0.03, 100.0, code_std=0.3)
    whole = noise(label, RowGenerator(5))
    halves = [noise(label[i : i + 2], RowGenerator(5, i)) for i in (0, 2)]
    assert torch.equal(whole, torch.cat(halves))


def test_near_codes_are_the_table_plus_scaled_random_codes():
    label = make_label_map(4)
    fixed, random = (LabelNoise(5, kind, 0.0, 1.0)(label, RowGenerator(3)) for kind in ("fixed", "random"))
    assert torch.equal(LabelNoise(5, "near", 0.0, 1.0, 0.0)(label, RowGenerator(3)), fixed)
    torch.testing.assert_close(LabelNoise(5, "near", 0.0, 1.0, 0.3)(label, RowGenerator(3)), fixed + 0.3 * random)
    far = LabelNoise(5, "near", 0.0, 1e-6, 1e6)(label, RowGenerator(3))
    torch.testing.assert_close(far, random, rtol=0, atol=2e-6)
    assert LabelNoise(5, "near", 0.0, 1.0, 0.3).config["code_std"] == 0.3
    assert "code_std" not in LabelNoise(5, "fixed", 0.0, 1.0, 0.3).config


@pytest.mark.parametrize("strength", [None, -0.1, float("nan"), float("inf")])
def test_near_codes_need_a_strength(strength):
    with pytest.raises(UserError, match="need --code-std S"):
        LabelNoise(5, "near", 0.0, 1.0, strength)


@pytest.mark.parametrize("backbone", ["resnet18_v1s", "resnet18", "mobilenetv2_100", "stdc1", "hrnet_w18_small_v2"])
def test_the_widened_stem_keeps_its_rgb_weights(backbone):
    torch.manual_seed(0)
    plain = build_model("fcn", backbone, 5)
    torch.manual_seed(0)
    wide = build_model("fcn", backbone, 5, in_channels=4)
    rgb_weight = find_stem_convs(plain.backbone)[0].weight
    wide_weight = find_stem_convs(wide.backbone)[0].weight
    assert torch.equal(rgb_weight, wide_weight[:, :3])
    assert wide_weight[:, 3].std().item() == pytest.approx(0.1, rel=0.35)
    x = torch.randn(2, 3, 33, 33)
    zero = torch.cat([x, torch.zeros(2, 1, 33, 33)], 1)
    torch.manual_seed(1)
    expected = find_stem_convs(plain.backbone)[0](x)
    torch.testing.assert_close(find_stem_convs(wide.backbone)[0](zero), expected)
    assert wide.eval()(zero).logits.shape[:2] == (2, 5)


def test_label_dropout_zeroes_the_plane_of_some_images_in_both_paths():
    noise = LabelNoise(5, "near", 0.03, 1.0, 0.1)
    label = torch.randint(0, 5, (64, 4, 4))
    image = torch.randn(64, 3, 4, 4)
    first, second = (noise.add_planes(image, label, RowGenerator(5), path, dropout=0.5) for path in (0, 1))
    hidden = (first[:, 3] == 0).flatten(1).all(1)
    assert 16 < hidden.sum() < 48
    assert torch.equal(hidden, (second[:, 3] == 0).flatten(1).all(1))
    whole = noise.add_planes(image, label, RowGenerator(5), 0)
    assert torch.equal(first[~hidden], whole[~hidden])  # images that keep their plane do not change
    assert torch.equal(first[:, :3], image)
    halves = [
        noise.add_planes(image[b : b + 32], label[b : b + 32], RowGenerator(5, b), 0, dropout=0.5) for b in (0, 32)
    ]
    assert torch.equal(torch.cat(halves), first)  # the noise does not depend on how the batch is split over ranks
    assert (noise.add_planes(image, label, RowGenerator(5), 0, dropout=1.0)[:, 3] == 0).all()


def test_codes_are_listed_by_their_number_of_planes():
    assert list_fitting_codes(5, 1) == ["random", "near", "fixed", "shuffled"]
    assert list_fitting_codes(5, 2) == []
    assert "onehot" in list_fitting_codes(5, LabelNoise(5, "onehot", 0.0, 1.0).planes)
