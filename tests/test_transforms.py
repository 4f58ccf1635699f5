"""Test augmentation: resizing a window equals resizing the image, and a sample depends on seed and position only."""

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


def make_sample(height, width, seed=0, classes=21):
    """Return an image and a label of random pixels."""
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    return image, rng.integers(0, classes, (height, width), dtype=np.uint8)


def augment_whole_image(image, label, rng, crop_size):
    """Scale, pad, crop and flip whole images, in the order of CIRKD's code."""
    scale = SCALES[rng.integers(len(SCALES))]
    image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_LINEAR)
    label = cv2.resize(label, None, fx=scale, fy=scale, interpolation=cv2.INTER_NEAREST)
    image, label = pad(image, label, crop_size, COLOR)
    top = int(rng.integers(label.shape[0] - crop_size[0] + 1))
    left = int(rng.integers(label.shape[1] - crop_size[1] + 1))
    box = slice(top, top + crop_size[0]), slice(left, left + crop_size[1])
    return flip_at_random(image[box], label[box], rng)


@pytest.mark.parametrize("seed", range(60))
def test_windowed_resize_is_the_full_resize(seed):
    rng = np.random.default_rng(seed)
    high = 900 if seed % 3 else 60
    image, label = make_sample(*rng.integers(2, high, 2), seed)
    crop_size = tuple(int(side) for side in rng.integers(32, 520, 2))
    wanted = augment_whole_image(image, label, np.random.default_rng(seed), crop_size)
    got = augment_cirkd(
        image, label, np.random.default_rng(seed), crop_size=crop_size, pad_color=COLOR, base_size=(1, 1)
    )
    assert got[0].shape == (*crop_size, 3)
    assert np.array_equal(got[1], wanted[1])
    assert np.abs(got[0].astype(int) - wanted[0]).max() <= 1


