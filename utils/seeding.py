"""Random numbers that depend on what they are for alone: a resumed or differently split run draws the same ones."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

# Streams of ``derive_seed(seed, stream, ...)``: each use of a training's seed has a number of its own. Evaluations have
# no stream: the label noise of image i is that of ``derive_seed(seed, i)``.
DROPOUT_STREAM = 1
LABEL_NOISE_STREAM = 2
SHUFFLE_STREAM = 3
AUGMENTATION_STREAM = 4
WRONG_LABELS_STREAM = 5

ROW_STEP = 1_000_003  # between the seeds of two rows of a batch: above the number of any stream


def derive_seed(*parts: int) -> int:
    """Return a 62-bit seed that depends on every one of the non-negative integers, in order.

    Trailing zeros of up to four integers do not count: ``(seed, i)`` and ``(seed, i, 0)`` give one seed.
    """
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> np.uint64(2))


class RowGenerator(NamedTuple):
    """Draw random numbers for a batch. They depend on the seed and the row in the global batch, not on the rank.

    Row ``first + b`` of the global batch has random numbers of its own. So one rank or eight see the same noise on the
    same sample, and each rank draws its own rows only.
    """

    seed: int
    first: int = 0

    @classmethod
    def from_global_state(cls) -> "RowGenerator":
        """Return a generator whose seed is drawn from torch's global random state."""
        return cls(int(torch.randint(2**62, ())))

    def normal(self, values: Tensor, stream: int) -> Tensor:
        """Fill ``values [B, ...]`` with standard normal numbers, and return it.

        stream: tells independent draws of one batch apart.
        """
        generator = torch.Generator(values.device)
        for b, row in enumerate(values):
            generator.manual_seed(self.seed + stream + ROW_STEP * (self.first + b))
            row.normal_(generator=generator)
        return values

    def uniform(self, count: int, stream: int, device: torch.device) -> Tensor:
        """Return one number in [0, 1) for each of ``count`` rows: float32 ``[count]``. stream: as in ``normal``."""
        generator = torch.Generator(device)
        values = torch.empty(count, device=device)
        for b in range(count):
            generator.manual_seed(self.seed + stream + ROW_STEP * (self.first + b))
            values[b : b + 1].uniform_(generator=generator)
        return values
