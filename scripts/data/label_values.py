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
from datasets.ids import encode_colors
from utils.errors import UserError
from utils.types import IGNORE_INDEX, Rgb

Value = int | Rgb
BLACK = (0, 0, 0)
VOID = (224, 224, 192)  # the outlines of VOC
SMALL = 0.15  # share of pixels up to which 255, black or VOID is probably "unlabelled" rather than a class
STRAY = 0.005  # share of pixels up to which a value may be a stray one
EDGE = 0.05  # the same for an id that lies between its neighbours, as along the edges of small masks
BETWEEN = 0.9  # share of a stray id's pixels that touch both a lower and a higher id
WIDE = 8  # grey levels between classes that are drawn as grey levels or colours


class LabelValues:
    """The ids or RGB colours of label files, with their counts.

    pixels, files: how many pixels and files have a value. solid: how many pixels have it in all of their neighbourhood
    of 3x3. between: how many pixels of an id have both a lower and a higher id in it.
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
        lowest, highest = cv2.erode(numbers, neighbourhood), cv2.dilate(numbers, neighbourhood)
        pixels = self._occurrences(codes)
        self.pixels.update(pixels)
        self.files.update(pixels.keys())
        self.solid.update(self._occurrences(codes[lowest == highest]))
        self.between.update(self._occurrences(codes[(lowest < numbers) & (numbers < highest)]))

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

    def _occurrences(self, codes: np.ndarray) -> Counter[Value]:
        found, counts = np.unique(codes, return_counts=True)
        values = found.tolist()
        if self.colored:
            values = [(code & 255, code >> 8 & 255, code >> 16) for code in values]
        return Counter(dict(zip(values, counts.tolist(), strict=True)))

    def _find_strays(self) -> list[Value]:
        """Find what is left of a mask that was resized with blending: rare values at the edges of others.

        A rare class of thin objects has edges only, too. It is told from strays by its neighbours, which are not all
        lower on one side and higher on the other, or by ids that follow one another closely.
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
        return sorted(value for value in rare if self.between[value] >= BETWEEN * self.pixels[value])

    def _find_edges(self) -> list[Value]:
        """Find ids that only occur between a lower and a higher one, where the other ids are drawn as grey levels.

        In masks that were resized with blending they have more than the share of a few stray pixels.
        """
        if self.colored:
            return []
        edges = {
            value
            for value in self.pixels
            if self.share(value) < EDGE
            and not self.solid[value]
            and (self.share(value) < STRAY or self.between[value] >= BETWEEN * self.pixels[value])
        }
        levels = sorted(self.pixels.keys() - edges)
        return sorted(edges) if len(levels) >= 2 and self._are_far_apart(levels) else []

    def _are_far_apart(self, values: Sequence[Value]) -> bool:
        """Say whether each two of the values, sorted, differ by WIDE grey levels or more."""
        if not self.colored:
            return all(high - low >= WIDE for low, high in pairwise(values))
        return all(
            max(abs(a - b) for a, b in zip(one, other, strict=True)) >= WIDE for one, other in combinations(values, 2)
        )

    def share(self, value: Value) -> float:
        return self.pixels[value] / self.pixels.total()

    def find_unlabelled(self) -> list[Value]:
        """Find the values, besides strays, that probably mean "no label": at least two classes remain without them."""
        usual = [BLACK, VOID] if self.colored else [IGNORE_INDEX]
        found = [value for value in usual if 0 < self.share(value) < SMALL]
        remaining = len(self.pixels) - len(self.strays) - len(found)
        return sorted(found) if remaining >= 2 else []

    def describe(self, *values: Value) -> str:
        """Say how many pixels and files have the values."""
        share = sum(map(self.share, values))
        files = max(self.files[value] for value in values)
        at_least = "at least " if len(values) > 1 and files < self.looked_into else ""
        return f"{share:.2%} of the pixels, in {at_least}{files} of {self.looked_into} files"
