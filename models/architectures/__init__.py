"""Networks by name. A new architecture is a file with its function and a line in ARCHITECTURES."""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

from models.architectures.deeplabv3 import build_deeplabv3, build_deeplabv3_mmseg
from models.architectures.fcn import build_fcn, build_fcn_torchvision
from models.architectures.ocrnet import build_ocrnet
from models.architectures.pspnet import build_pspnet, build_pspnet_mmseg
from models.architectures.smp import DECODERS, build_smp, list_decoder_options
from models.architectures.stdc import build_stdc
from models.backbones import DILATED, PYRAMID, build_backbone, prepare_stem
from models.segmentor import Segmentor
from models.user_networks import UserNetwork, build_user_network, is_user_network
from utils.errors import UserError, lookup

# (backbone, number of classes, widths by keyword) -> network; plain names are the papers', suffixes are variants.
# Those of DECODERS take the backbone by its name: the library builds it.
ARCHITECTURES: dict[str, Callable[..., Segmentor]] = {
    "fcn": build_fcn,
    "fcn_torchvision": build_fcn_torchvision,
    "pspnet": build_pspnet,
    "pspnet_cirkd2": partial(build_pspnet, wide=256),
    "pspnet_mmseg": build_pspnet_mmseg,
    "deeplabv3": build_deeplabv3,
    # CIRKD v1's models/deeplabv3.py, and its and LAD's deeplab_mobile.py; CIRKD v2's: 512 wide at every depth
    "deeplabv3_cirkd1": partial(build_deeplabv3, dropout=(0.5, 0.1, 0.1)),
    "deeplabv3_cirkd2": partial(build_deeplabv3, dropout=(0.5, 0.1, 0.1), widths=(512, 512)),
    "deeplabv3_mmseg": build_deeplabv3_mmseg,
    "deeplabv3_torchvision": partial(build_deeplabv3, dropout=(0.5, 0, 0.1), widths=(256, 256), align_corners=False),
    "stdc": build_stdc,
    "ocrnet": build_ocrnet,
    **{arch: partial(build_smp, arch) for arch in DECODERS},
}
UNDILATED = ("stdc",)  # these take the backbone's maps at strides 8, 16 and 32; the others a last map at stride 8


def build_model(
    arch: str, backbone: str, num_classes: int, in_channels: int = 3, **widths: Any
) -> Segmentor | UserNetwork:
    """Build a network with random weights. ``in_channels`` is 3, or 3 plus the label planes of an assisted teacher.

    arch: a key of ARCHITECTURES, or ``package.module:function``, a user's function, which is imported.
    widths: what differs from the architecture's own (``width``, ``aux_width``, ... of its function); 0 leaves an
    auxiliary branch out. Of ``smp_...`` they are the library's options, such as ``decoder_pyramid_channels``.

    Raises UserError: unknown architecture or backbone, a width the architecture does not have, too few classes or
    channels, or a user's network that cannot be used.
    """
    if num_classes < 2 or in_channels < 3:
        raise UserError(f"a network needs 2 classes and 3 channels or more, not {num_classes} and {in_channels}")
    if is_user_network(arch):
        if widths:
            raise UserError(f"--model {arch} has no width {next(iter(widths))!r}")
        return build_user_network(arch, backbone, num_classes, in_channels)
    build = lookup(ARCHITECTURES, arch, "model")
    for name in widths:
        lookup(dict.fromkeys(width_names(arch)), name, f"width of {arch}")
    if arch in DECODERS:  # the library builds the encoder with the decoder
        model = build(backbone, num_classes, **widths)
        prepare_stem(model.backbone, in_channels)
    else:
        output_stride = PYRAMID if arch in UNDILATED else DILATED
        model = build(build_backbone(backbone, in_channels, output_stride), num_classes, **widths)
    model.config = {"arch": arch, "backbone": backbone, "num_classes": num_classes, "in_channels": in_channels}
    model.config |= widths
    return model


def width_names(arch: str) -> tuple[str, ...]:
    """Return what of an architecture may be chosen; what is keyword-only makes its variants."""
    if arch in DECODERS:
        return list_decoder_options(arch)
    parameters = inspect.signature(ARCHITECTURES[arch]).parameters.values()
    return tuple(p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD)[2:]
