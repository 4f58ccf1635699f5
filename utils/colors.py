"""Turn label maps, predictions and label planes into coloured pictures."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from utils.files import write
from utils.types import IGNORE_INDEX, Rgb

IGNORE_COLOR = (255, 255, 255)
ERROR_COLORS = {"right": (235, 235, 235), "wrong": (213, 94, 0), "ignored": (160, 160, 160)}


def colorize(label: np.ndarray, palette: Sequence[Rgb]) -> np.ndarray:
    """Colour class indices ``[H, W]``. Return RGB uint8 ``[H, W, 3]``, in which ignored pixels are white."""
    table = np.full((256, 3), IGNORE_COLOR, np.uint8)
    table[: len(palette)] = palette
    return table[label]


def format_hex(color: Rgb) -> str:
    """Return a colour as HTML writes it: (255, 0, 16) -> "#ff0010"."""
    red, green, blue = color
    return f"#{red:02x}{green:02x}{blue:02x}"


def make_palette_picture(label: np.ndarray, palette: Sequence[Rgb]) -> Image.Image:
    """Make a picture of class indices ``[H, W]``, 0..255. Its file holds the indices; viewers show the colours."""
    picture = Image.fromarray(label.astype(np.uint8))
    picture.putpalette([value for color in palette for value in color])
    return picture


def blend_classes(image: np.ndarray, label: np.ndarray, palette: Sequence[Rgb]) -> Image.Image:
    """Blend an image, RGB uint8 ``[H, W, 3]``, with the colours of its classes, half and half."""
    return Image.fromarray(((image.astype(np.uint16) + colorize(label, palette)) // 2).astype(np.uint8))


def save_png(picture: Image.Image, path: Path) -> None:
    """Write a picture as PNG, whole or not at all.

    Raises:
        UserError: the file cannot be written.
    """
    write(path, lambda file: picture.save(file, "PNG"), durable=False)


def draw_error_map(prediction: np.ndarray, label: np.ndarray) -> np.ndarray:
    """Draw which pixels are right (light grey), wrong (vermilion) and ignored (grey): RGB uint8 ``[H, W, 3]``.

    Colour-blind readers can tell these colours, too.
    """
    right = np.uint8(ERROR_COLORS["right"])
    wrong = np.uint8(ERROR_COLORS["wrong"])
    picture = np.where((prediction == label)[..., None], right, wrong)
    picture[label == IGNORE_INDEX] = ERROR_COLORS["ignored"]
    return picture


def paint_diverging(plane: np.ndarray) -> np.ndarray:
    """Paint a real-valued plane ``[H, W]``: blue below 0, white at 0, orange above 0. Return RGB uint8 ``[H, W, 3]``.

    The colours are full where the absolute value reaches its 99th percentile.
    """
    limit = max(float(np.percentile(np.abs(plane), 99)), 1e-6)
    x = np.clip(plane / limit, -1, 1)[..., None]
    blue = np.array([0, 114, 178])
    orange = np.array([230, 159, 0])
    return (255 + np.where(x < 0, -x * (blue - 255), x * (orange - 255))).astype(np.uint8)


def choose_strongest_plane(planes: np.ndarray) -> np.ndarray:
    """Choose the label plane to show: the one with the largest mean, ``[planes, H, W] -> [H, W]``.

    Of one-hot planes this is the plane of the most frequent class.
    """
    return planes[planes.mean((1, 2)).argmax()]
