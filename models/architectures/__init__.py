"""Build networks by name. To add an architecture, write a file with its function and add a line to ARCHITECTURES."""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

from models.architectures.deeplabv3 import build_deeplabv3, build_deeplabv3_mmseg
from models.architectures.fcn import build_fcn, build_fcn_torchvision
from models.architectures.ocrnet import build_ocrnet
from models.architectures.pspnet import build_pspnet, build_pspnet_mmseg
from models.architectures.smp import DECODERS, LEFT_OUT, build_smp, list_decoder_options
from models.architectures.stdc import build_stdc
from models.backbones import (
    DILATED_OUTPUT_STRIDE,
    FULL_OUTPUT_STRIDE,
    add_label_planes_to_stem,
    build_backbone,
    mark_image_convs,
)
from models.segmentor import Segmentor
from models.user_networks import UserNetwork, build_user_network, is_user_network
from utils.errors import UserError, lookup, require_known
from utils.types import IGNORE_INDEX

# Name -> function (backbone, number of classes, options by keyword) that builds the network. Suffixes mark variants of
# the papers' networks. The functions of DECODERS take the name of the backbone, because the library builds it.
ARCHITECTURES: dict[str, Callable[..., Segmentor]] = {
    "fcn": build_fcn,
    "fcn_torchvision": build_fcn_torchvision,
    "pspnet": build_pspnet,
    "pspnet_cirkd2": partial(build_pspnet, wide=256),
    "pspnet_mmseg": build_pspnet_mmseg,
    "deeplabv3": build_deeplabv3,
    # CIRKD v1's models/deeplabv3.py, and deeplab_mobile.py of CIRKD v1 and LAD
    "deeplabv3_cirkd1": partial(build_deeplabv3, dropout=(0.5, 0.1, 0.1)),
    # CIRKD v2's, which is 512 wide on every backbone
    "deeplabv3_cirkd2": partial(build_deeplabv3, dropout=(0.5, 0.1, 0.1), default_widths=(512, 512)),
    "deeplabv3_mmseg": build_deeplabv3_mmseg,
    "deeplabv3_torchvision": partial(
        build_deeplabv3, dropout=(0.5, 0, 0.1), default_widths=(256, 256), align_corners=False
    ),
    "stdc": build_stdc,
    "ocrnet": build_ocrnet,
    **{arch: partial(build_smp, arch) for arch in DECODERS},
}
UNDILATED = ("stdc",)  # these read maps at strides 8, 16 and 32; the others ask for a last map at stride 8


def build_model(
    arch: str, backbone: str, num_classes: int, in_channels: int = 3, **options: Any
) -> Segmentor | UserNetwork:
    """Build a network with random weights.

    arch: a key of ARCHITECTURES, or ``package.module:function`` for a user's function, which is imported.
    backbone: a name that ``build_backbone`` knows, or for ``smp_...`` an encoder of the library.
    in_channels: 3, or 3 plus the label planes of an assisted teacher.
    options: arguments of the architecture's function, such as ``width`` and ``aux_width``. ``aux_width=0`` leaves the
        auxiliary branches out, except in OCRNet, which needs its branch. ``detail_width=0`` does so in STDC for the
        branch of boundaries. For ``smp_...`` the options are the library's.

    Raises:
        UserError: the architecture or backbone is unknown, they cannot be combined, the architecture has no such
            option, there are too few or too many classes, too few channels, more channels than the backbone can read,
            or a user's network cannot be used.
    """
    if num_classes < 2 or in_channels < 3:
        raise UserError(f"a network needs 2 classes and 3 channels or more, not {num_classes} and {in_channels}")
    if num_classes > IGNORE_INDEX:
        raise UserError(f"a network of {num_classes} classes: at most {IGNORE_INDEX}, since predictions have 8 bits")
    if is_user_network(arch):
        if options:
            raise UserError(f"--model {arch} has no option {next(iter(options))!r}")
        return build_user_network(arch, backbone, num_classes, in_channels)
    build = _find_architecture(arch)
    for name in options:
        require_known(name, list_options(arch), f"option of {arch}")
    if arch in DECODERS:
        model = build(backbone, num_classes, **options)  # the library builds the encoder together with the decoder
        mark_image_convs(model.backbone)
        if in_channels > 3:
            add_label_planes_to_stem(model.backbone, backbone, in_channels)
    else:
        output_stride = FULL_OUTPUT_STRIDE if arch in UNDILATED else DILATED_OUTPUT_STRIDE
        model = build(build_backbone(backbone, in_channels, output_stride), num_classes, **options)
    model.config = {
        "arch": arch,
        "backbone": backbone,
        "num_classes": num_classes,
        "in_channels": in_channels,
        **options,
    }
    return model


def _find_architecture(name: str) -> Callable[..., Segmentor]:
    """Return the function of an architecture.

    Raises:
        UserError: no architecture has this name. The message names the nearest one.
    """
    if name in ARCHITECTURES:
        return ARCHITECTURES[name]
    lower = name.lower()
    library_name = lower.removeprefix("smp_")
    if library_name in LEFT_OUT:
        raise UserError(f"unknown model {name!r}: segmentation_models_pytorch has it, but {LEFT_OUT[library_name]}")
    for candidate in (lower, f"smp_{library_name}"):
        if candidate in ARCHITECTURES:
            raise UserError(f"unknown model {name!r}; did you mean {candidate!r}?")
    return lookup(ARCHITECTURES, name, "model")


def list_options(arch: str) -> tuple[str, ...]:
    """List the options of an architecture that a user may choose. Its keyword-only arguments are for its variants."""
    if arch in DECODERS:
        return list_decoder_options(arch)
    parameters = inspect.signature(ARCHITECTURES[arch]).parameters.values()
    names = [parameter.name for parameter in parameters if parameter.kind is parameter.POSITIONAL_OR_KEYWORD]
    return tuple(names[2:])  # the first two are the backbone and the number of classes
