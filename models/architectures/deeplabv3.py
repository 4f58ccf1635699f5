"""Atrous spatial pyramid pooling heads (Chen et al., DeepLabV3, arXiv 1706.05587) at output stride 8."""

import torch
from torch import Tensor, nn

from models.architectures.assembly import head_width, mmseg, release, top
from models.layers import conv_norm_act
from models.segmentor import Segmentor

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


def deeplabv3(
    backbone: nn.Module,
    num_classes: int,
    width: int | None = None,
    aux_width: int | None = None,
    *,
    widths: tuple[int, int] = (128, 256),
    dropout: tuple[float, float, float] = (0.01, 0.01, 0.01),
    align_corners: bool = True,
) -> Segmentor:
    """LAD's models/deeplabv3.py. widths: see ``head_width``. dropout: of projection, block and auxiliary branch."""
    width = width or head_width(backbone, *widths)
    dropouts = (nn.Dropout(p) if p else nn.Identity() for p in dropout[:2])
    head = ASPPProjectHead(top(backbone)[0], width, *dropouts)
    return release(backbone, head, num_classes, aux_width, dropout[2], align_corners)


def deeplabv3_mmseg(
    backbone: nn.Module,
    num_classes: int,
    width: int | None = None,
    aux_width: int | None = None,
    align_corners: bool = False,
) -> Segmentor:
    """configs/_base_/models/deeplabv3_r50-d8.py and its R18 child."""
    head = ASPPHead(top(backbone)[0], width or head_width(backbone, 128, 512), nn.Dropout2d(0.1))
    return mmseg(backbone, head, num_classes, aux_width, align_corners)
