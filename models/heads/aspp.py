"""Atrous spatial pyramid pooling heads (Chen et al., DeepLabV3, arXiv 1706.05587) at output stride 8."""

import torch
from torch import Tensor, nn

from models.heads import conv_norm_act

RATES = (12, 24, 36)


class ASPP(nn.Module):
    """Five views of one map, each ``channels`` wide: 1x1, 3x3 at three rates, and the image's mean."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            [conv_norm_act(in_channels, channels, 1)]
            + [conv_norm_act(in_channels, channels, 3, padding=rate, dilation=rate) for rate in RATES]
        )
        self.image_pool = conv_norm_act(in_channels, channels, 1)

    def forward(self, x: Tensor) -> list[Tensor]:
        """The image-level view last; upsampling one position is copying it."""
        pooled = self.image_pool(x.mean((2, 3), keepdim=True))
        return [branch(x) for branch in self.branches] + [pooled.expand(-1, -1, *x.shape[-2:])]


class ASPPHead(nn.Module):
    """MMSegmentation's form: one 3x3 convolution fuses [image, 1x1, rates]."""

    def __init__(self, in_channels: int, channels: int, dropout: nn.Module) -> None:
        super().__init__()
        self.out_channels = channels
        self.aspp = ASPP(in_channels, channels)
        self.bottleneck = conv_norm_act(5 * channels, channels, 3, padding=1)
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        *views, image_view = self.aspp(x)
        return self.dropout(self.bottleneck(torch.cat([image_view, *views], 1)))


class ASPPProjectHead(nn.Module):
    """LAD's and CIRKD's form (models/deeplabv3.py): [1x1, rates, image], a 1x1 projection, then a 3x3 block."""

    def __init__(self, in_channels: int, channels: int, project_dropout: nn.Module, dropout: nn.Module) -> None:
        super().__init__()
        self.out_channels = channels
        self.aspp = ASPP(in_channels, channels)
        self.project = conv_norm_act(5 * channels, channels, 1)
        self.project_dropout = project_dropout
        self.block = conv_norm_act(channels, channels, 3, padding=1)
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        x = self.project_dropout(self.project(torch.cat(self.aspp(x), 1)))
        return self.dropout(self.block(x))
