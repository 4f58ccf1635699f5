"""Padding that the exporter can reason about for images of any size."""

from collections.abc import Iterator
from contextlib import contextmanager

from timm.layers import padding


def same_padding(side: int, kernel: int, stride: int, dilation: int) -> int:
    """TensorFlow's SAME padding of one side, without ceil and max where the kernel covers its stride.

    With those in it the sizes of a deep network become expressions that torch's exporter takes many minutes over.
    """
    covered = (kernel - 1) * dilation
    if covered < stride - 1:
        return ORIGINAL(side, kernel, stride, dilation)
    return covered - (side - 1) % stride


ORIGINAL = padding.get_same_padding


@contextmanager
def simple_same_padding() -> Iterator[None]:
    """timm's networks of TensorFlow's kind (``tf_*``) pad by ``same_padding``."""
    padding.get_same_padding = same_padding
    try:
        yield
    finally:
        padding.get_same_padding = ORIGINAL
