"""A data set of shapes that are drawn from a seed, so that nothing needs to be downloaded.

Two shapes share each range of colours, and shapes overlap. Colour alone therefore cannot separate the six shapes: a
network must learn their form.
"""

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from datasets.base import DatasetSpec
from datasets.files import PathPair, Sample
from datasets.ids import IdMap
from utils.types import IGNORE_INDEX

HEIGHT, WIDTH = 96, 128
IMAGES = {"train": 400, "val": 60}
HUES = ((200, 110, 60), (70, 160, 90), (80, 90, 190))  # mean RGB of each pair of shapes
OUTLINE_WIDTH = 2  # pixels around each shape that are ignored, as in VOC

Outlines = list[np.ndarray]  # the outline of a shape, and of its hole: corner points [N, 2] as (x, y)


def _make_disk(center: np.ndarray, radius: float, angle: float) -> Outlines:
    return [_make_polygon(center, radius, angle, 32)]


def _make_ring(center: np.ndarray, radius: float, angle: float) -> Outlines:
    return [_make_polygon(center, radius, angle, 32), _make_polygon(center, 0.55 * radius, angle, 32)]


def _make_square(center: np.ndarray, radius: float, angle: float) -> Outlines:
    return [_make_polygon(center, radius, angle, 4)]


def _make_cross(center: np.ndarray, radius: float, angle: float) -> Outlines:
    arm = 0.3
    points = [(arm, 1), (arm, arm), (1, arm), (1, -arm), (arm, -arm), (arm, -1)]
    points += [(-x, -y) for x, y in points]
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return [center + radius * np.array(points) @ rotation.T]


def _make_triangle(center: np.ndarray, radius: float, angle: float) -> Outlines:
    return [_make_polygon(center, radius, angle, 3)]


def _make_star(center: np.ndarray, radius: float, angle: float) -> Outlines:
    outline = _make_polygon(center, radius, angle, 10)
    outline[1::2] = center + 0.4 * (outline[1::2] - center)
    return [outline]


def _make_polygon(center: np.ndarray, radius: float, angle: float, corners: int) -> np.ndarray:
    """Return the corners of a regular polygon: float ``[corners, 2]``."""
    theta = angle + np.arange(corners) * 2 * np.pi / corners
    return center + radius * np.stack([np.cos(theta), np.sin(theta)], 1)


# class name -> function (center, radius, angle) that makes the outlines of the shape
SHAPES: dict[str, Callable[[np.ndarray, float, float], Outlines]] = {
    "disk": _make_disk,
    "ring": _make_ring,
    "square": _make_square,
    "cross": _make_cross,
    "triangle": _make_triangle,
    "star": _make_star,
}


def draw_sample(split: str, index: int) -> Sample:
    """Draw an image uint8 ``[96, 128, 3]`` and its label uint8 ``[96, 128]``.

    In the label, 0 is the background, 1 to 6 are the shapes in the order of SHAPES, and 255 is the outline of a shape.
    """
    rng = np.random.default_rng([sorted(IMAGES).index(split), index])
    grey = rng.uniform(70, 190) + rng.normal(0, 10, 3)
    image = _draw_texture(rng, grey, 6)
    label = np.zeros((HEIGHT, WIDTH), np.uint8)
    for _ in range(rng.integers(4, 9)):
        _draw_shape(rng, image, label)
    image = cv2.GaussianBlur(image, (3, 3), 0) + rng.normal(0, 10, image.shape)
    return np.clip(image, 0, 255).astype(np.uint8), label


def _draw_shape(rng: np.random.Generator, image: np.ndarray, label: np.ndarray) -> None:
    """Draw a random shape at a random place into the image and the label."""
    shape = int(rng.integers(len(SHAPES)))
    center = rng.uniform((8, 8), (WIDTH - 8, HEIGHT - 8))
    radius = rng.uniform(12, 32)
    angle = rng.uniform(0, 2 * np.pi)
    make_outlines = list(SHAPES.values())[shape]
    outlines = [np.round(outline).astype(np.int32) for outline in make_outlines(center, radius, angle)]
    inside = cv2.fillPoly(np.zeros_like(label), outlines, 1).astype(bool)
    border = cv2.polylines(np.zeros_like(label), outlines, True, 1, OUTLINE_WIDTH).astype(bool)
    color = np.array(HUES[shape // 2]) + rng.normal(0, 30, 3)
    image[inside] = _draw_texture(rng, color, 12)[inside]
    label[inside] = shape + 1
    label[border] = IGNORE_INDEX


def _draw_texture(rng: np.random.Generator, color: np.ndarray, cells: int) -> np.ndarray:
    """Draw a colour with smooth random variations: float ``[96, 128, 3]``. More ``cells`` make finer variations."""
    coarse = color + rng.normal(0, 25, (cells, cells, 3))
    return cv2.resize(coarse, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)


def list_pairs(root: Path, split: str) -> list[PathPair]:
    """List the names of images and labels. There are no such files: ``draw_pair`` draws them."""
    return [(Path(f"toy/{split}/{i:04}.png"), Path(f"toy/{split}annot/{i:04}.png")) for i in range(IMAGES[split])]


def draw_pair(image: Path, label: Path) -> Sample:
    """Draw the image and label that ``list_pairs`` named."""
    return draw_sample(image.parent.name, int(image.stem))


TOY = DatasetSpec(
    names=("background", *SHAPES),
    palette=(
        (40, 40, 40), (230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (213, 94, 0), (204, 121, 167),
    ),
    pairs=list_pairs,
    splits={split: (count,) for split, count in IMAGES.items()},
    ids=IdMap.from_ids(range(1 + len(SHAPES))),
    read=draw_pair,
    needs_root=False,
)  # fmt: skip
