"""Layers that several architectures share."""

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn


def conv_norm_act(*args: Any, **kwargs: Any) -> nn.Module:
    """Make a convolution without bias, BatchNorm and ReLU: mmcv's ConvModule, with its keys conv.weight and bn.*."""
    from mmcv.cnn import ConvModule  # takes a second to import, at every start

    return ConvModule(*args, **{"norm_cfg": {"type": "BN"}, "act_cfg": {"type": "ReLU"}, **kwargs})


def bin_means(x: Tensor, bins: int | tuple[int, int]) -> Tensor:
    """``nn.AdaptiveAvgPool2d(bins)`` as two matrix products: these repeat to the bit on CUDA, where the gradient of the
    pool adds in any order, and ONNX can state them for sizes that are not known yet.
    """
    counts = (bins, bins) if isinstance(bins, int) else bins
    rows, columns = (_bin_weights(side, n, x) for side, n in zip(x.shape[-2:], counts, strict=True))
    return rows @ x @ columns.T


def _bin_weights(side: int, bins: int, like: Tensor) -> Tensor:
    """``[bins, side]``: each row the weights of a mean over its bin.

    Bin i of n over a side of s covers positions floor(i s / n) to ceil((i + 1) s / n) - 1; bins may overlap.
    """
    i = torch.arange(bins, device=like.device).unsqueeze(1)
    at = torch.arange(side, device=like.device).unsqueeze(0)
    inside = ((at >= i * side // bins) & (at < ((i + 1) * side + bins - 1) // bins)).to(like.dtype)
    return inside / inside.sum(1, keepdim=True)


class Pool(nn.AdaptiveAvgPool2d):
    """Average each bin; by matrix products where runs must repeat."""

    def forward(self, x: Tensor) -> Tensor:
        if torch.are_deterministic_algorithms_enabled():
            return bin_means(x, self.output_size)
        return super().forward(x)


class FCNHead(nn.Module):
    """``in_channels -> channels`` by ``num_convs`` convolutions; ``concat_input`` fuses the input back in.

    MMSegmentation's FCNHead, and LAD's and CIRKD's auxiliary layer. As every head it has ``out_channels`` and leaves
    the classifier to its branch.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        dropout: nn.Module,
        num_convs: int = 1,
        kernel_size: int = 3,
        concat_input: bool = False,
    ) -> None:
        super().__init__()
        self.out_channels = channels
        widths = [in_channels] + [channels] * num_convs
        self.convs = nn.Sequential(
            *(conv_norm_act(a, b, kernel_size, padding=kernel_size // 2) for a, b in pairwise(widths))
        )
        self.fuse = conv_norm_act(in_channels + channels, channels, 3, padding=1) if concat_input else None
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        y = self.convs(x)
        if self.fuse is not None:
            y = self.fuse(torch.cat([x, y], 1))
        return self.dropout(y)
