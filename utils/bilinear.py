"""Bilinear interpolation, whole and in parts."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def resize(x: Tensor, size: Sequence[int], align_corners: bool = False) -> Tensor:
    """Resize maps bilinearly, in the type of ``x``. Under autocast CUDA would return float32, and the CPU would not."""
    if x.shape[-2:] == tuple(size):
        return x
    return F.interpolate(x, size, mode="bilinear", align_corners=align_corners).to(x.dtype)


def neighbours(side: int, small: int, align_corners: bool, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return for each of ``side`` positions its two neighbours among ``small``, int64, and the second one's share."""
    at = torch.arange(side, device=like.device, dtype=torch.float64)
    at = at * ((small - 1) / max(side - 1, 1)) if align_corners else ((at + 0.5) * (small / side) - 0.5).clamp_(min=0)
    low = at.long().clamp_(max=small - 1)
    return low, (low + 1).clamp_(max=small - 1), (at - low).to(like.dtype)


def upsampled_argmax(logits: Tensor, size: Sequence[int], align_corners: bool, rows: int = 48) -> Tensor:
    """Compute ``interpolate(logits, size, "bilinear").argmax(1)`` in bands of ``rows`` rows, to bound the memory.

    Rows are interpolated first, then columns of one band, with channels last: the same sums in another order. Between
    two neighbours with the same largest class every pixel has it, and only the others are mixed where they are few; on
    CUDA all are, since counting them would wait for the device. ``[B, K, h, w] -> int64 [B, H, W]``.
    """
    (height, width), (h, w) = size, logits.shape[2:]
    low, high, down = neighbours(height, h, align_corners, logits)
    left, right, along = neighbours(width, w, align_corners, logits)
    logits = logits.permute(0, 2, 3, 1).contiguous()
    classes = torch.empty(len(logits), height, width, dtype=torch.long, device=logits.device)
    for start in range(0, height, rows):
        band = slice(start, min(start + rows, height))
        upper, lower = (logits.index_select(1, side[band]) for side in (low, high))
        mixed = upper.lerp_(lower, down[band].view(-1, 1, 1))
        if not logits.is_cuda:
            best = mixed.argmax(3)
            found = best.index_select(2, left)
            unsure = (found != best.index_select(2, right)).flatten().nonzero().squeeze(1)
        if logits.is_cuda or len(unsure) > found.numel() / 3:
            found = resize(mixed.permute(0, 3, 1, 2), (mixed.shape[1], width), align_corners).argmax(1)
        else:
            line = unsure.div(width, rounding_mode="floor")
            column, first, pixels = unsure - line * width, line * w, mixed.flatten(0, 2)
            one, two = (pixels.index_select(0, first + side[column]) for side in (left, right))
            found.view(-1)[unsure] = one.lerp_(two, along[column, None]).argmax(1)
        classes[:, band] = found
    return classes
