"""Build backbones: networks that return four maps c1..c4 and have their ``channels`` and ``strides`` as attributes."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial

import torch
from torch import Tensor, nn

from models.backbones.hrnet import HRModule
from models.backbones.stdc import BLOCKS, build_stdc_backbone
from utils.errors import UserError, get_first_line, suggest_nearest

# strides of the last map: of a backbone whose last stages are dilated, and of one without dilation
DILATED_OUTPUT_STRIDE = 8
FULL_OUTPUT_STRIDE = 32
PYRAMID_STRIDES = (4, 8, 16, 32)
RESNET_DEPTHS = (18, 34, 50, 101, 152)
RESNET_STEMS: dict[str, dict[str, object]] = {
    "v1s": {"stem_type": "deep", "stem_width": 64},  # LAD's and CIRKD's: three 3x3 convolutions of 64, 64, 128
    "v1c": {"stem_type": "deep", "stem_width": 32},  # MMSegmentation's: 32, 32, 64
    "v1b": {},  # MMSegmentation's: 7x7
}
# what timm and torch raise for a network that cannot be dilated or cannot give maps
TIMM_FAILURES = (AssertionError, TypeError, ValueError, NotImplementedError, RuntimeError, IndexError)


def _create_timm_network(name: str, **options: object) -> nn.Module:
    """Create a timm network that returns its last four maps.

    The last four, because some networks (ConvNeXt) have only four and others (Darknet) have two more before them.
    """
    import timm  # its import takes a second; not every start of a program needs it

    backbone = timm.create_model(name, features_only=True, out_indices=4, pretrained=False, **options)
    backbone.channels = tuple(backbone.feature_info.channels())
    backbone.strides = tuple(backbone.feature_info.reduction())
    return backbone


def _build_resnet(depth: int, variant: str, output_stride: int) -> nn.Module:
    """Build timm's ResNet with a stem of RESNET_STEMS, dilated as in LAD, CIRKD and MMSegmentation.

    By default timm initialises the last BatchNorm of each residual branch with zero; the releases do not, so this is
    turned off. The first block of a dilated stage has half the dilation, in timm and in the releases. MMSegmentation
    never dilates the second convolution of a basic block; LAD and CIRKD do.
    """
    from timm.models.resnet import BasicBlock

    stem = RESNET_STEMS[variant]
    backbone = _create_timm_network(f"resnet{depth}", output_stride=output_stride, zero_init_last=False, **stem)
    if variant in ("v1b", "v1c"):
        for block in backbone.modules():
            if isinstance(block, BasicBlock):
                block.conv2.dilation = (1, 1)
                block.conv2.padding = (1, 1)
    return backbone


def _build_hrnet(name: str, output_stride: int) -> nn.Module:
    """Build HRNet without its classification head. Its maps have strides 4, 8, 16 and 32 for any ``output_stride``.

    With ``output_stride`` 32, which ``--model stdc`` asks for, the last layers of the finest map are frozen.
    """
    backbone = _create_timm_network(name, feature_location="")
    for stage in (backbone.stage2, backbone.stage3, backbone.stage4):
        for i, module in enumerate(stage):
            stage[i] = HRModule(module)
    if output_stride == FULL_OUTPUT_STRIDE:
        # Only the maps from stride 8 on are read, so these layers get no gradient, for which DDP would wait.
        backbone.stage4[-1].fuse_layers[0].requires_grad_(False)
    return backbone


def _build_timm_backbone(name: str, output_stride: int) -> nn.Module:
    """Build a timm network at the output stride, or as a pyramid with strides 4 to 32 if timm cannot dilate it.

    Raises:
        UserError: the network gives other maps, or runs at one image size only.
    """
    reason = ""
    for options in ({"output_stride": output_stride}, {}):
        try:
            backbone = _create_timm_network(name, **options)
            if _has_usable_maps(backbone, output_stride):
                return backbone
        except TIMM_FAILURES as error:
            reason = get_first_line(error)
        else:
            reason = f"its maps have strides {', '.join(map(str, backbone.strides))}, or another layout"
    raise UserError(
        f"backbone {name!r} cannot be used: needed are four maps at strides up to {output_stride}, or at 4, 8, 16 and "
        f"32, of images of any size ({reason}); docs/networks.md lists backbones that work"
    )


@torch.no_grad()
def _has_usable_maps(backbone: nn.Module, output_stride: int) -> bool:
    """Return whether a backbone gives maps ``[B, C, h, w]`` with its channels and strides, and usable strides.

    The image has sides that no stride divides, so a map may be one position larger or smaller than expected.
    """
    strides = backbone.strides
    height, width = 97, 129
    maps = backbone.eval()(torch.zeros(1, 3, height, width))
    backbone.train()
    ratios = []
    for x, stride in zip(maps, strides, strict=True):
        ratios.append(height / x.shape[2] / stride)
        ratios.append(width / x.shape[3] / stride)
    has_channels = tuple(x.shape[1] for x in maps) == backbone.channels
    has_strides = all(0.7 < ratio < 1.4 for ratio in ratios)
    are_usable = strides[3] == output_stride or strides == PYRAMID_STRIDES
    return has_channels and has_strides and are_usable


def _list_own_backbones() -> Iterator[tuple[str, Callable[[int], nn.Module]]]:
    """Yield the name of each backbone that is more than a timm name, and its function ``output_stride -> backbone``."""
    for variant in RESNET_STEMS:
        for depth in RESNET_DEPTHS:
            yield f"resnet{depth}_{variant}", partial(_build_resnet, depth, variant)
    for name in BLOCKS:
        yield name, partial(build_stdc_backbone, name)


BACKBONES: dict[str, Callable[[int], nn.Module]] = dict(_list_own_backbones())


def build_backbone(name: str, in_channels: int = 3, output_stride: int = DILATED_OUTPUT_STRIDE) -> nn.Module:
    """Build a backbone with random weights: one of BACKBONES, or any timm network that gives four maps.

    The result has the attributes ``channels`` and ``strides`` of its maps c1..c4.

    Raises:
        UserError: the name is unknown, or the network does not give usable maps at this output stride. Or no
            convolution of it sees the image, so that it cannot read the label planes of ``in_channels`` above 3.
    """
    import timm

    if name in BACKBONES:
        backbone = BACKBONES[name](output_stride)
    elif name.startswith("hrnet_") and timm.is_model(name):
        backbone = _build_hrnet(name, output_stride)
    elif timm.is_model(name):
        backbone = _build_timm_backbone(name, output_stride)
    elif name.startswith("smp-"):
        raise UserError(f"backbone {name!r}: encoders of segmentation_models_pytorch are for --model smp_... only")
    else:
        hint = suggest_nearest(name, [*BACKBONES, *timm.list_models()])
        raise UserError(f"unknown backbone {name!r}{hint} (choices: {', '.join(BACKBONES)}, or a timm name)")
    mark_image_convs(backbone)
    if in_channels > 3:
        add_label_planes_to_stem(backbone, name, in_channels)
    return backbone


def mark_image_convs(backbone: nn.Module) -> None:
    """Mark the convolutions that see the image, which are those of three input channels, for ``find_stem_convs``."""
    for module in backbone.modules():
        if isinstance(module, nn.Conv2d) and module.in_channels == 3:
            module.sees_image = True


def add_label_planes_to_stem(backbone: nn.Module, name: str, in_channels: int) -> None:
    """Widen the convolutions that see the image for label planes. name: of the backbone, for the message.

    Raises:
        UserError: no convolution sees the image.
    """
    if not find_stem_convs(backbone):
        reason = "it rearranges the image before its first convolution"
        raise UserError(f"backbone {name!r} cannot read a label plane, {reason}: it can be a student's only")
    widen_stem(backbone, in_channels)


def find_stem_convs(backbone: nn.Module) -> list[nn.Conv2d]:
    """Find the convolutions that see the image: one, or several side by side (MobileOne, RepViT, FastViT)."""
    return [module for module in backbone.modules() if getattr(module, "sees_image", False)]


def widen_stem(backbone: nn.Module, in_channels: int) -> None:
    """Let the stem see label planes after RGB. The RGB weights stay, the new weights are drawn from N(0, 0.1^2).

    A new network is widened before any weights are loaded. LAD widens its stem when it loads ImageNet weights
    (models/base_models/resnet.py:257). timm's own ``in_chans=4`` would multiply the RGB weights by 3/4.
    """
    for conv in find_stem_convs(backbone):
        weight = torch.empty(conv.out_channels, in_channels, *conv.kernel_size).normal_(0, 0.1)
        weight[:, :3] = conv.weight.detach()
        conv.weight = nn.Parameter(weight)
        conv.in_channels = in_channels


def keep_label_planes(weights: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of a network that sees RGB, widened for a network that sees label planes after RGB.

    own: the state dict of the latter. The convolutions that see the image keep its weights of the label planes.
    """
    widened = dict(weights)
    for key, value in weights.items():
        if key not in own or value.ndim != 4 or own[key].ndim != 4:
            continue
        if value.shape[1] == 3 and own[key].shape[1] > 3:
            widened[key] = torch.cat([value, own[key][:, 3:].to(value)], 1)
    return widened


def narrow_stem(backbone: nn.Module) -> None:
    """Remove the label planes from the stem. The output stays the same if the planes were always zero."""
    for conv in find_stem_convs(backbone):
        conv.weight = nn.Parameter(conv.weight.detach()[:, :3].clone())
        conv.in_channels = 3
