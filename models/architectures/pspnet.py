"""Pyramid pooling head (Zhao et al., PSPNet, CVPR 2017)."""

import torch
from torch import Tensor, nn

from models.architectures.assembly import (
    assemble_mmseg_network,
    assemble_release_network,
    choose_head_input,
    choose_head_width,
)
from models.layers import Pool, make_conv_norm_act
from models.segmentor import Segmentor
from utils.bilinear import resize

BINS = (1, 2, 3, 6)


class PSPHead(nn.Module):
    """Pool a map to 1, 2, 3 and 6 bins a side, convolve and upsample each, and fuse all by a 3x3 convolution."""

    def __init__(
        self, in_channels: int, branch_channels: int, channels: int, dropout: nn.Module, align_corners: bool
    ) -> None:
        """Build the head. ``branch_channels`` is the width of each pooled branch, ``channels`` that of the output."""
        super().__init__()
        self.out_channels = channels
        self.align_corners = align_corners
        self.pools = nn.ModuleList()
        for bins in BINS:
            self.pools.append(nn.Sequential(Pool(bins), make_conv_norm_act(in_channels, branch_channels, 1)))
        self.bottleneck = make_conv_norm_act(in_channels + len(BINS) * branch_channels, channels, 3, padding=1)
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        size = x.shape[-2:]
        pooled = [resize(pool(x), size, self.align_corners) for pool in self.pools]
        return self.dropout(self.bottleneck(torch.cat([x, *pooled], 1)))


def build_pspnet(
    backbone: nn.Module,
    num_classes: int,
    width: int | None = None,
    branch_width: int | None = None,
    aux_width: int | None = None,
    *,
    wide: int = 512,
) -> Segmentor:
    """Build LAD's and CIRKD v1's PSPNet (models/pspnet.py): branches of a quarter of c4's channels.

    The bottleneck is 128 wide, or ``wide`` where c4 has 1024 channels or more.
    """
    channels = choose_head_input(backbone).channels
    width = width or choose_head_width(backbone, 128, wide)
    head = PSPHead(channels, branch_width or channels // 4, width, nn.Dropout(0.1), align_corners=True)
    return assemble_release_network(backbone, head, num_classes, aux_width, aux_dropout=0.1)


def build_pspnet_mmseg(
    backbone: nn.Module,
    num_classes: int,
    width: int | None = None,
    branch_width: int | None = None,
    aux_width: int | None = None,
    align_corners: bool = False,
) -> Segmentor:
    """Build MMSegmentation's PSPNet: configs/_base_/models/pspnet_r50-d8.py and its variant for ResNet-18.

    The branches are as wide as the bottleneck: 128, or 512 where c4 has 1024 channels or more.
    """
    width = width or choose_head_width(backbone, 128, 512)
    channels = choose_head_input(backbone).channels
    head = PSPHead(channels, branch_width or width, width, nn.Dropout2d(0.1), align_corners)
    return assemble_mmseg_network(backbone, head, num_classes, aux_width, align_corners)
