"""Augmentation as pure functions on (image uint8 [H, W, 3] RGB, label uint8 [H, W]); every draw comes from ``rng``."""

import math

import cv2
import numpy as np

from datasets.files import Arrays
from utils.errors import UserError
from utils.types import IGNORE_INDEX, Rgb

Size = tuple[int, int]  # height, width

SCALE_RANGE = (0.5, 2.0)  # CIRKD's, LAD's and MMSegmentation's
PHASE = 20  # source pixels: times a scale in tenths an even number, so that rounding half to even goes the same way
MAX_SHARE, REDRAWS = 0.75, 10  # of mmseg's crop: no class above this share of the labelled pixels, if 10 redraws help


def scales_between(lowest: float, highest: float) -> tuple[float, ...]:
    """Return the scales of CIRKD's augmentation: 0.5, 0.6, ..., 2.0 for its own range.

    Raises UserError: the range is empty, or an end of it is no tenth of at least 0.1.
    """
    first, last = round(10 * lowest), round(10 * highest)
    if not 1 <= first <= last or abs(first - 10 * lowest) > 1e-6 or abs(last - 10 * highest) > 1e-6:
        raise UserError(f"--scale-range {lowest:g} {highest:g}: give two tenths, the smaller first, such as 0.8 1.6")
    return tuple(k / 10 for k in range(first, last + 1))


def resized_window(image: np.ndarray, label: np.ndarray, scale: float, top: int, left: int, size: Size) -> Arrays:
    """``[top : top + h, left : left + w]`` of the pair resized by a scale in tenths, without resizing the rest.

    As ``cv2.resize`` of everything: bilinear for the image (equal to one grey level), nearest for the label (equal).
    """
    window, spans, picks = [], [], []
    for first, count, have in zip((top, left), size, label.shape, strict=True):
        start = max(0, int(first / scale) - 2) // PHASE * PHASE
        stop = min(have, math.ceil((first + count) / scale) + 2)
        offset = first - round(start * scale)
        spans.append(slice(start, stop))
        window.append(slice(offset, offset + count))
        picks.append(np.minimum((np.arange(first, first + count) * (1 / scale)).astype(np.int64), have - 1))
    part = cv2.resize(image[tuple(spans)], None, fx=scale, fy=scale, interpolation=cv2.INTER_LINEAR)
    rows, columns = picks
    return part[tuple(window)], label[spans[0]].take(columns, axis=1)[rows - spans[0].start]


def pad(image: np.ndarray, label: np.ndarray, size: Size, color: Rgb) -> Arrays:
    """Grow to at least ``size`` at the bottom and right: image with ``color``, label with ignore."""
    bottom, right = (max(0, want - have) for want, have in zip(size, label.shape, strict=True))
    if not (bottom or right):
        return image, label
    return (
        cv2.copyMakeBorder(image, 0, bottom, 0, right, cv2.BORDER_CONSTANT, value=color),
        cv2.copyMakeBorder(label, 0, bottom, 0, right, cv2.BORDER_CONSTANT, value=IGNORE_INDEX),
    )


def corner(have: Size, want: Size, rng: np.random.Generator) -> Size:
    """Top and left of a window of ``want`` in ``have``, uniform over all places; 0 along a side that is too short."""
    return tuple(int(rng.integers(max(h - w, 0) + 1)) for h, w in zip(have, want, strict=True))


def flip(image: np.ndarray, label: np.ndarray, rng: np.random.Generator) -> Arrays:
    """Mirrored left to right, half of the time."""
    return (cv2.flip(image, 1), cv2.flip(label, 1)) if rng.random() < 0.5 else (image, label)


def balanced(label: np.ndarray) -> bool:
    """More than one class, and none with MAX_SHARE of the labelled pixels or more."""
    counts = np.bincount(label.ravel(), minlength=IGNORE_INDEX + 1)[:IGNORE_INDEX]
    return np.count_nonzero(counts) > 1 and counts.max() < MAX_SHARE * counts.sum()


