"""Recognise files of segmentation_models_pytorch: those of ``model.save_pretrained``, and plain state dicts."""

import inspect
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor

from models.architectures.smp import DECODERS, LEFT_OUT, OWN_PREFIX, get_library_class, list_decoder_options
from models.checkpoints.imagenet import get_required_pixels
from models.checkpoints.keys import SMP_MARKER, Table, rename
from models.checkpoints.recognition import CLASSIFIER, RESNETS, complete_single_logit
from utils.errors import UserError, lookup

SOURCE = "segmentation_models_pytorch"
ADVICE = "--backbone NAME says it, in eval.py or once in scripts/deploy/export_safetensors.py"

# keys of the convolution that sees the image, in the library's ResNets and Mix Transformers
ENCODER_STEM_KEYS = ("encoder.conv1.weight", "encoder.patch_embed1.proj.weight")
# beginning of a key -> the decoder that has such a key; the first that matches is taken
DECODER_KEYS = {
    "decoder.blocks.x_0_0.": "smp_unetplusplus",
    "decoder.center.top_conv.": "smp_manet",
    "decoder.blocks.0.block.": "smp_linknet",
    "decoder.blocks.0.conv1.": "smp_unet",
    "decoder.p5.": "smp_fpn",
    "decoder.fpn_lateral_blocks.": "smp_upernet",
    "decoder.psp.": "smp_pspnet",
    "decoder.aspp.0.": "smp_deeplabv3plus",
    "decoder.aspp.": "smp_deeplabv3",
    "decoder.0.convs.": "smp_deeplabv3",
    "decoder.fpa.": "smp_pan",
    "decoder.mlp_stage.": "smp_segformer",
}
KEY_TABLE: Table = (
    (r"^encoder\.", "backbone."),
    (r"^decoder\.", "main.head."),
    (r"^segmentation_head\.0\.", "main.classifier."),
    (r"^classification_head\.", None),  # classifies whole images: no part of a segmentation network
)
# keys of the library's own copies of timm's encoders, which older releases had (``stages`` is of GERNet)
OLD_TIMM_ENCODERS: Table = (
    (r"^encoder\.stages\.", "encoder.model.stages_"),
    (r"^encoder\.", "encoder.model."),
)
# until version 0.4 DeepLabV3's decoder was a Sequential
OLD_DEEPLABV3: Table = (
    (r"^decoder\.0\.", "decoder.aspp."),
    (r"^decoder\.1\.", "decoder.conv."),
    (r"^decoder\.2\.", "decoder.bn."),
)
# blocks of each stage -> the library's own encoder
MIX_TRANSFORMERS = {
    (2, 2, 2, 2): "mit_b1",  # or mit_b0, which is half as wide
    (3, 4, 6, 3): "mit_b2",
    (3, 4, 18, 3): "mit_b3",
    (3, 8, 27, 3): "mit_b4",
    (3, 6, 40, 3): "mit_b5",
}
# names of options until version 0.4, which later versions still take -> their names now
RENAMED_OPTIONS = {
    "decoder_use_batchnorm": "decoder_use_norm",
    "psp_use_batchnorm": "decoder_use_norm",
    "upscale_mode": "decoder_interpolation",
}
NORMS = {True: "batchnorm", False: "identity"}  # older values of decoder_use_norm -> values now
# the library's own encoders whose ImageNet weights are for pixels from -1 to 1
INCEPTION = ("inceptionresnetv2", "inceptionv4", "xception", "timm-tf_efficientnet_lite")


class SmpNetwork(NamedTuple):
    """A network of the library, as this project builds it."""

    config: dict[str, Any]  # arguments of build_model
    weights: dict[str, Tensor]  # under this project's keys
    pixels: str  # the pixel convention that is assumed
    has_single_logit: bool  # the classifier had one logit, of which two classes were made


def is_smp(weights: Mapping[str, Tensor], saved: Mapping[str, Any] | None) -> bool:
    """Return whether weights are those of a network of the library.

    saved: the content of config.json, if it lies beside the weights.
    """
    has_encoder = any(key.startswith("encoder.") for key in weights)
    return has_encoder and (SMP_MARKER in weights or "_model_class" in (saved or {}))


