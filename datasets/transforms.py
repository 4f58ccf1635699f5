"""Augmentation as pure functions of an image uint8 ``[H, W, 3]`` RGB and its label uint8 ``[H, W]``.

All random numbers come from the argument ``rng``.
"""

import math
from typing import NamedTuple

import cv2
import numpy as np

from datasets.files import Sample
from utils.errors import UserError
from utils.types import IGNORE_INDEX, Rgb

Size = tuple[int, int]  # height, width

SCALE_RANGE = (0.5, 2.0)  # in CIRKD, LAD and MMSegmentation
# The part of an image that is resized begins at a multiple of 20 pixels. 20 times a scale in tenths is an even number,
# so that the positions in the resized part are rounded in the same way as in the whole resized image.
PART_STEP = 20
# MMSegmentation draws a crop again, up to 10 times, while one class has 75 % or more of its labelled pixels.
MAX_CLASS_SHARE = 0.75
MAX_REDRAWS = 10


def list_scales(lowest: float, highest: float) -> tuple[float, ...]:
    """List the scales of CIRKD's augmentation between two ends: 0.5, 0.6, ..., 2.0 for CIRKD's own range.

    Raises:
        UserError: the range is empty, or an end is not a tenth of at least 0.1.
    """
    first = round(10 * lowest)
    last = round(10 * highest)
    are_tenths = abs(first - 10 * lowest) <= 1e-6 and abs(last - 10 * highest) <= 1e-6
    if not 1 <= first <= last or not are_tenths:
        raise UserError(f"--scale-range {lowest:g} {highest:g}: give two tenths, the smaller first, such as 0.8 1.6")
    return tuple(k / 10 for k in range(first, last + 1))


def resize_window(image: np.ndarray, label: np.ndarray, scale: float, top: int, left: int, size: Size) -> Sample:
    """Return the window ``[top : top + h, left : left + w]`` of the resized pair, without resizing the rest.

    The result is that of ``cv2.resize`` on the whole pair. The image is resized bilinearly and may differ by one grey
    level. The label takes the nearest neighbour and is exactly equal.

    scale: a multiple of 0.1. size: height and width of the window.
    """
    rows = _plan_part(top, size[0], label.shape[0], scale)
    columns = _plan_part(left, size[1], label.shape[1], scale)
    part = image[rows.start : rows.stop, columns.start : columns.stop]
    resized = cv2.resize(part, None, fx=scale, fy=scale, interpolation=cv2.INTER_LINEAR)
    window = resized[rows.offset : rows.offset + size[0], columns.offset : columns.offset + size[1]]
    label_part = label[rows.start : rows.stop].take(columns.nearest, axis=1)
    return window, label_part[rows.nearest - rows.start]


class _Part(NamedTuple):
    """The rows or columns of an image that a window of the resized image needs."""

    start: int  # first row of the image that is resized
    stop: int  # end of these rows
    offset: int  # where the window begins in the resized part
    nearest: np.ndarray  # for each row of the window: the row of the image that is nearest


def _plan_part(first: int, count: int, side: int, scale: float) -> _Part:
    """Choose the rows of an image that the rows ``first`` to ``first + count`` of the resized image need.

    Columns are chosen in the same way. side: number of rows of the image.
    """
    start = max(0, int(first / scale) - 2) // PART_STEP * PART_STEP
    stop = min(side, math.ceil((first + count) / scale) + 2)
    offset = first - round(start * scale)
    # multiplied by the inverse as in OpenCV: a division rounds differently
    nearest = (np.arange(first, first + count) * (1 / scale)).astype(np.int64)
    return _Part(start, stop, offset, np.minimum(nearest, side - 1))


def pad(image: np.ndarray, label: np.ndarray, size: Size, color: Rgb) -> Sample:
    """Pad at the bottom and right to at least ``size``: the image with ``color``, the label with the ignore index."""
    bottom = max(0, size[0] - label.shape[0])
    right = max(0, size[1] - label.shape[1])
    if bottom == 0 and right == 0:
        return image, label
    return (
        cv2.copyMakeBorder(image, 0, bottom, 0, right, cv2.BORDER_CONSTANT, value=color),
        cv2.copyMakeBorder(label, 0, bottom, 0, right, cv2.BORDER_CONSTANT, value=IGNORE_INDEX),
    )


def draw_corner(have: Size, want: Size, rng: np.random.Generator) -> Size:
    """Draw top and left of a window of size ``want`` in an image of size ``have``, each place equally likely.

    Along a side that is too short for the window the result is 0.
    """
    top = int(rng.integers(max(have[0] - want[0], 0) + 1))
    left = int(rng.integers(max(have[1] - want[1], 0) + 1))
    return top, left


def flip_at_random(image: np.ndarray, label: np.ndarray, rng: np.random.Generator) -> Sample:
    """Mirror left to right with probability 1/2."""
    if rng.random() < 0.5:
        return cv2.flip(image, 1), cv2.flip(label, 1)
    return image, label


def is_balanced(label: np.ndarray) -> bool:
    """Return whether a label has several classes, each with less than MAX_CLASS_SHARE of the labelled pixels."""
    counts = np.bincount(label.ravel(), minlength=IGNORE_INDEX + 1)[:IGNORE_INDEX]
    return np.count_nonzero(counts) > 1 and counts.max() < MAX_CLASS_SHARE * counts.sum()


