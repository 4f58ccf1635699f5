"""Test prediction and evaluation: scales, flipping, windows, resizing and confusion matrices."""

import cv2
import numpy as np
import pytest
import torch
from torch import nn

from datasets import build_dataset
from engine.evaluator import evaluate
from engine.preview import make_preview
from engine.runtime import Runtime
from models import build_model
from models.label_noise import LabelNoise
from models.prediction import Predictor, resize_images_to_fit, resize_labels_to_fit
from tests.conftest import BACKBONE
from utils.bilinear import upsample_argmax
from utils.errors import UserError
from utils.pixels import CONVENTIONS
from utils.seeding import RowGenerator

BGR = CONVENTIONS["bgr_mean"]
GENERATORS = [RowGenerator(0)]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return build_model("pspnet", BACKBONE, 7).eval()


def make_image(height=45, width=70, seed=0):
    """Return a batch of one random image."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (1, 3, height, width), generator=generator, dtype=torch.uint8)


def make_label(x):
    """Return labels of class 0 for a batch of images."""
    return torch.zeros(x.shape[0], *x.shape[-2:], dtype=torch.uint8)


def test_logits_are_those_of_the_network_upsampled(model):
    x = make_image()
    logits = Predictor(model, BGR)(x, make_label(x), GENERATORS)
    expected = nn.functional.interpolate(
        model(BGR.normalize(x)).logits, x.shape[-2:], mode="bilinear", align_corners=True
    )
    torch.testing.assert_close(logits, expected)


def test_an_image_of_one_row_keeps_one_row(model):
    x = make_image(1, 700)
    assert resize_images_to_fit(x, (64, 32)).shape == (1, 3, 1, 64)
    assert resize_labels_to_fit(make_label(x), (64, 32)).shape == (1, 1, 64)


def test_a_preview_names_an_image_that_cannot_be_read(model):
    class Broken(list):
        def load_sample(self, index):
            raise UserError("a.png cannot be read")

    with pytest.raises(UserError, match=r"a\.png cannot be read"):
        make_preview(Predictor(model, BGR), Broken([0]), [(0, 0, 0)] * 7)


def test_a_preview_frees_memory_and_tries_again(model, monkeypatch):
    calls = []
    classes = Predictor.predict_classes

    def run_out_of_memory_once(self, *arguments):
        calls.append(1)
        if len(calls) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return classes(self, *arguments)

    dataset = build_dataset("toy", "", "val")
    palette = dataset.spec.palette
    expected = make_preview(Predictor(model, BGR), dataset, palette, 1)
    monkeypatch.setattr(Predictor, "predict_classes", run_out_of_memory_once)
    assert np.array_equal(make_preview(Predictor(model, BGR), dataset, palette, 1), expected)
    assert len(calls) == 2


def test_with_flipping_a_mirrored_input_gives_mirrored_logits(model):
    x = make_image()
    predict = Predictor(model, BGR, flip=True)
    mirrored = predict(x.flip(3), make_label(x), GENERATORS).flip(3)
    torch.testing.assert_close(predict(x, make_label(x), GENERATORS), mirrored, rtol=0, atol=1e-5)


@pytest.mark.parametrize("options", [{"scales": (1.0,)}, {"window": (45, 70)}, {"window": (96, 96)}])
def test_trivial_options_equal_the_plain_result(model, options):
    x = make_image()
    plain = Predictor(model, BGR)(x, make_label(x), GENERATORS)
    other = Predictor(model, BGR, **options)(x, make_label(x), GENERATORS)
    torch.testing.assert_close(plain, other, rtol=0, atol=1e-5)


def test_overlapping_windows_are_averaged(model):
    x = make_image(64, 100)
    logits = Predictor(model, BGR, window=(64, 64), stride=(32, 32))(x, make_label(x), GENERATORS)
    parts = [Predictor(model, BGR)(x[..., a : a + 64], make_label(x), GENERATORS) for a in (0, 32, 36)]
    torch.testing.assert_close(logits[..., :32], parts[0][..., :32])
    torch.testing.assert_close(logits[..., 36:64], (parts[0][..., 36:] + parts[1][..., 4:32] + parts[2][..., :28]) / 3)
    torch.testing.assert_close(logits[..., 96:], parts[2][..., 60:])


@pytest.mark.parametrize("options", [{"window": (64, 64)}, {}])
def test_a_stride_that_leaves_pixels_out_is_refused(model, options):
    with pytest.raises(UserError, match="--stride 40 80 needs a --window of at least its size"):
        Predictor(model, BGR, stride=(40, 80), **options)


def test_scales_are_averaged(model):
    x = make_image()
    both = Predictor(model, BGR, scales=(0.5, 1.5))(x, make_label(x), GENERATORS)
    single = [Predictor(model, BGR, scales=(s,))(x, make_label(x), GENERATORS) for s in (0.5, 1.5)]
    torch.testing.assert_close(both, (single[0] + single[1]) / 2)


def test_logits_of_a_scaled_image_are_resized_directly_to_the_image(model):
    """As in LAD's eval.py, the scaled size is rounded down, and the logits are resized directly to the image's size."""
    x = make_image(45, 70)
    scaled = nn.functional.interpolate(BGR.normalize(x), scale_factor=0.75, mode="bilinear", align_corners=True)
    assert scaled.shape[-2:] == (33, 52)
    logits = model(scaled, with_aux=False).logits
    expected = nn.functional.interpolate(logits, (45, 70), mode="bilinear", align_corners=True)
    predict = Predictor(model, BGR, scales=(0.75,))
    torch.testing.assert_close(predict(x, make_label(x), GENERATORS), expected)
    assert torch.equal(predict.predict_classes(x, make_label(x), GENERATORS), expected.argmax(1))


@pytest.mark.parametrize("size", [(1, 1), (7, 3), (33, 17), (97, 131)])
def test_images_of_any_size_have_finite_logits(model, size):
    x = make_image(*size)
    logits = Predictor(model, BGR, scales=(0.5, 1.0), flip=True)(x, make_label(x), GENERATORS)
    assert logits.shape == (1, 7, *size)
    assert torch.isfinite(logits).all()


def test_the_score_of_a_label_assisted_teacher_does_not_depend_on_the_world_size():
    torch.manual_seed(0)
    teacher = build_model("pspnet", BACKBONE, 7, in_channels=4)
    dataset = build_dataset("toy", "", "val")
    predict = Predictor(teacher, BGR, LabelNoise(7, "random", 0.03, 100.0))
    whole = evaluate(predict, dataset, 7, Runtime()).confusion
    parts = [evaluate(predict, dataset, 7, Runtime(rank=rank, size=2)).confusion for rank in (0, 1)]
    assert np.array_equal(whole, sum(parts))
    assert whole.sum() == sum((dataset.read(i)[1] != 255).sum() for i in range(len(dataset)))
    other = evaluate(predict, dataset, 7, Runtime(), seed=1).confusion
    assert not np.array_equal(whole, other)
    assert teacher.training  # the evaluation restores the training mode


def test_a_rank_without_images_counts_no_pixels():
    dataset = build_dataset("toy", "", "val")
    torch.manual_seed(0)
    predict = Predictor(build_model("pspnet", BACKBONE, 7), BGR)
    assert evaluate(predict, dataset, 7, Runtime(rank=5, size=6)).confusion.sum() == 0


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize(
    ("low", "size"), [((5, 7), (33, 50)), ((9, 13), (9, 13)), ((1, 1), (4, 3)), ((30, 40), (11, 17))]
)
def test_banded_argmax_is_the_argmax_of_the_upsampled_logits(align_corners, low, size):
    logits = torch.randn(2, 21, *low, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = nn.functional.interpolate(logits, size, mode="bilinear", align_corners=align_corners).argmax(1)
    for rows in (1, 8, 64):
        assert torch.equal(upsample_argmax(logits, size, align_corners, rows), expected)


def test_banded_argmax_of_smooth_logits():
    """Most pixels lie between neighbours of one class. Class 2 is the largest only between columns 9 and 10."""
    coarse = torch.randn(2, 21, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    logits = nn.functional.interpolate(coarse, (24, 31), mode="bicubic")
    logits[:, 0, :, 9] = 3 * logits.amax(1)[..., 9]
    logits[:, 0, :, 10] = -3 * logits.amax(1)[..., 10]
    logits[:, 1, :, 10] = 3 * logits.amax(1)[..., 10]
    logits[:, 1, :, 9] = -3 * logits.amax(1)[..., 9]
    logits[:, 2, :, 9:11] = 0.9 * logits.amax(1)[..., 9:11]
    expected = nn.functional.interpolate(logits, (190, 250), mode="bilinear", align_corners=True).argmax(1)
    assert (expected[:, :, 72:80] == 2).any()
    assert torch.equal(upsample_argmax(logits, (190, 250), True), expected)


def test_classes_are_the_argmax_of_the_logits(model):
    x = make_image(101, 77)
    for options in ({}, {"flip": True}, {"scales": (0.5, 1.0)}, {"window": (64, 64)}):
        predict = Predictor(model, BGR, **options)
        assert torch.equal(
            predict.predict_classes(x, make_label(x), GENERATORS), predict(x, make_label(x), GENERATORS).argmax(1)
        )


class ImagesOfTwoSizes(torch.utils.data.Dataset):
    """Hold five images of two sizes. The label of the last one is ignored everywhere."""

    def __len__(self):
        return 5

    def __getitem__(self, index):
        if index >= 5:
            raise IndexError
        height, width = (33, 40) if index % 3 else (40, 33)
        x = make_image(height, width, seed=index)[0]
        class_id = 255 if index == 4 else index
        truth = torch.full(x.shape[1:], class_id, dtype=torch.uint8)
        return x, truth, index


@pytest.mark.parametrize("assisted", [False, True])
def test_images_of_equal_size_may_share_a_batch(assisted):
    torch.manual_seed(0)
    net = build_model("pspnet", BACKBONE, 7, in_channels=4 if assisted else 3).double()
    predict = Predictor(net, BGR, LabelNoise(7, "random", 0.03, 100.0) if assisted else None)
    predict.convention = DoubleConvention
    cpu = Runtime()
    one, four = (evaluate(predict, ImagesOfTwoSizes(), 7, cpu, batch_size=n) for n in (1, 4))
    assert np.array_equal(one.confusion, four.confusion)
    assert np.array_equal(one.areas, four.areas)
    assert np.array_equal(one.areas.sum(0)[1], one.confusion.sum(1))
    assert np.array_equal(one.areas.sum(0)[2], one.confusion.sum(0))
    assert not one.areas[4].any()


class DoubleConvention:
    """Normalise images in float64, for a network in float64."""

    @staticmethod
    def normalize(x):
        return BGR.normalize(x).double()


@pytest.mark.parametrize(
    ("size", "sides", "expected"),
    [
        ((375, 500), (2048, 512), (512, 683)),
        ((500, 375), (2048, 512), (683, 512)),
        ((100, 1000), (2048, 512), (205, 2048)),  # the long side is the limit
        ((1024, 2048), (2048, 1024), (1024, 2048)),
    ],
)
def test_images_are_resized_to_the_sizes_of_mmsegmentation(size, sides, expected):
    x = torch.zeros(1, 3, *size, dtype=torch.uint8)
    mask = torch.zeros(1, *size, dtype=torch.uint8)
    assert resize_images_to_fit(x, sides).shape == (1, 3, *expected)
    assert resize_labels_to_fit(mask, sides).shape == (1, *expected)


def test_resizing_follows_mmsegmentations_protocol(model):
    """OpenCV resizes the image. The logits are resized to the network's input size and then to the label's size."""
    x = make_image(45, 70)
    big = cv2.resize(x[0].permute(1, 2, 0).numpy(), (149, 96), interpolation=cv2.INTER_LINEAR)
    big = torch.from_numpy(big).permute(2, 0, 1)[None]
    logits = Predictor(model, BGR)(big, make_label(big), GENERATORS)
    expected = nn.functional.interpolate(logits, (45, 70), mode="bilinear", align_corners=True)
    predict = Predictor(model, BGR, resize=(200, 96))
    torch.testing.assert_close(predict(x, make_label(x), GENERATORS), expected)
    assert torch.equal(predict.predict_classes(x, make_label(x), GENERATORS), expected.argmax(1))
    assert torch.equal(predict.predict_classes(x), expected.argmax(1))  # a student needs no label
    assert not torch.equal(expected.argmax(1), Predictor(model, BGR).predict_classes(x, make_label(x), GENERATORS))


def test_a_resized_label_has_the_classes_of_the_nearest_pixels():
    mask = torch.randint(0, 7, (1, 45, 70), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    wide = resize_labels_to_fit(mask, (200, 96))
    rows, columns = torch.arange(96) * 45 // 96, torch.arange(149) * 70 // 149
    assert torch.equal(wide, mask[:, rows][:, :, columns])


def test_an_assisted_teacher_sees_its_label_at_the_size_of_the_image():
    torch.manual_seed(0)
    teacher = build_model("pspnet", BACKBONE, 7, in_channels=4).eval()
    noise = LabelNoise(7, "fixed", 0.0, 1.0)
    x = make_image(45, 70)
    mask = torch.randint(0, 7, (1, 45, 70), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    big = resize_images_to_fit(x, (200, 96))
    wide = resize_labels_to_fit(mask, (200, 96))
    expected = Predictor(teacher, BGR, noise)(big, wide, GENERATORS)
    expected = nn.functional.interpolate(expected, (45, 70), mode="bilinear", align_corners=True)
    torch.testing.assert_close(Predictor(teacher, BGR, noise, resize=(200, 96))(x, mask, GENERATORS), expected)
