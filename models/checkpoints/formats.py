"""Checkpoints of other projects: which files they are. A new format is a key table and a line of FORMATS."""

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

from models.checkpoints import keys
from models.checkpoints.keys import Table, rename
from utils.errors import UserError


class Family(NamedTuple):
    """What the networks of one code base have in common."""

    prefix: str  # of the backbone's keys
    pixels: str
    resnets: Mapping[int, str]  # first channels of a deep stem (0: a 7x7 stem) -> this project's name, for a depth


class Format(NamedTuple):
    family: Family
    archs: tuple[str, ...]  # the first whose own widths are the file's is taken
    marker: str  # a key that every such file has, and none of a format further up the list
    table: Table


RELEASE = Family("pretrained.", "bgr_mean", {64: "resnet{}_v1s", 0: "resnet{}"})
MMSEG = Family("backbone.", "imagenet", {32: "resnet{}_v1c", 0: "resnet{}_v1b"})
TORCHVISION = Family("backbone.", "imagenet", {0: "resnet{}"})
_OCR_MARKER = "decode_head.1.object_context_block.bottleneck.conv.weight"
FORMATS: dict[str, Format] = {
    "LAD/CIRKD DeepLabV3": Format(
        RELEASE, ("deeplabv3", "deeplabv3_cirkd2"), "head.aspp.project.0.weight", keys.RELEASE_DEEPLABV3
    ),
    "LAD/CIRKD PSPNet": Format(RELEASE, ("pspnet", "pspnet_cirkd2"), "head.psp.conv1.0.weight", keys.RELEASE_PSPNET),
    "MMSegmentation OCRNet": Format(MMSEG, ("ocrnet",), _OCR_MARKER, keys.MMSEG_OCRNET),
    "MMSegmentation STDC": Format(MMSEG, ("stdc",), "backbone.arms.0.conv_layer.conv.weight", keys.MMSEG_STDC),
    "MMSegmentation PSPNet": Format(
        MMSEG, ("pspnet_mmseg",), "decode_head.psp_modules.0.1.conv.weight", keys.MMSEG_PSPNET
    ),
    "MMSegmentation DeepLabV3": Format(
        MMSEG, ("deeplabv3_mmseg",), "decode_head.aspp_modules.0.conv.weight", keys.MMSEG_DEEPLABV3
    ),
    "MMSegmentation FCN": Format(MMSEG, ("fcn",), "decode_head.convs.0.conv.weight", keys.MMSEG_FCN),
    "torchvision DeepLabV3": Format(
        TORCHVISION, ("deeplabv3_torchvision",), "classifier.0.project.0.weight", keys.TORCHVISION_DEEPLABV3
    ),
    "torchvision FCN": Format(TORCHVISION, ("fcn_torchvision",), "classifier.4.weight", keys.TORCHVISION_FCN),
}
PREFIXES = ("module.", "model.")  # of networks that were saved inside another module
WRAPPERS = ("state_dict", "model", "model_state", "model_state_dict")


def translate(weights: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """A whole network's file under this project's keys; ``name`` is one of FORMATS."""
    family, _, _, table = FORMATS[name]
    body = {k.removeprefix(family.prefix): v for k, v in weights.items() if k.startswith(family.prefix)}
    heads = {k: v for k, v in weights.items() if not k.startswith(family.prefix)}
    return {f"backbone.{k}": v for k, v in translate_backbone(body).items()} | rename(heads, table)


def translate_backbone(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A backbone's weights, without their prefix, under the names of ``models.backbones``."""
    table = next((table for marker, table in keys.BACKBONE_TABLES if marker in weights), ())
    return rename(weights, table)


def unwrap(content: Mapping[str, object], source: str) -> dict[str, Tensor]:
    """The state dict inside a training file, without DataParallel's ``module.`` and the like.

    Raises UserError: there are no weights in it.
    """
    for _ in WRAPPERS:  # one in the other
        content = next((content[key] for key in WRAPPERS if isinstance(content.get(key), Mapping)), content)
    weights = {key: value for key, value in content.items() if isinstance(value, Tensor) and isinstance(key, str)}
    if not weights:
        raise UserError(f"{source} holds no weights")
    while prefix := next((p for p in PREFIXES if all(key.startswith(p) for key in weights)), None):
        weights = {key.removeprefix(prefix): value for key, value in weights.items()}
    return weights
