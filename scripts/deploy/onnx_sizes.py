"""Padding and pooling in a form that ONNX, and torch's exporter, can state for images of any size."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module

import torch.nn.functional as F
from segmentation_models_pytorch.decoders.pspnet.decoder import PSPBlock
from timm.layers import padding
from torch import Tensor, nn

from models.layers import compute_bin_means
from utils.bilinear import resize

# timm's modules that pad; each has imported timm's ``pad_same`` under this name
PADDING_MODULES = [import_module(f"timm.layers.{name}") for name in ("conv2d_same", "pool2d_same", "std_conv")]


def split_same_padding(side: int, kernel: int, stride: int, dilation: int) -> tuple[int, int]:
    """Return how many rows to add before and after a side of a map, so that convolving gives TensorFlow's SAME result.

    SAME padding depends on the remainder of side / stride, and torch's exporter takes minutes over the sizes that
    follow from it in a deep network. So the padding is made larger where the kernel covers its stride: the padded side
    is then always ``side + (kernel - 1) * dilation``. No window of the kernel reaches the additional rows after the
    side, and the output has ceil(side / stride) rows with either padding.
    """
    covered = (kernel - 1) * dilation
    if covered < stride - 1:
        total = padding.get_same_padding(side, kernel, stride, dilation)
        return total // 2, total - total // 2
    before = (covered - (side - 1) % stride) // 2
    return before, covered - before


def pad_same(
    x: Tensor, kernel_size: Sequence[int], stride: Sequence[int], dilation: Sequence[int] = (1, 1), value: float = 0
) -> Tensor:
    """Pad maps ``[B, C, h, w]`` as timm's function of this name does, in a form with simple sizes."""
    top, bottom = split_same_padding(x.shape[-2], kernel_size[0], stride[0], dilation[0])
    left, right = split_same_padding(x.shape[-1], kernel_size[1], stride[1], dilation[1])
    return F.pad(x, (left, right, top, bottom), value=value)


@contextmanager
def use_simple_same_padding() -> Iterator[None]:
    """Let timm's networks of TensorFlow's kind (``tf_*``) pad by ``pad_same`` of this module."""
    originals = [module.pad_same for module in PADDING_MODULES]
    for module in PADDING_MODULES:
        module.pad_same = pad_same
    try:
        yield
    finally:
        for module, original in zip(PADDING_MODULES, originals, strict=True):
            module.pad_same = original


class BinMeans(nn.Module):
    """``nn.AdaptiveAvgPool2d`` computed by matrix products."""

    def __init__(self, bins: int | tuple[int, int]) -> None:
        super().__init__()
        self.bins = bins

    def forward(self, x: Tensor) -> Tensor:
        return compute_bin_means(x, self.bins)


class PyramidBranch(nn.Module):
    """A branch of segmentation_models_pytorch's PSPNet in its ordinary form.

    In an export the library takes another form, whose file is right for the traced size alone.
    """

    def __init__(self, pool: nn.Module) -> None:
        super().__init__()
        self.pool = pool

    def forward(self, x: Tensor) -> Tensor:
        return resize(self.pool(x), x.shape[-2:], align_corners=True)


def use_new_maps(module: nn.Module) -> None:
    """Let no activation in ``module`` overwrite its input: torch's exporter takes seconds to undo that."""
    for part in module.modules():
        if getattr(part, "inplace", False):
            part.inplace = False


def make_pools_exportable(module: nn.Module) -> None:
    """Replace every adaptive pooling inside ``module`` by ``BinMeans``, which computes the same. Changes ``module``."""
    for name, child in module.named_children():
        if isinstance(child, nn.AdaptiveAvgPool2d):
            setattr(module, name, BinMeans(child.output_size))
        elif isinstance(child, PSPBlock):
            make_pools_exportable(child)
            setattr(module, name, PyramidBranch(child.pool))
        else:
            make_pools_exportable(child)
