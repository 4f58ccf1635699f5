"""Augmentation: the windowed resize is the full one; what a position draws does not depend on anything else."""

import colorsys
import pickle

import cv2
import numpy as np
import pytest
import torch

from datasets import build_dataset, build_train_and_val
from datasets.transforms import (
    AUGMENTATIONS,
    SCALE_RANGE,
    augment_cirkd,
    augment_mmseg,
    distort_colors,
    flip_at_random,
    is_balanced,
    list_scales,
    pad,
    resize_window,
)
from engine.loader import load_train_batches
from engine.runtime import Runtime
from tests.trees import camvid
from utils.errors import UserError

COLOR = (123, 117, 104)

SCALES = list_scales(*SCALE_RANGE)


def sample(height, width, seed=0, classes=21):
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    return image, rng.integers(0, classes, (height, width), dtype=np.uint8)


def fully_resized(image, label, rng, crop_size):
    """The release's order of work, on whole images: scale, pad, crop, flip."""
    scale = SCALES[rng.integers(len(SCALES))]
    image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_LINEAR)
    label = cv2.resize(label, None, fx=scale, fy=scale, interpolation=cv2.INTER_NEAREST)
    image, label = pad(image, label, crop_size, COLOR)
    top, left = (int(rng.integers(have - want + 1)) for have, want in zip(label.shape, crop_size, strict=True))
    box = slice(top, top + crop_size[0]), slice(left, left + crop_size[1])
    return flip_at_random(image[box], label[box], rng)


@pytest.mark.parametrize("seed", range(60))
def test_windowed_resize_is_the_full_resize(seed):
    rng = np.random.default_rng(seed)
    high = 900 if seed % 3 else 60
    image, label = sample(*rng.integers(2, high, 2), seed)
    crop_size = tuple(int(side) for side in rng.integers(32, 520, 2))
    wanted = fully_resized(image, label, np.random.default_rng(seed), crop_size)
    got = augment_cirkd(
        image, label, np.random.default_rng(seed), crop_size=crop_size, pad_color=COLOR, base_size=(1, 1)
    )
    assert got[0].shape == (*crop_size, 3)
    assert np.array_equal(got[1], wanted[1])
    assert np.abs(got[0].astype(int) - wanted[0]).max() <= 1


