"""Padding and pooling in a form that ONNX, and torch's exporter, can state for images of any size."""

from collections.abc import Iterator
from contextlib import contextmanager

from timm.layers import padding
from torch import Tensor, nn

from models.layers import compute_bin_means

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
    """``nn.AdaptiveAvgPool2d`` by products."""

    def __init__(self, bins: int | tuple[int, int]) -> None:
        super().__init__()
        self.bins = bins

    def forward(self, x: Tensor) -> Tensor:
        return compute_bin_means(x, self.bins)


def replace_pools(module: nn.Module) -> None:
    """In place, everywhere; the computed function stays the same."""
    for name, child in module.named_children():
        if isinstance(child, nn.AdaptiveAvgPool2d):
            setattr(module, name, BinMeans(child.output_size))
        else:
            replace_pools(child)
