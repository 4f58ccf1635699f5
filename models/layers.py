"""Layers that several architectures share."""

from functools import partial
from itertools import pairwise

import torch
from mmcv.cnn import ConvModule
from torch import Tensor, nn

# convolution without bias, BatchNorm, ReLU; keys conv.weight and bn.*
conv_norm_act = partial(ConvModule, norm_cfg={"type": "BN"}, act_cfg={"type": "ReLU"})


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
