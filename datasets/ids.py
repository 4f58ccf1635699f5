"""Tables that convert the ids or colours in label files to the classes of a network, and back."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache

import cv2
import numpy as np

from utils.types import IGNORE_INDEX, Rgb

INVALID = 254  # marks pixels whose id is neither a class nor ignored; classes are 0..253
MAX_CLASSES = INVALID
ID_COUNT = 2**16  # label files hold ids of 8 or 16 bits


@dataclass(frozen=True)
class IdMap:
    """Say which class each id or colour of a label file means. Ids and colours that are not listed are errors.

    Attributes:
        classes: id in the file -> class.
        ignored: ids without a class, whose pixels do not count.
        colors: for labels that are pictures: RGB colour -> class or IGNORE_INDEX.
    """

    classes: Mapping[int, int]
    ignored: Iterable[int] = field(default=(IGNORE_INDEX,))
    colors: Mapping[Rgb, int] = field(default_factory=dict)

    @classmethod
    def from_ids(cls, ids: Iterable[int], ignored: Iterable[int] = (IGNORE_INDEX,)) -> "IdMap":
        """Make a map from the id of class 0, the id of class 1, and so on."""
        return cls({raw: k for k, raw in enumerate(ids)}, tuple(ignored))

    @cached_property
    def _table(self) -> np.ndarray:
        """Return the class of each id, uint8. The last entry is for every number that is no 16-bit id."""
        table = np.full(ID_COUNT + 1, INVALID, np.uint8)
        table[list(self.ignored)] = IGNORE_INDEX
        table[list(self.classes)] = list(self.classes.values())
        return table

    @cached_property
    def _inverse(self) -> np.ndarray:
        """Return the id or colour of each class. Where a class has several, the first one is used."""
        raw_to_class = self.classes
        if not raw_to_class:
            raw_to_class = {color: k for color, k in self.colors.items() if k != IGNORE_INDEX}
        class_to_raw: dict[int, int | Rgb] = {}
        for raw, k in raw_to_class.items():
            class_to_raw.setdefault(k, raw)
        values = np.array([class_to_raw[k] for k in sorted(class_to_raw)])
        return values.astype(np.uint8 if values.max() < 256 else np.uint16)

    def __call__(self, ids: np.ndarray) -> np.ndarray:
        """Convert a label to uint8 ``[H, W]``: classes 0..K-1, IGNORE_INDEX or INVALID.

        ids: ids ``[H, W]`` of any integer type, or RGBA colours uint8 ``[H, W, 4]``, whose alpha is not used.
        """
        if ids.ndim == 3:
            return np.take(_make_color_table(tuple(self.colors.items())), encode_colors(ids), mode="clip")
        if ids.dtype == np.uint8:
            # OpenCV 4 returns [N, 1] for [N], hence the reshape
            return cv2.LUT(np.ascontiguousarray(ids), self._table[:256]).reshape(ids.shape)
        ids = ids.astype(np.int64)
        return self._table[np.where((ids < 0) | (ids > ID_COUNT), ID_COUNT, ids)]

    def to_official(self, prediction: np.ndarray) -> np.ndarray:
        """Convert classes 0..K-1 to the ids or RGB colours of the official files.

        The result has the smallest unsigned type that holds them.
        """
        return self._inverse[prediction]


def encode_colors(colors: np.ndarray) -> np.ndarray:
    """Encode RGBA colours uint8 ``[..., 4]`` as one integer each: red + 256 green + 65536 blue."""
    return np.ascontiguousarray(colors).view("<i4")[..., 0] & 0xFFFFFF


def decode_color(code: int) -> list[int]:
    """Return red, green and blue of a number that ``encode_colors`` made."""
    return [code & 255, code >> 8 & 255, code >> 16]


def list_most_frequent(values: np.ndarray, shown: int) -> str:
    """List the most frequent ids ``[N]`` or RGBA colours ``[N, 4]`` with their numbers of pixels.

    An example with ``shown=2``: ``"77 (600 px), 78 (2 px) and 3 more"``.
    """
    are_colors = values.ndim > 1
    codes = encode_colors(values) if are_colors else values
    found, counts = np.unique(codes, return_counts=True)
    texts = []
    for i in np.argsort(-counts, kind="stable")[:shown]:
        value = decode_color(int(found[i])) if are_colors else found[i]
        texts.append(f"{value} ({counts[i]} px)")
    listed = ", ".join(texts)
    if len(found) > shown:
        listed += f" and {len(found) - shown} more"
    return listed


@lru_cache(maxsize=2)
def _make_color_table(colors: tuple[tuple[Rgb, int], ...]) -> np.ndarray:
    """Return the class of each colour code, uint8 ``[2 ** 24]``.

    The table has 16 MB, so it is no attribute of ``IdMap``: loader workers would receive a copy each.
    """
    table = np.full(2**24, INVALID, np.uint8)
    for (red, green, blue), k in colors:
        table[red + 256 * green + 65536 * blue] = k
    return table
