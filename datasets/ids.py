"""Label ids or colours of the files and classes of the network, each from the other by table."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache

import cv2
import numpy as np

from utils.types import IGNORE_INDEX, Rgb

INVALID = 254  # marks pixels whose id is neither a class nor ignored; classes are 0..253
MAX_CLASSES = INVALID
_SIZE = 2**16  # ids that a file may hold: 8 or 16 bit


@dataclass(frozen=True)
class IdMap:
    """``classes``: id in the file -> class; ``ignored``: ids without a class. Any other id is an error of the file.

    ``colors``: the same for labels that are pictures: RGB colour -> class or IGNORE_INDEX.
    """

    classes: Mapping[int, int]
    ignored: Iterable[int] = field(default=(IGNORE_INDEX,))
    colors: Mapping[Rgb, int] = field(default_factory=dict)

    @classmethod
    def of(cls, ids: Iterable[int], ignored: Iterable[int] = (IGNORE_INDEX,)) -> "IdMap":
        """``ids``: the id of class 0, of class 1, and so on."""
        return cls({raw: k for k, raw in enumerate(ids)}, tuple(ignored))

    @cached_property
    def _table(self) -> np.ndarray:
        """Class by id, uint8; the last entry is for everything that is no 16-bit id."""
        table = np.full(_SIZE + 1, INVALID, np.uint8)
        table[list(self.ignored)] = IGNORE_INDEX
        table[list(self.classes)] = list(self.classes.values())
        return table

    @cached_property
    def _inverse(self) -> np.ndarray:
        """Id or colour by class; the first one where several are one class."""
        kinds = self.classes or {color: k for color, k in self.colors.items() if k != IGNORE_INDEX}
        first = {k: raw for raw, k in reversed(kinds.items())}
        values = np.array([first[k] for k in sorted(first)])
        return values.astype(np.uint8 if values.max() < 256 else np.uint16)

    def __call__(self, ids: np.ndarray) -> np.ndarray:
        """Ids of any integer type ``[H, W]``, or colours RGBA ``[H, W, 4]`` uint8 -> uint8 ``[H, W]``: 0..K-1,
        IGNORE_INDEX, or INVALID. Alpha is not looked at.
        """
        if ids.ndim == 3:
            return np.take(_color_table(tuple(self.colors.items())), color_codes(ids), mode="clip")
        if ids.dtype == np.uint8:
            # OpenCV 4 gives [N, 1] for [N]
            return cv2.LUT(np.ascontiguousarray(ids), self._table[:256]).reshape(ids.shape)
        ids = ids.astype(np.int64)
        return self._table[np.where((ids < 0) | (ids > _SIZE), _SIZE, ids)]

    def official(self, prediction: np.ndarray) -> np.ndarray:
        """Classes 0..K-1 -> the ids of the files, the smallest unsigned type that holds them; or their RGB colours."""
        return self._inverse[prediction]


def color_codes(colors: np.ndarray) -> np.ndarray:
    """RGBA ``[..., 4]`` uint8 -> ``[...]``: red + 256 green + 65536 blue."""
    return np.ascontiguousarray(colors).view("<i4")[..., 0] & 0xFFFFFF


def most_frequent(values: np.ndarray, shown: int) -> str:
    """Ids ``[N]`` or colours ``[N, 4]`` with their counts: ``"77 (600 px), 78 (2 px) and 3 more"``."""
    codes = values if values.ndim == 1 else color_codes(values)
    found, counts = np.unique(codes, return_counts=True)
    first = np.argsort(-counts, kind="stable")[:shown]
    texts = found if values.ndim == 1 else [[int(c) & 255, int(c) >> 8 & 255, int(c) >> 16] for c in found]
    listed = ", ".join(f"{texts[i]} ({counts[i]} px)" for i in first)
    return listed + (f" and {len(found) - shown} more" if len(found) > shown else "")


@lru_cache(maxsize=2)
def _color_table(colors: tuple[tuple[Rgb, int], ...]) -> np.ndarray:
    """Class by colour code, uint8: 16 MB, of which labels touch few places. Kept out of what is sent to workers."""
    table = np.full(2**24, INVALID, np.uint8)
    for (red, green, blue), k in colors:
        table[red + 256 * green + 65536 * blue] = k
    return table