def recognise_smp(
    weights: Mapping[str, Tensor], saved: Mapping[str, Any] | None, source: str, backbone: str = ""
) -> SmpNetwork:
    """Recognise the decoder, the encoder and the options of a network of the library.

    saved: the content of config.json, if it lies beside the weights. backbone: this project's name of the encoder, for
    files whose keys do not tell it.

    Raises:
        UserError: the decoder or encoder is unknown, or not ``backbone``, or the network was built with an unknown
            setting. Or it does not take three channels, has no classifier, or has other classes than config.json says.
    """
    saved = _rename_options(saved or {})
    _require_rgb(weights, saved, source)
    arch = _recognise_architecture(weights, saved, source)
    if arch == "smp_deeplabv3":
        weights = rename(weights, OLD_DEEPLABV3)
    if saved:
        saved_backbone = _read_backbone_name(saved, source)
        if backbone not in ("", saved_backbone):
            raise UserError(f"--backbone {backbone}: the encoder of {source} is {saved_backbone}, says its config.json")
        backbone = saved_backbone
    backbone = backbone or _recognise_encoder(weights, source)
    is_of_timm = not backbone.startswith(OWN_PREFIX)
    if is_of_timm and not any(key.startswith("encoder.model.") for key in weights):
        weights = rename(weights, OLD_TIMM_ENCODERS)
    weights = rename(weights, KEY_TABLE)
    _require_classes(weights, saved, source)
    weights, has_single_logit = complete_single_logit(weights, source)
    classifier = weights[CLASSIFIER]
    config = {"arch": arch, "backbone": backbone, "num_classes": len(classifier), **_read_options(arch, saved, source)}
    return SmpNetwork(config, weights, assume_pixels(backbone), has_single_logit)


def _require_rgb(weights: Mapping[str, Tensor], saved: Mapping[str, Any], source: str) -> None:
    """Check that the network sees three channels, by config.json or by the first convolution of usual encoders.

    Raises:
        UserError: the network sees more or fewer channels.
    """
    channels = saved.get("in_channels", 3)
    for key in ENCODER_STEM_KEYS:
        if key in weights and weights[key].ndim == 4:
            channels = weights[key].shape[1]
    if channels != 3:
        raise UserError(f"{source}: its network takes {channels} channels; an image has 3")


def _require_classes(weights: Mapping[str, Tensor], saved: Mapping[str, Any], source: str) -> None:
    """Check that config.json and the classifier have the same number of classes.

    Raises:
        UserError: the numbers differ, or there is no classifier.
    """
    if CLASSIFIER not in weights:
        raise UserError(f"{source} is incomplete: a network of {SOURCE} without its classifier")
    if weights[CLASSIFIER].ndim != 4:
        raise UserError(f"{source} is damaged: the weight of its classifier is not that of a convolution")
    classes = len(weights[CLASSIFIER])
    expected = saved.get("classes", classes)
    if expected != classes:
        raise UserError(f"{source}: config.json says {expected} classes, the weights have {classes}")


def assume_pixels(backbone: str) -> str:
    """Return the convention of the encoder's ImageNet weights, which the library's preprocessing follows."""
    if backbone.startswith(OWN_PREFIX):
        return "inception" if backbone.removeprefix(OWN_PREFIX).startswith(INCEPTION) else "imagenet"
    return get_required_pixels(backbone) or "imagenet"


def _recognise_architecture(weights: Mapping[str, Tensor], saved: Mapping[str, Any], source: str) -> str:
    """Return the architecture, from config.json or else from the decoder's keys.

    Raises:
        UserError: the decoder is unknown.
    """
    if "_model_class" in saved:
        name = str(saved["_model_class"]).lower()
        if name in LEFT_OUT:
            raise UserError(f"{source}: {SOURCE}'s {name} is no network here: {LEFT_OUT[name]}")
        decoders = {library_name: arch for arch, library_name in DECODERS.items()}
        return lookup(decoders, name, f"decoder of {SOURCE} in {source}:")
    for start, arch in DECODER_KEYS.items():
        if any(key.startswith(start) for key in weights):
            return arch
    first = next((key for key in weights if key.startswith("decoder.")), "none")
    raise UserError(f"{source} holds a decoder of {SOURCE} that this project does not have (its keys: {first}, ...)")


