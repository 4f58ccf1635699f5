"""Atrous spatial pyramid pooling heads (Chen et al., DeepLabV3, arXiv 1706.05587) at output stride 8."""

import torch
from torch import Tensor, nn

from models.architectures.assembly import (
    assemble_mmseg_network,
    assemble_release_network,
    choose_head_input,
    choose_head_width,
)
from models.layers import make_conv_norm_act
from models.segmentor import Segmentor

DILATION_RATES = (12, 24, 36)


class ASPP(nn.Module):
    """Compute five views of a map: a 1x1 convolution, 3x3 convolutions at three rates, and the mean over the image."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList([make_conv_norm_act(in_channels, channels, 1)])
        for rate in DILATION_RATES:
            self.branches.append(make_conv_norm_act(in_channels, channels, 3, padding=rate, dilation=rate))
        self.image_pool = make_conv_norm_act(in_channels, channels, 1)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return five maps ``[B, channels, h, w]``, that of the image mean last."""
        pooled = self.image_pool(x.mean((2, 3), keepdim=True))
        image_view = pooled.expand(-1, -1, *x.shape[-2:])  # bilinear upsampling of one position is a copy of it
        return [*(branch(x) for branch in self.branches), image_view]


class ASPPHead(nn.Module):
    """MMSegmentation's head: a 3x3 convolution fuses the views, in the order image, 1x1, rates."""

    def __init__(self, in_channels: int, channels: int, dropout: nn.Module) -> None:
        super().__init__()
        self.out_channels = channels
        self.aspp = ASPP(in_channels, channels)
        self.bottleneck = make_conv_norm_act(5 * channels, channels, 3, padding=1)
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        *views, image_view = self.aspp(x)
        return self.dropout(self.bottleneck(torch.cat([image_view, *views], 1)))


class ASPPProjectHead(nn.Module):
    """LAD's and CIRKD's head: a 1x1 convolution projects the views, in the order 1x1, rates, image; then a 3x3 block.

    Source: models/deeplabv3.py.
    """

    def __init__(self, in_channels: int, channels: int, project_dropout: nn.Module, dropout: nn.Module) -> None:
        super().__init__()
        self.out_channels = channels
        self.aspp = ASPP(in_channels, channels)
        self.project = make_conv_norm_act(5 * channels, channels, 1)
        self.project_dropout = project_dropout
        self.block = make_conv_norm_act(channels, channels, 3, padding=1)
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        views = torch.cat(self.aspp(x), 1)
        x = self.project_dropout(self.project(views))
        return self.dropout(self.block(x))


def build_deeplabv3(
    backbone: nn.Module,
    num_classes: int,
    width: int | None = None,
    aux_width: int | None = None,
    *,
    default_widths: tuple[int, int] = (128, 256),
    dropout: tuple[float, float, float] = (0.01, 0.01, 0.01),
    align_corners: bool = True,
) -> Segmentor:
    """Build LAD's DeepLabV3 (models/deeplabv3.py).

    default_widths: head width on light and on wide backbones, where ``width`` is not given. dropout: probabilities
    after the projection, after the block, and in the auxiliary branch.
    """
    project_probability, block_probability, aux_probability = dropout
    head = ASPPProjectHead(
        choose_head_input(backbone).channels,
        width or choose_head_width(backbone, *default_widths),
        _make_dropout(project_probability),
        _make_dropout(block_probability),
    )
    return assemble_release_network(backbone, head, num_classes, aux_width, aux_probability, align_corners)


def _make_dropout(probability: float) -> nn.Module:
    """Make a dropout layer; probability 0 means that the architecture has none, so that no flag can turn it on."""
    return nn.Dropout(probability) if probability else nn.Identity()


def build_deeplabv3_mmseg(
    backbone: nn.Module,
    num_classes: int,
    width: int | None = None,
    aux_width: int | None = None,
    align_corners: bool = False,
) -> Segmentor:
    """Build MMSegmentation's DeepLabV3: configs/_base_/models/deeplabv3_r50-d8.py and its variant for ResNet-18."""
    width = width or choose_head_width(backbone, 128, 512)
    head = ASPPHead(choose_head_input(backbone).channels, width, nn.Dropout2d(0.1))
    return assemble_mmseg_network(backbone, head, num_classes, aux_width, align_corners)
