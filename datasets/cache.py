"""Decoded samples in memory, shared by the loader's workers."""

import os
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from datasets.files import Arrays, Pair
from utils.errors import UserError
from utils.files import open_regular

GB = 1e9
SHARED_MEMORY = Path("/dev/shm")


class SampleCache:
    """Images and labels at native size, uint8, each decoded once by whichever worker meets it first.

    4 bytes a pixel in one shared block: VOC-Aug 7.9 GB, Cityscapes 25 GB, COCO-Stuff 164k about 145 GB. Every process
    of a torchrun job has its own.
    """

    def __init__(self, pairs: list[Pair], limit_gb: float) -> None:
        """Raises UserError: the images need more than ``limit_gb`` or than the shared memory there is."""
        self.sizes = [_size(image) for image, _ in pairs]
        self.starts = np.concatenate([[0], np.cumsum([4 * height * width for height, width in self.sizes])])
        needed = int(self.starts[-1])
        if needed > limit_gb * GB:
            raise UserError(f"--cache-gb {limit_gb:g}: the {len(pairs)} decoded images take {needed / GB:.2f} GB")
        self.block = _reserve(needed)
        self.filled = torch.zeros(len(pairs), dtype=torch.uint8).share_memory_()

    def get(self, index: int) -> Arrays | None:
        """Image and label as they were put; None for one that was not."""
        return self._views(index) if self.filled[index] else None

    def put(self, index: int, image: np.ndarray, label: np.ndarray) -> None:
        """Two workers that put the same sample write the same bytes."""
        if label.shape == self.sizes[index]:
            for view, value in zip(self._views(index), (image, label), strict=True):
                view[...] = value
            self.filled[index] = 1

    def _views(self, index: int) -> Arrays:
        height, width = self.sizes[index]
        part = self.block[self.starts[index] : self.starts[index + 1]].numpy()
        pixels = height * width
        return part[: 3 * pixels].reshape(height, width, 3), part[3 * pixels :].reshape(height, width)


def _reserve(size: int) -> Tensor:
    """Shared memory that is there: processes that check the free space each for itself exceed it together (SIGBUS)."""
    try:
        with tempfile.TemporaryFile(dir=SHARED_MEMORY if SHARED_MEMORY.is_dir() else None) as file:
            os.posix_fallocate(file.fileno(), 0, max(size, 1))
            return torch.from_file(f"/proc/self/fd/{file.fileno()}", shared=True, size=size, dtype=torch.uint8)
    except OSError as error:
        where = f"{SHARED_MEMORY} (docker: --shm-size; every process of this host has its own)"
        raise UserError(f"--cache-gb: {size / GB:.2f} GB do not fit in {where}: {error.strerror}") from error


def _size(path: Path) -> tuple[int, int]:
    """Height and width, turned as EXIF says, from the file's header."""
    try:
        with open_regular(path) as source, Image.open(source) as file:
            width, height = file.size
            turned = file.getexif().get(0x0112, 1) >= 5  # EXIF tag Orientation: 5 to 8 swap the sides
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    return (width, height) if turned else (height, width)
