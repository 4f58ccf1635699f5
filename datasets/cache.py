"""Decoded samples in memory, shared by the loader's workers."""

import multiprocessing
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

    4 bytes a pixel in one shared block: VOC-Aug 7.9 GB, Cityscapes 25 GB, COCO-Stuff 164k about 145 GB. Every rank
    has its own.

    A flag says of each sample that it is there. Flags are read and written under one lock, pixels are not. The lock
    orders memory between processes: without it, a processor such as ARM may show a reader the flag before the pixels
    that were written first. It is held for the flag alone, so that it costs a reader about a microsecond, and no worker
    waits for another's copy.
    """

    def __init__(self, pairs: list[Pair], limit_gb: float) -> None:
        """Reserve memory for the decoded pairs.

        Raises:
            UserError: the images need more than ``limit_gb`` or than the shared memory there is.
        """
        self.sizes = [_size(image) for image, _ in pairs]
        self.starts = np.concatenate([[0], np.cumsum([4 * height * width for height, width in self.sizes])])
        needed = int(self.starts[-1])
        if needed > limit_gb * GB:
            raise UserError(f"--cache-gb {limit_gb:g}: the {len(pairs)} decoded images take {needed / GB:.2f} GB")
        self.block = _reserve(needed)
        self.filled = torch.zeros(len(pairs), dtype=torch.uint8).share_memory_()
        self.lock = multiprocessing.get_context("fork").Lock()  # of ``filled``; loader workers are forked

    def get(self, index: int) -> Arrays | None:
        """Return image and label as they were put, or None for a sample that was not."""
        with self.lock:
            is_filled = bool(self.filled[index])
        return self._views(index) if is_filled else None

    def put(self, index: int, image: np.ndarray, label: np.ndarray) -> None:
        """Keep a sample. Two workers that put the same one write the same bytes."""
        if label.shape != self.sizes[index]:
            return
        own_image, own_label = self._views(index)
        own_image[...] = image
        own_label[...] = label
        with self.lock:
            self.filled[index] = 1

    def _views(self, index: int) -> Arrays:
        """Return the places of a sample's image and label in the block."""
        height, width = self.sizes[index]
        part = self.block[self.starts[index] : self.starts[index + 1]].numpy()
        pixels = height * width
        return part[: 3 * pixels].reshape(height, width, 3), part[3 * pixels :].reshape(height, width)


def _reserve(size: int) -> Tensor:
    """Allocate shared memory up front, so that several ranks cannot overcommit it (which would end in SIGBUS).

    Raises:
        UserError: there is not so much.
    """
    try:
        with tempfile.TemporaryFile(dir=SHARED_MEMORY if SHARED_MEMORY.is_dir() else None) as file:
            os.posix_fallocate(file.fileno(), 0, max(size, 1))
            return torch.from_file(f"/proc/self/fd/{file.fileno()}", shared=True, size=size, dtype=torch.uint8)
    except OSError as error:
        where = f"{SHARED_MEMORY} (docker: --shm-size; every process of this host has its own)"
        raise UserError(f"--cache-gb: {size / GB:.2f} GB do not fit in {where}: {error.strerror}") from error


def _size(path: Path) -> tuple[int, int]:
    """Read height and width from an image file's header, turned as EXIF says.

    Raises:
        UserError: the file cannot be read.
    """
    try:
        with open_regular(path) as source, Image.open(source) as file:
            width, height = file.size
            turned = file.getexif().get(0x0112, 1) >= 5  # EXIF tag Orientation: 5 to 8 swap the sides
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    return (width, height) if turned else (height, width)