def _read_backbone_name(saved: Mapping[str, Any], source: str) -> str:
    """Return this project's name: timm's networks have no prefix here, the library's own have "smp-".

    Raises:
        UserError: config.json does not name the encoder.
    """
    # imported here because that takes seconds
    from segmentation_models_pytorch.encoders import is_equivalent_to_timm_universal

    name = saved.get("encoder_name")
    if not isinstance(name, str):
        raise UserError(f"{source}: config.json does not name the encoder (encoder_name)")
    if is_equivalent_to_timm_universal(name):  # an older name of timm's network
        name = name.replace("timm-", "tu-tf_" if "mobilenetv3" in name else "tu-")
    return name.removeprefix("tu-") if name.startswith("tu-") else OWN_PREFIX + name


def _recognise_encoder(weights: Mapping[str, Tensor], source: str) -> str:
    """Return this project's name of the encoder, from its keys and shapes.

    Raises:
        UserError: keys and shapes do not tell the encoder.
    """
    if any(key.startswith("encoder.model.") for key in weights):
        raise UserError(f"{source} does not say which of timm's networks its encoder is: {ADVICE}")
    if "encoder.layer1.0.conv1.weight" in weights and "encoder.conv1.weight" in weights:
        blocks = tuple(_count_blocks(weights, rf"encoder\.layer{stage}\.(\d+)\.") for stage in (1, 2, 3, 4))
        depth = RESNETS.get(("encoder.layer1.0.conv3.weight" in weights, blocks))
        second = weights.get("encoder.layer1.0.conv2.weight")
        is_grouped = second is not None and second.shape[:2] != (64, 64)  # a ResNeXt's
        if depth and not is_grouped:
            return f"{OWN_PREFIX}resnet{depth}"
    if "encoder.patch_embed1.proj.weight" in weights:
        blocks = tuple(_count_blocks(weights, rf"encoder\.block{stage}\.(\d+)\.") for stage in (1, 2, 3, 4))
        narrow = weights["encoder.patch_embed1.proj.weight"].shape[:1] == (32,)
        name = "mit_b0" if narrow else MIX_TRANSFORMERS.get(blocks)
        if name:
            return OWN_PREFIX + name
    raise UserError(
        f"{source}: its keys do not tell which encoder of {SOURCE} it has: {ADVICE} (such as smp-densenet121)"
    )


def _count_blocks(weights: Mapping[str, Tensor], pattern: str) -> int:
    """Count the different numbers that the first group of a pattern finds in the keys."""
    return len({match[1] for key in weights if (match := re.match(pattern, key))})


def _rename_options(saved: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of config.json with today's names of options, and today's values of ``decoder_use_norm``."""
    options = dict(saved)
    for old, new in RENAMED_OPTIONS.items():
        value = options.pop(old, None)
        if value is not None:
            options[new] = value
    norm = options.get("decoder_use_norm")
    if isinstance(norm, bool):
        options["decoder_use_norm"] = NORMS[norm]
    return options


def _read_options(arch: str, saved: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Return the settings of config.json that differ from the library's defaults.

    Raises:
        UserError: the network was built with a setting that this project does not have.
    """
    parameters = inspect.signature(get_library_class(arch).__init__).parameters
    options = {}
    for key, value in saved.items():
        if key in list_decoder_options(arch):
            default = parameters[key].default
            if value != (list(default) if isinstance(default, tuple) else default):
                options[key] = value
        elif key not in parameters and not key.startswith("_") and value is not None:
            raise UserError(f"{source} was built with {key}={value!r}, which this project does not have")
    return options