def distort(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Brightness, contrast, saturation and hue, each half of the time (MMSegmentation: PhotoMetricDistortion).

    torchvision's RandomPhotometricDistort does something else: its brightness is a factor, and it swaps channels.
    """

    def linear(x: np.ndarray, factor: float, shift: float) -> np.ndarray:
        return cv2.LUT(x, np.clip(np.arange(256) * factor + shift, 0, 255).astype(np.uint8))

    if rng.random() < 0.5:
        image = linear(image, 1, rng.uniform(-32, 32))
    contrast_first = rng.random() < 0.5
    contrast = rng.uniform(0.5, 1.5) if rng.random() < 0.5 else 1
    if contrast_first:
        image = linear(image, contrast, 0)
    saturation = rng.uniform(0.5, 1.5) if rng.random() < 0.5 else 1
    hue = int(rng.integers(-18, 18)) if rng.random() < 0.5 else 0  # of 180: cv2 halves the degrees
    if saturation != 1 or hue:
        h, s, v = cv2.split(cv2.cvtColor(image, cv2.COLOR_RGB2HSV))
        h = cv2.LUT(h, ((np.arange(256) + hue) % 180).astype(np.uint8))
        image = cv2.cvtColor(cv2.merge([h, linear(s, saturation, 0), v]), cv2.COLOR_HSV2RGB)
    return image if contrast_first else linear(image, contrast, 0)


def cirkd(
    image: np.ndarray,
    label: np.ndarray,
    rng: np.random.Generator,
    *,
    crop_size: Size,
    pad_color: Rgb,
    base_size: Size,
    scale_range: tuple[float, float] = SCALE_RANGE,
) -> Arrays:
    """Scale (0.5 to 2.0) in steps of 0.1, pad bottom and right, crop, flip (CIRKD, LAD: dataset/*.py, in this order).

    Only what the crop shows is resized. ``base_size`` is not used: images are scaled from their own size.
    """
    scales = scales_between(*scale_range)
    scale = scales[rng.integers(len(scales))]
    if min(label.shape) == 1:
        scale = 1.0  # half of one pixel is none
    scaled = tuple(round(side * scale) for side in label.shape)  # cv2 rounds half to even as well
    top, left = corner(scaled, crop_size, rng)
    shown = tuple(min(want, have) for want, have in zip(crop_size, scaled, strict=True))
    image, label = resized_window(image, label, scale, top, left, shown)
    return flip(*pad(image, label, crop_size, pad_color), rng)


def mmseg(
    image: np.ndarray,
    label: np.ndarray,
    rng: np.random.Generator,
    *,
    crop_size: Size,
    pad_color: Rgb,
    base_size: Size,
    scale_range: tuple[float, float] = SCALE_RANGE,
) -> Arrays:
    """Scale within ``base_size`` (long, short side) times a factor (0.5 to 2.0), a crop that is not one class, flip,
    colour distortion, pad bottom and right (MMSegmentation's recipes for these data sets, in this order).
    """
    ratio = rng.uniform(*scale_range)
    bounds = sorted(int(side * ratio) for side in base_size)
    scale = min(bound / side for bound, side in zip(bounds, sorted(label.shape), strict=True))
    height, width = scaled = tuple(max(1, int(side * scale + 0.5)) for side in label.shape)
    label = cv2.resize(label, (width, height), interpolation=cv2.INTER_NEAREST)
    for _ in range(1 + REDRAWS):
        top, left = corner(scaled, crop_size, rng)
        box = slice(top, top + crop_size[0]), slice(left, left + crop_size[1])
        if balanced(label[box]):
            break
    image = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
    image, label = flip(image[box], label[box], rng)
    return pad(distort(image, rng), label, crop_size, pad_color)


AUGMENTATIONS = {"cirkd": cirkd, "mmseg": mmseg}
