"""Inputs of the comparisons, and the release's form of them."""

import torch
import torch.nn.functional as F
from torch import Tensor

from models.label_noise import LabelNoise
from scripts.study import as_released
from utils.pixels import CONVENTIONS
from utils.seeding import RowGenerator
from utils.types import IGNORE_INDEX

CONVENTION = CONVENTIONS["bgr_mean"]  # the release's


def make_label_maps(batch: int, size: tuple[int, int], num_classes: int) -> Tensor:
    """Return label maps of random patches, ignored ones too: uint8 ``[B, H, W]``."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randint(0, num_classes + 1, (batch, 1, 8, 8), generator=generator).float()
    index = F.interpolate(coarse, size, mode="nearest")[:, 0]
    return index.masked_fill(index == num_classes, IGNORE_INDEX).to(torch.uint8)


def mark_ignored(label: Tensor) -> Tensor:
    """Return labels as the release's loader gives them: float32, -1 where ignored."""
    return label.float().masked_fill(label == IGNORE_INDEX, -1)


def repeat_draws(
    noise: LabelNoise, label: Tensor, generator: RowGenerator, path: int
) -> tuple[as_released.Code, as_released.Pixels]:
    """Return the codes and the pixel noise that ``noise`` draws, for the release's way of using them."""
    table = noise.table.to(label.device, torch.float32)
    codes = noise.draw_codes(table, len(label), generator, path)
    return lambda j, k: codes[j, k], lambda plane: generator.normal(plane.clone(), 2 * path + 1)
