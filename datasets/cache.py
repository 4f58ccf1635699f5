"""A cache of decoded samples in memory that all loader workers of a rank share."""

import multiprocessing
import os
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from datasets.files import PathPair, Sample
from utils.errors import UserError
from utils.pictures import read_size

GB = 1e9
SHARED_MEMORY = Path("/dev/shm")


class SampleCache:
    """Keep decoded images and labels at their own size, so that each file is decoded only once.

    The samples lie in one block of shared memory, 4 bytes a pixel: VOC-Aug needs 7.9 GB, Cityscapes 25 GB, COCO-Stuff
    164k about 145 GB. Every rank has a cache of its own.

    A flag for each sample says whether the cache holds it. A lock guards the flags, but not the pixels. The lock orders
    memory between processes: without it, a processor such as ARM may show a reader the new flag and the old pixels. A
    worker holds the lock only for the flag, about a microsecond, so that no worker waits while another copies pixels.
    """

    def __init__(self, pairs: list[PathPair], limit_gb: float) -> None:
        """Reserve memory for all decoded pairs.

        limit_gb: the most memory that the cache may take, in units of 10^9 bytes.

        Raises:
            UserError: the decoded pairs need more than ``limit_gb``, or more than the free shared memory.
        """
        self.sizes = [read_size(image) for image, _ in pairs]
        self.starts = np.concatenate([[0], np.cumsum([4 * height * width for height, width in self.sizes])])
        needed = int(self.starts[-1])
        if needed > limit_gb * GB:
            raise UserError(
                f"--cache-gb {limit_gb:g}: the {len(pairs)} decoded images take {needed / GB:.2f} GB; "
                "allow so much, or leave it out"
            )
        self.block = _allocate_shared(needed)
        self.filled = torch.zeros(len(pairs), dtype=torch.uint8).share_memory_()
        self.lock = multiprocessing.get_context("fork").Lock()  # guards ``filled``; loader workers are forked

    def get(self, index: int) -> Sample | None:
        """Return the image and label that were put, or None if the sample is not in the cache.

        The arrays are views of the cache: do not write to them.
        """
        with self.lock:
            is_filled = bool(self.filled[index])
        return self._get_views(index) if is_filled else None

    def put(self, index: int, image: np.ndarray, label: np.ndarray) -> None:
        """Keep a sample, unless it does not have the size that was reserved for it.

        The size differs where ``read_image`` does not turn a picture, because its label has the size of the picture as
        stored. It is safe for two workers to put the same sample: they write the same bytes.
        """
        if label.shape != self.sizes[index]:
            return
        own_image, own_label = self._get_views(index)
        own_image[...] = image
        own_label[...] = label
        with self.lock:
            self.filled[index] = 1

    def _get_views(self, index: int) -> Sample:
        """Return writable arrays of a sample's image and label in the shared block."""
        height, width = self.sizes[index]
        part = self.block[self.starts[index] : self.starts[index + 1]].numpy()
        pixels = height * width
        return part[: 3 * pixels].reshape(height, width, 3), part[3 * pixels :].reshape(height, width)


def _allocate_shared(size: int) -> Tensor:
    """Allocate shared memory up front, so that several ranks cannot overcommit it (which would end in SIGBUS).

    Raises:
        UserError: less shared memory is free.
    """
    try:
        with tempfile.TemporaryFile(dir=SHARED_MEMORY if SHARED_MEMORY.is_dir() else None) as file:
            os.posix_fallocate(file.fileno(), 0, max(size, 1))
            return torch.from_file(f"/proc/self/fd/{file.fileno()}", shared=True, size=size, dtype=torch.uint8)
    except OSError as error:
        where = f"{SHARED_MEMORY} (docker: --shm-size; every rank on this host needs as much)"
        raise UserError(f"--cache-gb: {size / GB:.2f} GB do not fit in {where}: {error.strerror}") from error
