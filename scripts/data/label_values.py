"""Count the ids or colours in label files, and find values that are no class."""

from collections import Counter
from collections.abc import Sequence
from itertools import combinations, pairwise
from pathlib import Path

import cv2
import numpy as np
from PIL import Image
from tqdm import tqdm

from datasets.files import read_label
from datasets.ids import decode_color, encode_colors
from utils.errors import UserError
from utils.types import IGNORE_INDEX, Rgb

Value = int | Rgb  # an id or a colour
BLACK = (0, 0, 0)
VOID = (224, 224, 192)  # the colour of the outlines in VOC's labels
SMALL = 0.15  # share of pixels up to which 255, black or VOID is probably "unlabelled" rather than a class
STRAY = 0.005  # share of pixels up to which a value may be a stray one
EDGE = 0.05  # the same for an id whose pixels lie between lower and higher ids, as along the edges of small masks
BETWEEN = 0.9  # share of a stray id's pixels that touch both a lower and a higher id
WIDE = 8  # grey levels between classes that are drawn as grey levels or colours


class LabelValues:
    """Count the ids or RGB colours in label files.

    Attributes:
        pixels: value -> how many pixels have it.
        files: value -> how many files have it.
        solid: value -> how many pixels have it together with all their neighbours, 3x3 pixels.
        between: id -> how many of its pixels have both a lower and a higher id among their neighbours.
        looked_into: how many files were read.
        colored: the values are colours.
        palettes: id -> its colour in the palette pictures, and the first file that has it.
        strays: the values that are no class, but come from resizing with blending.
    """

    def __init__(self, labels: Sequence[Path]) -> None:
        """Read the label files.

        Raises:
            UserError: a file cannot be read, or an id has another colour in the palettes of two files.
        """
        self.pixels: Counter[Value] = Counter()
        self.files: Counter[Value] = Counter()
        self.solid: Counter[Value] = Counter()
        self.between: Counter[Value] = Counter()
        self.looked_into = len(labels)
        self.colored = any(read_label(path, colored=True).ndim == 3 for path in labels)
        self.palettes: dict[int, tuple[Rgb, Path]] = {}
        for path in tqdm(labels, "labels", disable=None):
            label = read_label(path, indexed=not self.colored, colored=self.colored)
            self._count(encode_colors(label) if self.colored else label)
            if not self.colored:
                self._require_same_palette(path, np.unique(label).tolist())
        self.strays = self._find_strays()

    def _count(self, codes: np.ndarray) -> None:
        """Add a label ``[H, W]`` of ids or colour codes to the counts."""
        numbers = codes.astype(np.float32)  # exact for colour codes, which have 24 bits, and for ids that are accepted
        neighbourhood = np.ones((3, 3), np.uint8)
        lowest = cv2.erode(numbers, neighbourhood)
        highest = cv2.dilate(numbers, neighbourhood)
        is_between = (lowest < numbers) & (numbers < highest)
        pixels = self._count_values(codes)
        self.pixels.update(pixels)
        self.files.update(pixels.keys())
        self.solid.update(self._count_values(codes[lowest == highest]))
        self.between.update(self._count_values(codes[is_between]))

    def _require_same_palette(self, path: Path, ids: Sequence[int]) -> None:
        """Check that the ids of a palette picture have the colours that they have in the other files.

        Raises:
            UserError: an id has another colour: the tool that made the files numbered the colours of each file anew.
        """
        if path.suffix == ".mat":
            return
        with Image.open(path) as file:
            if file.mode != "P":
                return
            palette = file.getpalette()
        for value in ids:
            color = tuple(palette[3 * value : 3 * value + 3])
            known, first = self.palettes.setdefault(value, (color, path))
            if known != color:
                raise UserError(
                    f"id {value} has the colour {list(known)} in {first} and {list(color)} in {path}: the palettes "
                    "differ, so an id may mean another class in each; save labels in RGB, or as grey pictures of ids"
                )

    def _count_values(self, codes: np.ndarray) -> Counter[Value]:
        """Return how often each id or colour is among ids or colour codes of any shape."""
        found, counts = np.unique(codes, return_counts=True)
        values = found.tolist()
        if self.colored:
            values = [tuple(decode_color(code)) for code in values]
        return Counter(dict(zip(values, counts.tolist(), strict=True)))

    def _find_strays(self) -> list[Value]:
        """Find the values that come from resizing a mask with blending: rare values at the edges of other values.

        Where the common values are far apart, every rare value without solid pixels is a stray one. Where the common
        ids follow one another closely, a rare id may be a class of thin objects, which has no solid pixels either. It
        is a stray id only if nearly all of its pixels lie between lower and higher ids. Of colours this cannot be told.
        """
        edges = self._find_edges()
        if edges:
            return edges
        rare = {value for value in self.pixels if self.share(value) < STRAY and not self.solid[value]}
        common = sorted(self.pixels.keys() - rare)
        if len(common) < 2:
            return []
        if self._are_far_apart(common):
            return sorted(rare)
        if self.colored:
            return []
        return sorted(value for value in rare if self._is_mostly_between(value))

    def _find_edges(self) -> list[Value]:
        """Find the ids along the edges of masks that were resized with blending, where classes are far grey levels.

        The edges of small masks may have more pixels than STRAY allows. Their ids then have to lie between lower and
        higher ones.
        """
        if self.colored:
            return []
        edges = set()
        for value in self.pixels:
            is_edge = self.share(value) < STRAY or self._is_mostly_between(value)
            if is_edge and self.share(value) < EDGE and not self.solid[value]:
                edges.add(value)
        levels = sorted(self.pixels.keys() - edges)
        if len(levels) < 2 or not self._are_far_apart(levels):
            return []
        return sorted(edges)

    def _is_mostly_between(self, value: int) -> bool:
        """Return whether nearly all pixels of an id lie between lower and higher ids."""
        return self.between[value] >= BETWEEN * self.pixels[value]

    def _are_far_apart(self, values: Sequence[Value]) -> bool:
        """Return whether any two of the sorted values differ by WIDE or more; two colours, in one channel at least."""
        if self.colored:
            return all(_compute_distance(one, other) >= WIDE for one, other in combinations(values, 2))
        return all(high - low >= WIDE for low, high in pairwise(values))

    def share(self, value: Value) -> float:
        """Return the share of all pixels that have a value, 0 to 1."""
        return self.pixels[value] / self.pixels.total()

    def find_unlabelled(self) -> list[Value]:
        """Find the values, besides strays, that probably mean "no label".

        Return none of them if fewer than two classes would remain.
        """
        usual = [BLACK, VOID] if self.colored else [IGNORE_INDEX]
        found = [value for value in usual if 0 < self.share(value) < SMALL]
        remaining = len(self.pixels) - len(self.strays) - len(found)
        return sorted(found) if remaining >= 2 else []

    def describe(self, *values: Value) -> str:
        """Say which share of the pixels and how many files have the values.

        The number of files is the largest of a single value. For several values it may be too low.
        """
        share = sum(map(self.share, values))
        files = max(self.files[value] for value in values)
        at_least = "at least " if len(values) > 1 and files < self.looked_into else ""
        return f"{share:.2%} of the pixels, in {at_least}{files} of {self.looked_into} files"


def _compute_distance(one: Rgb, other: Rgb) -> int:
    """Return the largest difference of two colours in a channel."""
    return max(abs(a - b) for a, b in zip(one, other, strict=True))
