"""Backbones: timm feature extractors that return the maps c1..c4 (strides 4, 8, 8, 8 for ResNets)."""

from collections.abc import Callable
from functools import partial

import timm
import torch
from timm.models.resnet import BasicBlock
from torch import nn

from utils.errors import UserError, nearest

OUTPUT_STRIDE = 8
RESNET_DEPTHS = (18, 34, 50, 101, 152)


def _features(name: str, **options: object) -> nn.Module:
    options = {"features_only": True, "out_indices": (1, 2, 3, 4), "pretrained": False} | options
    backbone = timm.create_model(name, **options)
    backbone.channels = tuple(backbone.feature_info.channels())
    return backbone


def _resnet(depth: int, stem_width: int) -> nn.Module:
    """ResNet with a stem of three 3x3 convolutions ``stem_width, stem_width, 2 * stem_width``, output stride 8.

    timm leaves the first block of a dilated stage at half the dilation, as LAD, CIRKD and MMSegmentation do. It would
    zero the last BatchNorm weight of each residual branch, which they do not.
    """
    return _features(
        f"resnet{depth}",
        output_stride=OUTPUT_STRIDE,
        stem_type="deep",
        stem_width=stem_width,
        zero_init_last=False,
    )


def _resnet_v1s(depth: int) -> nn.Module:
    """LAD's and CIRKD's ResNet: stem 64, 64, 128; both convolutions of a basic block are dilated."""
    return _resnet(depth, 64)


def _resnet_v1c(depth: int) -> nn.Module:
    """MMSegmentation's ResNetV1c: stem 32, 32, 64; the second convolution of a basic block is never dilated."""
    backbone = _resnet(depth, 32)
    for block in backbone.modules():
        if isinstance(block, BasicBlock):
            block.conv2.dilation = block.conv2.padding = (1, 1)
    return backbone


BACKBONES: dict[str, Callable[[], nn.Module]] = {
    **{f"resnet{depth}_v1s": partial(_resnet_v1s, depth) for depth in RESNET_DEPTHS},
    **{f"resnet{depth}_v1c": partial(_resnet_v1c, depth) for depth in RESNET_DEPTHS},
}


def build_backbone(name: str, in_channels: int = 3) -> nn.Module:
    """A named backbone, or any timm network that yields four maps at output stride 8, with random weights.

    The result has ``channels``, the widths of c1..c4.

    Raises:
        UserError: the name is neither, or timm cannot run that network at output stride 8.
    """
    if name in BACKBONES:
        backbone = BACKBONES[name]()
    elif timm.is_model(name):
        try:
            backbone = _features(name, output_stride=OUTPUT_STRIDE)
        except (AssertionError, TypeError, ValueError, NotImplementedError, RuntimeError, IndexError) as error:
            raise UserError(
                f"backbone {name!r}: timm does not offer it as four maps at output stride {OUTPUT_STRIDE}; "
                "ResNets, MobileNetV2 and MobileNetV3 work"
            ) from error
    else:
        hint = nearest(name, [*BACKBONES, *timm.list_models()])
        raise UserError(f"unknown backbone {name!r}{hint} (choices: {', '.join(BACKBONES)}, or a timm name)")
    if in_channels > 3:
        widen_stem(backbone, in_channels)
    return backbone


def stem_conv(backbone: nn.Module) -> nn.Conv2d:
    """The convolution that sees the image."""
    return next(module for module in backbone.modules() if isinstance(module, nn.Conv2d))


def widen_stem(backbone: nn.Module, in_channels: int) -> None:
    """Let the first convolution see label planes behind RGB: RGB weights stay, the new ones are N(0, 0.1^2).

    As LAD does when it loads ImageNet weights (models/base_models/resnet.py:257); timm's own ``in_chans=4`` would
    rescale the RGB weights by 3/4.
    """
    conv = stem_conv(backbone)
    weight = torch.empty(conv.out_channels, in_channels, *conv.kernel_size).normal_(0, 0.1)
    weight[:, :3] = conv.weight.detach()
    conv.weight, conv.in_channels = nn.Parameter(weight), in_channels
