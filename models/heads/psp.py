"""Pyramid pooling head (Zhao et al., PSPNet, CVPR 2017)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.heads import conv_norm_act

BINS = (1, 2, 3, 6)


class PSPHead(nn.Module):
    """Average pools of 1, 2, 3 and 6 bins, 1x1 convolutions, upsampled, concatenated, fused by a 3x3 convolution."""

    def __init__(
        self, in_channels: int, branch_channels: int, channels: int, dropout: nn.Module, align_corners: bool
    ) -> None:
        super().__init__()
        self.out_channels = channels
        self.align_corners = align_corners
        self.pools = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(bins), conv_norm_act(in_channels, branch_channels, 1)) for bins in BINS
        )
        self.bottleneck = conv_norm_act(in_channels + len(BINS) * branch_channels, channels, 3, padding=1)
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        size = x.shape[-2:]
        pooled = [
            F.interpolate(pool(x), size, mode="bilinear", align_corners=self.align_corners) for pool in self.pools
        ]
        return self.dropout(self.bottleneck(torch.cat([x, *pooled], 1)))
