"""Pyramid pooling head (Zhao et al., PSPNet, CVPR 2017)."""

import torch
from torch import Tensor, nn

from models.architectures.assembly import head_width, mmseg, release, top
from models.layers import Pool, conv_norm_act
from models.segmentor import Segmentor
from utils.bilinear import resize

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
            nn.Sequential(Pool(bins), conv_norm_act(in_channels, branch_channels, 1)) for bins in BINS
        )
        self.bottleneck = conv_norm_act(in_channels + len(BINS) * branch_channels, channels, 3, padding=1)
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        size = x.shape[-2:]
        pooled = [resize(pool(x), size, self.align_corners) for pool in self.pools]
        return self.dropout(self.bottleneck(torch.cat([x, *pooled], 1)))


def pspnet(
    backbone: nn.Module,
    num_classes: int,
    width: int | None = None,
    branch_width: int | None = None,
    aux_width: int | None = None,
    *,
    wide: int = 512,
) -> Segmentor:
    """LAD's and CIRKD v1's models/pspnet.py: branches of a quarter of c4, bottleneck 128, or ``wide`` on c4 >= 1024."""
    c4 = top(backbone)[0]
    width = width or head_width(backbone, 128, wide)
    head = PSPHead(c4, branch_width or c4 // 4, width, nn.Dropout(0.1), align_corners=True)
    return release(backbone, head, num_classes, aux_width, aux_dropout=0.1)


def pspnet_mmseg(
    backbone: nn.Module,
    num_classes: int,
    width: int | None = None,
    branch_width: int | None = None,
    aux_width: int | None = None,
    align_corners: bool = False,
) -> Segmentor:
    """configs/_base_/models/pspnet_r50-d8.py and its R18 child: branches as wide as the bottleneck, 128 / 512."""
    width = width or head_width(backbone, 128, 512)
    head = PSPHead(top(backbone)[0], branch_width or width, width, nn.Dropout2d(0.1), align_corners)
    return mmseg(backbone, head, num_classes, aux_width, align_corners)
