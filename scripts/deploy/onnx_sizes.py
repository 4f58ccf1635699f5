"""Padding and pooling in a form that ONNX, and torch's exporter, can state for images of any size."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from timm.layers import padding
from torch import Tensor, nn

ORIGINAL = padding.get_same_padding


def same_padding(side: int, kernel: int, stride: int, dilation: int) -> int:
    """TensorFlow's SAME padding of one side, without ceil and max where the kernel covers its stride.

    With those in it the sizes of a deep network become expressions that torch's exporter takes many minutes over.
    """
    covered = (kernel - 1) * dilation
    if covered < stride - 1:
        return ORIGINAL(side, kernel, stride, dilation)
    return covered - (side - 1) % stride


@contextmanager
def simple_same_padding() -> Iterator[None]:
    """timm's networks of TensorFlow's kind (``tf_*``) pad by ``same_padding``."""
    padding.get_same_padding = same_padding
    try:
        yield
    finally:
        padding.get_same_padding = ORIGINAL


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
