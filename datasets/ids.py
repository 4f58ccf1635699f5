"""Label ids of the files and classes of the network, each from the other by table."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import cv2
import numpy as np

from utils.types import IGNORE_INDEX

INVALID = 254  # marks pixels whose id is neither a class nor ignored; classes are 0..253
MAX_CLASSES = INVALID
_SIZE = 2**16  # ids that a file may hold: 8 or 16 bit


@dataclass(frozen=True)
class IdMap:
    """``classes``: id in the file -> class; ``ignored``: ids without a class. Any other id is an error of the file."""

    classes: Mapping[int, int]
    ignored: Iterable[int] = field(default=(IGNORE_INDEX,))

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
        """Id by class; the first one where several ids are one class."""
        first = {k: raw for raw, k in reversed(self.classes.items())}
        ids = [first[k] for k in sorted(first)]
        return np.array(ids, np.uint8 if max(ids) < 256 else np.uint16)

    def __call__(self, ids: np.ndarray) -> np.ndarray:
        """Ids of any integer type -> uint8: 0..K-1, IGNORE_INDEX, or INVALID."""
        if ids.dtype == np.uint8:
            return cv2.LUT(np.ascontiguousarray(ids), self._table[:256])
        ids = ids.astype(np.int64)
        return self._table[np.where((ids < 0) | (ids > _SIZE), _SIZE, ids)]

    def official(self, prediction: np.ndarray) -> np.ndarray:
        """Classes 0..K-1 -> the ids of the files, the smallest unsigned type that holds them."""
        return self._inverse[prediction]