@pytest.mark.parametrize("scale", SCALES)
def test_windows_far_from_the_origin(scale):
    """Rounding errors of a product such as 13 * (1 / 1.3) shift pixels that are far from the origin."""
    image, label = make_sample(41, 2048)
    full = cv2.resize(label, None, fx=scale, fy=scale, interpolation=cv2.INTER_NEAREST)
    picture = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_LINEAR)
    for left in (0, 1, full.shape[1] // 2 + 7, full.shape[1] - 300):
        got = resize_window(image, label, scale, 0, left, (full.shape[0], 300))
        assert np.array_equal(got[1], full[:, left : left + 300])
        assert np.abs(got[0].astype(int) - picture[:, left : left + 300]).max() <= 1


@pytest.mark.parametrize("shape", [(1, 1), (1, 50), (3, 2), (700, 5)])
@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_any_size_becomes_a_crop(name, shape):
    image, label = make_sample(*shape)
    for seed in range(8):
        rng = np.random.default_rng(seed)
        got = AUGMENTATIONS[name](image, label, rng, crop_size=(64, 48), pad_color=COLOR, base_size=(96, 64))
        assert got[0].shape == (64, 48, 3)
        assert got[1].shape == (64, 48)
        assert got[0].dtype == got[1].dtype == np.uint8
        assert set(np.unique(got[1])) <= {*np.unique(label), 255}


def test_padding_is_at_the_bottom_and_right():
    image, label = pad(*make_sample(5, 7), (9, 8), COLOR)
    assert (label[5:] == 255).all()
    assert (label[:, 7:] == 255).all()
    assert (label[:5, :7] != 255).all()
    assert (image[6, 2] == COLOR).all()


def test_a_label_with_one_dominant_class_is_not_balanced():
    label = np.full((4, 4), 255, np.uint8)
    assert not is_balanced(label)
    label[0] = 3
    assert not is_balanced(label)
    label[1, 0] = 4  # 4 of 5 pixels are class 3
    assert not is_balanced(label)
    label[1, 1] = 4  # 4 of 6
    assert is_balanced(label)


def test_mmseg_avoids_crops_of_one_class():
    """The left half of the label has one class, so crops of one class are common without redraws."""
    label = np.zeros((200, 400), np.uint8)
    label[:, 200:] = np.random.default_rng(0).integers(1, 5, (200, 200))
    image = np.repeat(label[..., None] * 40, 3, 2)
    uniform = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        _, got = augment_mmseg(image, label, rng, crop_size=(50, 50), pad_color=COLOR, base_size=(400, 200))
        if not is_balanced(got):
            uniform += 1
    assert uniform <= 3  # without redraws about 40


def test_distortion_of_one_pixel_matches_the_formula():
    """Repeat the draws, and compute brightness, contrast, saturation and hue of a pixel in floating point."""
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
        if not np.array_equal(got, image):
            changed += 1
    assert 30 <= changed < 40


def build_train_stream(seed=3, augmentation="cirkd"):
    """Return the training samples of the toy data set."""
    return build_train_and_val("toy", crop_size=(48, 64), seed=seed, augmentation=augmentation).train


def are_equal(a, b):
    """Return whether two samples or batches have equal tensors."""
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("augmentation", AUGMENTATIONS)
def test_a_sample_depends_only_on_seed_and_position(augmentation):
    forwards = [build_train_stream(augmentation=augmentation)[i] for i in range(6)]
    other = build_train_stream(augmentation=augmentation)
    backwards = [other[i] for i in reversed(range(6))][::-1]
    assert all(map(are_equal, forwards, backwards))
    assert not are_equal(forwards[0], build_train_stream(seed=4, augmentation=augmentation)[0])
    assert are_equal(pickle.loads(pickle.dumps(other))[2], forwards[2])


def test_every_image_occurs_once_per_epoch():
    stream = build_train_stream()
    n = len(stream.dataset)
    first = [stream.get_index(i) for i in range(n)]
    second = [stream.get_index(i) for i in range(n, 2 * n)]
    assert sorted(first) == sorted(second) == list(range(n))
    assert first != second


@pytest.mark.parametrize(("workers", "world_size"), [(0, 2), (1, 1), (2, 1), (2, 4)])
def test_workers_and_ranks_do_not_change_the_samples(workers, world_size):
    """Concatenate the shares of all ranks. They must equal the global batch of one rank without loader workers."""
    wanted = list(load_train_batches(build_train_stream(), 2, 5, 4, 0, Runtime()))
    shares = []
    for rank in range(world_size):
        runtime = Runtime(rank=rank, size=world_size)
        shares.append(list(load_train_batches(build_train_stream(), 2, 5, 4, workers, runtime)))
    for i, batch in enumerate(wanted):
        whole = [torch.cat(parts) for parts in zip(*(share[i] for share in shares), strict=True)]
        assert are_equal(whole, batch)


def test_a_resumed_run_does_not_read_earlier_samples():
    read = []
    stream = build_train_stream()
    get_index = stream.get_index

    def note_position(position):
        read.append(position)
        return get_index(position)

    stream.get_index = note_position
    assert len(list(load_train_batches(stream, 30000, 30002, 4, 0, Runtime()))) == 2
    assert read == list(range(120000, 120008))


def test_the_cache_changes_nothing_and_is_shared_by_workers(tmp_path):
    camvid(tmp_path)
    plain = build_train_and_val("camvid", str(tmp_path), crop_size=(32, 32), cache_gb=0).train
    cached = build_train_and_val("camvid", str(tmp_path), crop_size=(32, 32), cache_gb=0.1).train
    plain_batches = list(load_train_batches(plain, 0, 3, 2, 0, Runtime()))
    cached_batches = list(load_train_batches(cached, 0, 3, 2, 2, Runtime()))
    assert all(map(are_equal, plain_batches, cached_batches))
    assert cached.dataset.cache.filled.all()
    assert all(are_equal(cached[i], plain[i]) for i in range(4))
    from_memory = cached[0]
    for path in cached.dataset.pairs[0]:
        path.unlink()
    assert are_equal(cached[0], from_memory)


def test_a_cache_that_is_too_small_names_the_needed_size(tmp_path):
    camvid(tmp_path)
    with pytest.raises(UserError, match=r"--cache-gb 1e-06: the 1 decoded images take 0.00 GB"):
        build_train_and_val("camvid", str(tmp_path), crop_size=(32, 32), cache_gb=1e-6)
    with pytest.raises(UserError, match=r"--cache-gb: .* there are no files to cache"):
        build_train_and_val("toy", crop_size=(32, 32), cache_gb=1)


def test_augmentation_never_writes_into_the_source():
    image, label = make_sample(40, 50)
    before = image.copy(), label.copy()
    for augment in AUGMENTATIONS.values():
        for seed in range(20):
            rng = np.random.default_rng(seed)
            augment(image, label, rng, crop_size=(40, 50), pad_color=COLOR, base_size=(50, 40))
    assert np.array_equal(image, before[0])
    assert np.array_equal(label, before[1])


def test_samples_from_the_cache_can_be_written_to(tmp_path):
    """If a tensor shared the memory of the cache, writing to one sample would change a later one."""
    camvid(tmp_path)
    val = build_dataset("camvid", str(tmp_path), "val", cache_gb=0.1)
    first = val[0]
    wanted = [part.clone() for part in first[:2]]
    for part in first[:2]:
        part.zero_()
    assert are_equal(val[0][:2], wanted)


def test_scales_of_a_narrower_range():
    assert list_scales(0.5, 2.0) == tuple(k / 10 for k in range(5, 21))
    assert list_scales(0.8, 1.1) == (0.8, 0.9, 1.0, 1.1)
    image = np.zeros((40, 60, 3), np.uint8)
    label = np.zeros((40, 60), np.uint8)
    options = {"crop_size": (40, 60), "pad_color": (9, 9, 9), "base_size": (60, 40)}
    for augment in (augment_cirkd, augment_mmseg):  # enlarged images never need padding
        for seed in range(20):
            _, found = augment(image, label, np.random.default_rng(seed), scale_range=(1.1, 1.3), **options)
            assert (found == 0).all()


@pytest.mark.parametrize("scale_range", [(1.6, 0.8), (0.0, 1.0), (0.55, 1.0)])
def test_bad_scale_ranges_are_refused(scale_range):
    with pytest.raises(UserError, match=r"--scale-range .* give two tenths, the smaller first"):
        list_scales(*scale_range)


@pytest.mark.parametrize("size", [(1, 50), (4, 50), (50, 3), (6, 6)])
def test_a_tiny_image_is_not_scaled_to_zero_pixels(size):
    for seed in range(4):
        rng = np.random.default_rng(seed)
        image, label = augment_cirkd(
            *make_sample(*size), rng, crop_size=(32, 32), pad_color=COLOR, base_size=(0, 0), scale_range=(0.1, 0.1)
        )
        assert image.shape == (32, 32, 3)
        assert label.shape == (32, 32)
