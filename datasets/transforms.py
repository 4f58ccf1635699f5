"""Augmentation as pure functions on (image uint8 [H, W, 3], label uint8 [H, W]); every draw comes from ``rng``."""

import cv2
import numpy as np

from utils.types import IGNORE_INDEX

Arrays = tuple[np.ndarray, np.ndarray]
SCALES = tuple(k / 10 for k in range(5, 21))  # 0.5, 0.6, ..., 2.0


def resize(image: np.ndarray, label: np.ndarray, scale: float) -> Arrays:
    """Bilinear for the image, nearest for the label, so that no class id is invented."""
    return (
        cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_LINEAR),
        cv2.resize(label, None, fx=scale, fy=scale, interpolation=cv2.INTER_NEAREST),
    )


def pad(image: np.ndarray, label: np.ndarray, size: tuple[int, int], color: tuple[int, int, int]) -> Arrays:
    """Grow to at least ``size`` (height, width) at the bottom and right: image with ``color``, label with ignore."""
    bottom, right = (max(0, want - have) for want, have in zip(size, label.shape, strict=True))
    if not (bottom or right):
        return image, label
    return (
        cv2.copyMakeBorder(image, 0, bottom, 0, right, cv2.BORDER_CONSTANT, value=color),
        cv2.copyMakeBorder(label, 0, bottom, 0, right, cv2.BORDER_CONSTANT, value=IGNORE_INDEX),
    )


def crop(image: np.ndarray, label: np.ndarray, size: tuple[int, int], rng: np.random.Generator) -> Arrays:
    """A window of ``size`` (height, width), uniform over all places."""
    top, left = (int(rng.integers(have - want + 1)) for have, want in zip(label.shape, size, strict=True))
    box = slice(top, top + size[0]), slice(left, left + size[1])
    return image[box], label[box]


def train_transform(
    image: np.ndarray,
    label: np.ndarray,
    rng: np.random.Generator,
    *,
    crop_size: tuple[int, int],
    pad_color: tuple[int, int, int],
) -> Arrays:
    """Scale 0.5 to 2.0 in steps of 0.1, pad bottom and right, crop, flip (CIRKD, LAD: dataset/*.py, in this order)."""
    image, label = resize(image, label, SCALES[rng.integers(len(SCALES))])
    image, label = pad(image, label, crop_size, pad_color)
    image, label = crop(image, label, crop_size, rng)
    return (image[:, ::-1], label[:, ::-1]) if rng.random() < 0.5 else (image, label)
