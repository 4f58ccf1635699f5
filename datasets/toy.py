"""Shapes drawn from a seed: a data set that needs no download.

Two shapes share each range of colours and the shapes overlap: colour alone tells six classes apart no better than
three, the rest is form.
"""

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from datasets.base import DatasetSpec
from datasets.files import Arrays, Pair
from datasets.ids import IdMap
from utils.types import IGNORE_INDEX

HEIGHT, WIDTH = 96, 128
IMAGES = {"train": 400, "val": 60}
HUES = ((200, 110, 60), (70, 160, 90), (80, 90, 190))  # mean RGB of a pair of shapes
OUTLINE = 2  # pixels of ignored outline around a shape, as in VOC


def _ring(center: np.ndarray, radius: float, angle: float) -> list[np.ndarray]:
    return [_polygon(center, radius, angle, 32), _polygon(center, 0.55 * radius, angle, 32)]


def _star(center: np.ndarray, radius: float, angle: float) -> list[np.ndarray]:
    outline = _polygon(center, radius, angle, 10)
    outline[1::2] = center + 0.4 * (outline[1::2] - center)
    return [outline]


def _cross(center: np.ndarray, radius: float, angle: float) -> list[np.ndarray]:
    arm = 0.3
    points = [(arm, 1), (arm, arm), (1, arm), (1, -arm), (arm, -arm), (arm, -1)]
    points += [(-x, -y) for x, y in points]
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return [center + radius * np.array(points) @ turn.T]


def _polygon(center: np.ndarray, radius: float, angle: float, corners: int) -> np.ndarray:
    theta = angle + np.arange(corners) * 2 * np.pi / corners
    return center + radius * np.stack([np.cos(theta), np.sin(theta)], 1)


SHAPES: dict[str, Callable[[np.ndarray, float, float], list[np.ndarray]]] = {
    "disk": lambda *place: [_polygon(*place, 32)],
    "ring": _ring,
    "square": lambda *place: [_polygon(*place, 4)],
    "cross": _cross,
    "triangle": lambda *place: [_polygon(*place, 3)],
    "star": _star,
}


def draw(split: str, index: int) -> Arrays:
    """Image uint8 ``[96, 128, 3]`` and label uint8 ``[96, 128]``: 0 background, then the shapes, 255 outlines."""
    rng = np.random.default_rng([sorted(IMAGES).index(split), index])
    image = _texture(rng, rng.uniform(70, 190) + rng.normal(0, 10, 3), 6)  # greyish
    label = np.zeros((HEIGHT, WIDTH), np.uint8)
    for _ in range(rng.integers(4, 9)):
        kind = int(rng.integers(len(SHAPES)))
        center = rng.uniform((8, 8), (WIDTH - 8, HEIGHT - 8))
        contours = list(SHAPES.values())[kind](center, rng.uniform(12, 32), rng.uniform(0, 2 * np.pi))
        contours = [np.round(contour).astype(np.int32) for contour in contours]
        mask = cv2.fillPoly(np.zeros_like(label), contours, 1).astype(bool)
        outline = cv2.polylines(np.zeros_like(label), contours, True, 1, OUTLINE).astype(bool)
        image[mask] = _texture(rng, np.array(HUES[kind // 2]) + rng.normal(0, 30, 3), 12)[mask]
        label[mask] = kind + 1
        label[outline] = IGNORE_INDEX
    image = cv2.GaussianBlur(image, (3, 3), 0) + rng.normal(0, 10, image.shape)
    return np.clip(image, 0, 255).astype(np.uint8), label


def _texture(rng: np.random.Generator, color: np.ndarray, cells: int) -> np.ndarray:
    """A colour with smooth variations, float ``[96, 128, 3]``."""
    coarse = color + rng.normal(0, 25, (cells, cells, 3))
    return cv2.resize(coarse, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)


def pairs(root: Path, split: str) -> list[Pair]:
    """Names of pictures that ``read`` draws; no files."""
    return [(Path(f"toy/{split}/{i:04}.png"), Path(f"toy/{split}annot/{i:04}.png")) for i in range(IMAGES[split])]


def read(image: Path, label: Path) -> Arrays:
    return draw(image.parent.name, int(image.stem))


TOY = DatasetSpec(
    names=("background", *SHAPES),
    palette=(
        (40, 40, 40), (230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (213, 94, 0), (204, 121, 167),
    ),
    pairs=pairs,
    splits={split: (count,) for split, count in IMAGES.items()},
    ids=IdMap.of(range(1 + len(SHAPES))),
    read=read,
    needs_root=False,
)  # fmt: skip
