"""Label maps as colours, and as the pictures that are written of them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from utils.files import write
from utils.types import IGNORE_INDEX, Rgb

IGNORE_COLOR = (255, 255, 255)
ERROR_COLORS = {"right": (235, 235, 235), "wrong": (213, 94, 0), "ignored": (160, 160, 160)}


def colorize(label: np.ndarray, palette: Sequence[Rgb]) -> np.ndarray:
    """Colour class indices ``[H, W]``: RGB uint8 ``[H, W, 3]``; ignored pixels are white."""
    table = np.full((256, 3), IGNORE_COLOR, np.uint8)
    table[: len(palette)] = palette
    return table[label]


def palette_picture(label: np.ndarray, palette: Sequence[Rgb]) -> Image.Image:
    """Return a picture of class indices ``[H, W]``, at most 255, that viewers show in their colours."""
    picture = Image.fromarray(label.astype(np.uint8))
    picture.putpalette([value for color in palette for value in color])
    return picture


def blended(image: np.ndarray, label: np.ndarray, palette: Sequence[Rgb]) -> Image.Image:
    """Return the mean of an image, RGB uint8 ``[H, W, 3]``, and the colours of its classes."""
    return Image.fromarray(((image.astype(np.uint16) + colorize(label, palette)) // 2).astype(np.uint8))


def save_png(picture: Image.Image, path: Path) -> None:
    """Write a picture as PNG. See ``utils.files.write``, also for what it raises."""
    write(path, lambda file: picture.save(file, "PNG"), durable=False)


def error_map(prediction: np.ndarray, label: np.ndarray) -> np.ndarray:
    """Paint right pixels light grey, wrong ones vermilion, ignored ones grey, for colour-blind readers too.

    The picture is RGB ``[H, W, 3]``.
    """
    picture = np.where((prediction == label)[..., None], *(np.uint8(ERROR_COLORS[k]) for k in ("right", "wrong")))
    picture[label == IGNORE_INDEX] = ERROR_COLORS["ignored"]
    return picture


def diverging(plane: np.ndarray) -> np.ndarray:
    """Paint a real-valued plane ``[H, W]``: blue below 0, white at 0, orange above; full at the 99th percentile."""
    limit = max(float(np.percentile(np.abs(plane), 99)), 1e-6)
    x = np.clip(plane / limit, -1, 1)[..., None]
    low, high = np.array([0, 114, 178]), np.array([230, 159, 0])
    return (255 + np.where(x < 0, -x * (low - 255), x * (high - 255))).astype(np.uint8)


def strongest(planes: np.ndarray) -> np.ndarray:
    """Choose the plane to show of ``[planes, H, W]``: of one-hot planes that of the most frequent class."""
    return planes[planes.mean((1, 2)).argmax()]
