"""Pooling that ONNX can state for images of any size."""

import torch
from torch import Tensor, nn


class BinMeans(nn.Module):
    """``nn.AdaptiveAvgPool2d`` as two matrix products, which ONNX can state for sizes that are not known yet.

    Bin i of n over a side of s covers positions floor(i s / n) to ceil((i + 1) s / n) - 1; bins may overlap.
    """

    def __init__(self, bins: tuple[int, int]) -> None:
        super().__init__()
        self.bins = bins

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = (_bin_weights(side, n, x) for side, n in zip(x.shape[-2:], self.bins, strict=True))
        return rows @ x @ columns.T


def _bin_weights(side: int, bins: int, like: Tensor) -> Tensor:
    """``[bins, side]``: each row the weights of a mean over its bin."""
    i = torch.arange(bins, device=like.device).unsqueeze(1)
    at = torch.arange(side, device=like.device).unsqueeze(0)
    inside = ((at >= i * side // bins) & (at < ((i + 1) * side + bins - 1) // bins)).to(like.dtype)
    return inside / inside.sum(1, keepdim=True)


def replace_pools(module: nn.Module) -> None:
    """In place, everywhere; the computed function stays the same."""
    for name, child in module.named_children():
        if isinstance(child, nn.AdaptiveAvgPool2d):
            size = child.output_size
            setattr(module, name, BinMeans((size, size) if isinstance(size, int) else tuple(size)))
        else:
            replace_pools(child)
