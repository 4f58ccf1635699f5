"""Fully convolutional networks (Long et al., CVPR 2015)."""

from torch import nn

from models.architectures.assembly import head_width, is_pyramid, mmseg, release, top
from models.layers import FCNHead
from models.segmentor import Segmentor


def fcn(
    backbone: nn.Module,
    num_classes: int,
    width: int | None = None,
    aux_width: int | None = None,
    align_corners: bool = False,
) -> Segmentor:
    """configs/_base_/models/fcn_r50-d8.py and its R18 child; on HRNet fcn_hr18.py, one 1x1 convolution of all maps."""
    if is_pyramid(backbone):
        channels = top(backbone)[0]
        head = FCNHead(channels, width or channels, nn.Identity(), kernel_size=1)
        return mmseg(backbone, head, num_classes, 0, align_corners)
    width = width or head_width(backbone, 128, 512)
    head = FCNHead(backbone.channels[3], width, nn.Dropout2d(0.1), num_convs=2, concat_input=True)
    return mmseg(backbone, head, num_classes, aux_width, align_corners)


def fcn_torchvision(
    backbone: nn.Module, num_classes: int, width: int | None = None, aux_width: int | None = None
) -> Segmentor:
    """torchvision.models.segmentation.fcn: one convolution to a quarter of c4."""
    c4 = top(backbone)[0]
    head = FCNHead(c4, width or c4 // 4, nn.Dropout(0.1))
    return release(backbone, head, num_classes, aux_width, aux_dropout=0.1, align_corners=False)