@pytest.mark.parametrize("scale", SCALES)
def test_windows_far_from_the_origin(scale):
    """Phase errors of a product such as 13 * (1 / 1.3) grow with the distance."""
    image, label = sample(41, 2048)
    full = cv2.resize(label, None, fx=scale, fy=scale, interpolation=cv2.INTER_NEAREST)
    picture = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_LINEAR)
    for left in (0, 1, full.shape[1] // 2 + 7, full.shape[1] - 300):
        got = resize_window(image, label, scale, 0, left, (full.shape[0], 300))
        assert np.array_equal(got[1], full[:, left : left + 300])
        assert np.abs(got[0].astype(int) - picture[:, left : left + 300]).max() <= 1


@pytest.mark.parametrize("shape", [(1, 1), (1, 50), (3, 2), (700, 5)])
@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_any_size_becomes_a_crop(name, shape):
    image, label = sample(*shape)
    for seed in range(8):
        rng = np.random.default_rng(seed)
        got = AUGMENTATIONS[name](image, label, rng, crop_size=(64, 48), pad_color=COLOR, base_size=(96, 64))
        assert got[0].shape == (64, 48, 3)
        assert got[1].shape == (64, 48)
        assert got[0].dtype == got[1].dtype == np.uint8
        assert set(np.unique(got[1])) <= {*np.unique(label), 255}


def test_padding_is_at_the_bottom_and_right():
    image, label = pad(*sample(5, 7), (9, 8), COLOR)
    assert (label[5:] == 255).all()
    assert (label[:, 7:] == 255).all()
    assert (label[:5, :7] != 255).all()
    assert (image[6, 2] == COLOR).all()


def test_balanced():
    label = np.full((4, 4), 255, np.uint8)
    assert not is_balanced(label)
    label[0] = 3
    assert not is_balanced(label)
    label[1, 0] = 4  # 4 of 5 pixels are class 3
    assert not is_balanced(label)
    label[1, 1] = 4  # 4 of 6
    assert is_balanced(label)


def test_mmseg_scale_stays_within_its_bounds_and_avoids_one_class():
    """A label whose left half is one class: crops of one class occur without redraws, hardly with them."""
    label = np.zeros((200, 400), np.uint8)
    label[:, 200:] = np.random.default_rng(0).integers(1, 5, (200, 200))
    image = np.repeat(label[..., None] * 40, 3, 2)
    uniform = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        _, got = augment_mmseg(image, label, rng, crop_size=(50, 50), pad_color=COLOR, base_size=(400, 200))
        uniform += not is_balanced(got)
    assert uniform <= 3  # without redraws about 40


def test_distortion_of_one_pixel_is_the_formula():
    """Replays the draws and applies brightness, contrast, saturation and hue to a pixel by hand, in floating point."""
    pixel = np.array([180, 90, 60])
    image = np.full((2, 2, 3), pixel, np.uint8)
    changed = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        x = pixel.astype(float)
        if rng.random() < 0.5:
            x = np.clip(x + rng.uniform(-32, 32), 0, 255)
        first = rng.random() < 0.5
        contrast = rng.uniform(0.5, 1.5) if rng.random() < 0.5 else 1
        if first:
            x = np.clip(x * contrast, 0, 255)
        saturation = rng.uniform(0.5, 1.5) if rng.random() < 0.5 else 1
        shift = int(rng.integers(-18, 18)) if rng.random() < 0.5 else 0
        h, s, v = colorsys.rgb_to_hsv(*(x / 255))
        x = 255 * np.array(colorsys.hsv_to_rgb((h + shift / 180) % 1, min(s * saturation, 1), v))
        if not first:
            x = np.clip(x * contrast, 0, 255)
        got = distort_colors(image, np.random.default_rng(seed))
        assert np.abs(got - x).max() < 6, seed  # cv2's 8-bit hue has steps of 2 degrees
        changed += not np.array_equal(got, image)
    assert 30 <= changed < 40


def stream(seed=3, augmentation="cirkd"):
    return build_train_and_val("toy", crop_size=(48, 64), seed=seed, augmentation=augmentation).train


def equal(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("augmentation", AUGMENTATIONS)
def test_a_sample_is_a_function_of_seed_and_position(augmentation):
    forwards = [stream(augmentation=augmentation)[i] for i in range(6)]
    other = stream(augmentation=augmentation)
    backwards = [other[i] for i in reversed(range(6))][::-1]
    assert all(map(equal, forwards, backwards))
    assert not equal(forwards[0], stream(seed=4, augmentation=augmentation)[0])
    assert equal(pickle.loads(pickle.dumps(other))[2], forwards[2])


def test_every_image_once_an_epoch():
    s = stream()
    n = len(s.dataset)
    first, second = [s.get_index(i) for i in range(n)], [s.get_index(i) for i in range(n, 2 * n)]
    assert sorted(first) == sorted(second) == list(range(n))
    assert first != second


@pytest.mark.parametrize(("workers", "size"), [(0, 2), (1, 1), (2, 1), (2, 4)])
def test_workers_and_processes_do_not_change_the_samples(workers, size):
    """The global batch, put together from the shares of ``size`` processes, is that of one process without workers."""
    wanted = list(load_train_batches(stream(), 2, 5, 4, 0, Runtime()))
    shares = [
        list(load_train_batches(stream(), 2, 5, 4, workers, Runtime(rank=rank, size=size))) for rank in range(size)
    ]
    for i, batch in enumerate(wanted):
        whole = [torch.cat(parts) for parts in zip(*(share[i] for share in shares), strict=True)]
        assert equal(whole, batch)


def test_a_late_start_reads_nothing_of_the_past():
    read, s = [], stream()
    s.get_index = lambda position, index=s.get_index: (read.append(position), index(position))[1]
    assert len(list(load_train_batches(s, 30000, 30002, 4, 0, Runtime()))) == 2
    assert read == list(range(120000, 120008))


def test_the_cache_changes_nothing_and_is_shared_by_workers(tmp_path):
    camvid(tmp_path)
    plain, cached = (
        build_train_and_val("camvid", str(tmp_path), crop_size=(32, 32), cache_gb=gb).train for gb in (0, 0.1)
    )
    read = [list(load_train_batches(s, 0, 3, 2, workers, Runtime())) for s, workers in ((plain, 0), (cached, 2))]
    assert all(map(equal, *read))
    assert cached.dataset.cache.filled.all()
    assert all(equal(cached[i], plain[i]) for i in range(4))
    from_memory = cached[0]
    for path in cached.dataset.pairs[0]:
        path.unlink()
    assert equal(cached[0], from_memory)


def test_a_cache_that_does_not_fit_names_its_size(tmp_path):
    camvid(tmp_path)
    with pytest.raises(UserError, match=r"--cache-gb 1e-06: the 1 decoded images take 0.00 GB"):
        build_train_and_val("camvid", str(tmp_path), crop_size=(32, 32), cache_gb=1e-6)
    with pytest.raises(UserError, match=r"--cache-gb: .* there are no files to cache"):
        build_train_and_val("toy", crop_size=(32, 32), cache_gb=1)


def test_augmentation_never_writes_into_the_source():
    image, label = sample(40, 50)
    before = image.copy(), label.copy()
    for name, seed in ((name, seed) for name in AUGMENTATIONS for seed in range(20)):
        AUGMENTATIONS[name](
            image, label, np.random.default_rng(seed), crop_size=(40, 50), pad_color=COLOR, base_size=(50, 40)
        )
    assert np.array_equal(image, before[0])
    assert np.array_equal(label, before[1])


def test_samples_from_the_cache_can_be_written_to(tmp_path):
    """A tensor that shared the cache's memory would let one sample change another."""
    camvid(tmp_path)
    val = build_dataset("camvid", str(tmp_path), "val", cache_gb=0.1)
    first = val[0]
    wanted = [part.clone() for part in first[:2]]
    for part in first[:2]:
        part.zero_()
    assert equal(val[0][:2], wanted)


def test_scales_of_a_narrower_range():
    assert list_scales(0.5, 2.0) == tuple(k / 10 for k in range(5, 21))
    assert list_scales(0.8, 1.1) == (0.8, 0.9, 1.0, 1.1)
    image, label = np.zeros((40, 60, 3), np.uint8), np.zeros((40, 60), np.uint8)
    options = {"crop_size": (40, 60), "pad_color": (9, 9, 9), "base_size": (60, 40)}
    for augment in (augment_cirkd, augment_mmseg):  # images that are enlarged never need padding
        for seed in range(20):
            _, found = augment(image, label, np.random.default_rng(seed), scale_range=(1.1, 1.3), **options)
            assert (found == 0).all()


@pytest.mark.parametrize("scale_range", [(1.6, 0.8), (0.0, 1.0), (0.55, 1.0)])
def test_scale_ranges_that_are_none(scale_range):
    with pytest.raises(UserError, match=r"--scale-range .* give two tenths, the smaller first"):
        list_scales(*scale_range)


@pytest.mark.parametrize("size", [(1, 50), (4, 50), (50, 3), (6, 6)])
def test_an_image_of_few_pixels_is_not_scaled_to_none(size):
    for seed in range(4):
        rng = np.random.default_rng(seed)
        image, label = augment_cirkd(
            *sample(*size), rng, crop_size=(32, 32), pad_color=COLOR, base_size=(0, 0), scale_range=(0.1, 0.1)
        )
        assert image.shape == (32, 32, 3)
        assert label.shape == (32, 32)
