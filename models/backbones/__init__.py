"""Backbones: networks that return four maps c1..c4, and say their ``channels`` and ``strides``."""

from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from models.backbones.hrnet import Fusion
from models.backbones.stdc import BLOCKS, stdc_backbone
from utils.errors import UserError, first_line, nearest

DILATED, PYRAMID = 8, 32  # output strides: of networks whose last stages are dilated, and of those left as they are
RESNET_DEPTHS = (18, 34, 50, 101, 152)
RESNET_STEMS: dict[str, dict[str, object]] = {
    "v1s": {"stem_type": "deep", "stem_width": 64},  # LAD's and CIRKD's: three 3x3 convolutions of 64, 64, 128
    "v1c": {"stem_type": "deep", "stem_width": 32},  # MMSegmentation's: 32, 32, 64
    "v1b": {},  # MMSegmentation's: 7x7
}


def _features(name: str, **options: object) -> nn.Module:
    """The last four maps: some networks (ConvNeXt) have no other, some (Darknet) two before them."""
    import timm  # takes a second to import, at every start

    backbone = timm.create_model(name, features_only=True, out_indices=4, pretrained=False, **options)
    backbone.channels = tuple(backbone.feature_info.channels())
    backbone.strides = tuple(backbone.feature_info.reduction())
    return backbone


def _resnet(depth: int, variant: str, output_stride: int) -> nn.Module:
    """timm's ResNet without its zero last BatchNorm weight of each residual branch, which the releases do not have.

    The first block of a dilated stage keeps half the dilation in timm as it does in LAD, CIRKD and MMSegmentation. In
    MMSegmentation the second convolution of a basic block is never dilated.
    """
    from timm.models.resnet import BasicBlock

    stem = RESNET_STEMS[variant]
    backbone = _features(f"resnet{depth}", output_stride=output_stride, zero_init_last=False, **stem)
    for block in backbone.modules():
        if variant in ("v1b", "v1c") and isinstance(block, BasicBlock):
            block.conv2.dilation = block.conv2.padding = (1, 1)
    return backbone


def _hrnet(name: str, output_stride: int) -> nn.Module:
    """HRNet without its classification head, strides 4, 8, 16, 32 whatever the ``output_stride`` asked for.

    As a pyramid its maps from stride 8 on are read: what only the finest one goes through does not learn.
    """
    backbone = _features(name, feature_location="")
    for stage in (backbone.stage2, backbone.stage3, backbone.stage4):
        for i, module in enumerate(stage):
            stage[i] = Fusion(module)
    backbone.stage4[-1].fuse_layers[0].requires_grad_(output_stride != PYRAMID)
    return backbone


def _any_timm(name: str, output_stride: int) -> nn.Module:
    """At the output stride, or where timm cannot dilate the network, as the pyramid it is, with strides 4 to 32."""
    for options in ({"output_stride": output_stride}, {}):
        try:
            backbone = _features(name, **options)
            if _fits(backbone, output_stride):
                return backbone
        except (AssertionError, TypeError, ValueError, NotImplementedError, RuntimeError, IndexError) as error:
            reason = first_line(error)
        else:
            reason = f"its maps have strides {', '.join(map(str, backbone.strides))}, or another layout"
    raise UserError(
        f"backbone {name!r} cannot be used: needed are four maps at strides up to {output_stride}, or at 4, 8, 16 and "
        f"32, of images of any size ({reason}); models/README.md lists networks that work"
    )


@torch.no_grad()
def _fits(backbone: nn.Module, output_stride: int, size: tuple[int, int] = (97, 129)) -> bool:
    """Whether it gives maps ``[B, C, h, w]`` of its strides for an image whose sides no stride divides."""
    maps = backbone.eval()(torch.zeros(1, 3, *size))
    backbone.train()
    channels, strides = tuple(x.shape[1] for x in maps), backbone.strides
    ratios = [size[i] / x.shape[2 + i] / s for x, s in zip(maps, strides, strict=True) for i in range(2)]
    wanted = strides[3] == output_stride or strides == (4, 8, 16, 32)
    return channels == backbone.channels and wanted and all(0.7 < ratio < 1.4 for ratio in ratios)


BACKBONES: dict[str, Callable[[int], nn.Module]] = {
    **{f"resnet{n}_{variant}": partial(_resnet, n, variant) for variant in RESNET_STEMS for n in RESNET_DEPTHS},
    **{name: partial(stdc_backbone, name) for name in BLOCKS},
}


def build_backbone(name: str, in_channels: int = 3, output_stride: int = DILATED) -> nn.Module:
    """A named backbone, or any timm network that yields four maps at the output stride, with random weights.

    The result has ``channels`` and ``strides``, those of c1..c4.

    Raises UserError: the name is neither, or timm cannot run that network at this output stride.
    """
    import timm

    if name in BACKBONES:
        backbone = BACKBONES[name](output_stride)
    elif name.startswith("hrnet_") and timm.is_model(name):
        backbone = _hrnet(name, output_stride)
    elif timm.is_model(name):
        backbone = _any_timm(name, output_stride)
    elif name.startswith("smp-"):
        raise UserError(f"backbone {name!r}: encoders of segmentation_models_pytorch are for --model smp_... only")
    else:
        hint = nearest(name, [*BACKBONES, *timm.list_models()])
        raise UserError(f"unknown backbone {name!r}{hint} (choices: {', '.join(BACKBONES)}, or a timm name)")
    prepare_stem(backbone, in_channels)
    return backbone


def prepare_stem(backbone: nn.Module, in_channels: int) -> None:
    """Mark the convolutions that see the image, and widen them where label planes come with it."""
    for module in backbone.modules():
        if isinstance(module, nn.Conv2d) and module.in_channels == 3:
            module.sees_image = True
    if in_channels > 3:
        widen_stem(backbone, in_channels)


def stem_convs(backbone: nn.Module) -> list[nn.Conv2d]:
    """The convolutions that see the image: one, or several side by side (MobileOne, RepViT, FastViT)."""
    return [module for module in backbone.modules() if getattr(module, "sees_image", False)]


def widen_stem(backbone: nn.Module, in_channels: int) -> None:
    """Let the first convolution see label planes behind RGB: RGB weights stay, the new ones are N(0, 0.1^2).

    As LAD does when it loads ImageNet weights (models/base_models/resnet.py:257); timm's own ``in_chans=4`` would
    rescale the RGB weights by 3/4.
    """
    for conv in stem_convs(backbone):
        weight = torch.empty(conv.out_channels, in_channels, *conv.kernel_size).normal_(0, 0.1)
        weight[:, :3] = conv.weight.detach()
        conv.weight, conv.in_channels = nn.Parameter(weight), in_channels


def narrow_stem(backbone: nn.Module) -> None:
    """Undo ``widen_stem``: exact for a network that was only ever shown zeros in its label planes."""
    for conv in stem_convs(backbone):
        conv.weight, conv.in_channels = nn.Parameter(conv.weight.detach()[:, :3].clone()), 3
