"""What a bilinear interpolation reads along one side."""

import torch
from torch import Tensor


def neighbours(side: int, small: int, align_corners: bool, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """For each of ``side`` positions its two neighbours among ``small``, int64, and the second one's share."""
    at = torch.arange(side, device=like.device, dtype=torch.float64)
    at = at * ((small - 1) / max(side - 1, 1)) if align_corners else ((at + 0.5) * (small / side) - 0.5).clamp_(min=0)
    low = at.long().clamp_(max=small - 1)
    return low, (low + 1).clamp_(max=small - 1), (at - low).to(like.dtype)
