"""Fully convolutional networks (Long et al., CVPR 2015)."""

from torch import nn

from models.architectures.assembly import (
    assemble_mmseg_network,
    assemble_release_network,
    choose_head_input,
    choose_head_width,
    is_pyramid,
)
from models.layers import FCNHead
from models.segmentor import Segmentor


def build_fcn(
    backbone: nn.Module,
    num_classes: int,
    width: int | None = None,
    aux_width: int | None = None,
    align_corners: bool = False,
) -> Segmentor:
    """Build MMSegmentation's FCN: configs/_base_/models/fcn_r50-d8.py and its variant for ResNet-18.

    On a pyramid it is fcn_hr18.py: one 1x1 convolution of all four maps, and no auxiliary branch.
    """
    if is_pyramid(backbone):
        channels = choose_head_input(backbone).channels
        head = FCNHead(channels, width or channels, nn.Identity(), kernel_size=1)
        return assemble_mmseg_network(backbone, head, num_classes, 0, align_corners)
    width = width or choose_head_width(backbone, 128, 512)
    head = FCNHead(backbone.channels[3], width, nn.Dropout2d(0.1), num_convs=2, concat_input=True)
    return assemble_mmseg_network(backbone, head, num_classes, aux_width, align_corners)


def build_fcn_torchvision(
    backbone: nn.Module, num_classes: int, width: int | None = None, aux_width: int | None = None
) -> Segmentor:
    """Build torchvision's FCN (torchvision.models.segmentation.fcn): one convolution to a quarter of c4's channels."""
    channels = choose_head_input(backbone).channels
    head = FCNHead(channels, width or channels // 4, nn.Dropout(0.1))
    return assemble_release_network(backbone, head, num_classes, aux_width, aux_dropout=0.1, align_corners=False)