def distort_colors(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Change brightness, contrast, saturation and hue, each with probability 1/2.

    Source: MMSegmentation's PhotoMetricDistortion. torchvision's RandomPhotometricDistort differs: its brightness is a
    factor, and it swaps channels.
    """
    if rng.random() < 0.5:
        image = _scale_levels(image, 1, rng.uniform(-32, 32))
    contrast_first = rng.random() < 0.5
    contrast = rng.uniform(0.5, 1.5) if rng.random() < 0.5 else 1
    if contrast_first:
        image = _scale_levels(image, contrast, 0)
    saturation = rng.uniform(0.5, 1.5) if rng.random() < 0.5 else 1
    hue_shift = int(rng.integers(-18, 18)) if rng.random() < 0.5 else 0
    if saturation != 1 or hue_shift != 0:
        image = _change_saturation_and_hue(image, saturation, hue_shift)
    if not contrast_first:
        image = _scale_levels(image, contrast, 0)
    return image


def _scale_levels(x: np.ndarray, factor: float, shift: float) -> np.ndarray:
    """Multiply grey levels by a factor and add a shift. The result is clipped to 0..255."""
    return cv2.LUT(x, np.clip(np.arange(256) * factor + shift, 0, 255).astype(np.uint8))


def _change_saturation_and_hue(image: np.ndarray, saturation: float, hue_shift: int) -> np.ndarray:
    """Multiply the saturation by a factor, and turn the hue. The unit of ``hue_shift`` is 2 degrees, as in OpenCV."""
    h, s, v = cv2.split(cv2.cvtColor(image, cv2.COLOR_RGB2HSV))
    h = cv2.LUT(h, ((np.arange(256) + hue_shift) % 180).astype(np.uint8))
    s = _scale_levels(s, saturation, 0)
    return cv2.cvtColor(cv2.merge([h, s, v]), cv2.COLOR_HSV2RGB)


def augment_cirkd(
    image: np.ndarray,
    label: np.ndarray,
    rng: np.random.Generator,
    *,
    crop_size: Size,
    pad_color: Rgb,
    base_size: Size,
    scale_range: tuple[float, float] = SCALE_RANGE,
) -> Sample:
    """Scale by a random tenth, pad at the bottom and right, crop at random, and flip at random, in this order.

    ``base_size`` is not used: images are scaled from their own size. Only the part that the crop shows is resized.

    Source: CIRKD and LAD, dataset/*.py.
    """
    scales = list_scales(*scale_range)
    scale = scales[rng.integers(len(scales))]
    if round(min(label.shape) * scale) == 0:
        scale = 1.0  # half of one pixel is none
    # round() and cv2 both round a half to the even number
    height, width = round(label.shape[0] * scale), round(label.shape[1] * scale)
    top, left = draw_corner((height, width), crop_size, rng)
    visible = (min(crop_size[0], height), min(crop_size[1], width))
    image, label = resize_window(image, label, scale, top, left, visible)
    image, label = pad(image, label, crop_size, pad_color)
    return flip_at_random(image, label, rng)


def augment_mmseg(
    image: np.ndarray,
    label: np.ndarray,
    rng: np.random.Generator,
    *,
    crop_size: Size,
    pad_color: Rgb,
    base_size: Size,
    scale_range: tuple[float, float] = SCALE_RANGE,
) -> Sample:
    """Scale, crop where no class dominates, flip at random, distort colours, and pad, in this order.

    The image is scaled to fit into ``base_size`` (long and short side) times a random factor of ``scale_range``.

    Source: MMSegmentation's recipes for these data sets.
    """
    height, width = _draw_fitting_size(label.shape, base_size, scale_range, rng)
    label = cv2.resize(label, (width, height), interpolation=cv2.INTER_NEAREST)
    box = _draw_balanced_box(label, crop_size, rng)
    image = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
    image, label = flip_at_random(image[box], label[box], rng)
    return pad(distort_colors(image, rng), label, crop_size, pad_color)


def _draw_fitting_size(size: Size, base_size: Size, scale_range: tuple[float, float], rng: np.random.Generator) -> Size:
    """Draw a factor. Return height and width at which an image just fits into ``base_size`` times the factor."""
    factor = rng.uniform(*scale_range)
    short_bound, long_bound = sorted(int(side * factor) for side in base_size)
    scale = min(short_bound / min(size), long_bound / max(size))
    height, width = (max(1, int(side * scale + 0.5)) for side in size)
    return height, width


def _draw_balanced_box(label: np.ndarray, crop_size: Size, rng: np.random.Generator) -> tuple[slice, slice]:
    """Draw a crop box, again while its label is not balanced. The last draw is taken as it is."""
    for _ in range(1 + MAX_REDRAWS):
        top, left = draw_corner(label.shape, crop_size, rng)
        box = slice(top, top + crop_size[0]), slice(left, left + crop_size[1])
        if is_balanced(label[box]):
            break
    return box


AUGMENTATIONS = {"cirkd": augment_cirkd, "mmseg": augment_mmseg}
