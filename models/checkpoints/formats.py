"""Checkpoints of other projects: which files they are. A new format is a key table and a line of FORMATS."""

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torch import Tensor

from models.checkpoints import keys
from models.checkpoints.keys import Table, rename
from utils.errors import UserError, print_note


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
# modules that wrap a network in training code; the keys of its state dict begin with their names, one in another
WRAPPERS = ("module", "model", "_orig_mod", "net", "network", "student", "ema_model", "model_ema")
AVERAGES = ("state_dict_ema", "model_ema")  # containers of a moving average of the weights, which is what is evaluated
CONTAINERS = (*AVERAGES, "state_dict", "model", "model_state", "model_state_dict", "net", "network", "weights")
# tensors that training code keeps beside the network, by a part of their key
BESIDE = re.compile(r"(\w+_)?(criterion|criteria|loss(es)?|metrics?|m?iou|jaccard|confmat|confusion|accuracy)(_\w+)?")


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
    """Return the state dict of the network in a training file, without the names of modules that wrap it.

    Of a network and its moving average the average is taken, and said.

    Raises UserError: there are no weights in it, those of several networks, or of one in a wrapper that is not known.
    """
    weights = _find_tensors(content, source)
    prefixes = _find_prefixes(weights)
    averaged = sorted(prefix for prefix in prefixes if "ema" in re.split(r"[._]", prefix))
    if len(prefixes) > 1 and len(averaged) == 1:
        print_note(f"note: {source}: the moving average {averaged[0]!r} is used")
        others = [prefix for prefix in prefixes if prefix not in averaged]
        weights = {
            key: value for key, value in weights.items() if key.startswith(averaged[0]) or _is_apart(key, others)
        }
        prefixes = set(averaged)
    if len(prefixes) > 1:
        named = ", ".join(repr(prefix) for prefix in sorted(prefixes))
        raise UserError(f"{source} holds several networks (their keys begin with {named}): save the one that is meant")
    prefix = next(iter(prefixes), None)
    if prefix is None:  # none that is known; the message on it is clearer without wrappers
        prefix = _common_prefix(weights)
    elif unknown := [part for part in prefix.split(".")[:-1] if part not in WRAPPERS]:
        raise UserError(
            f"{source}: the keys of its network begin with {prefix!r}, and {unknown[0]!r} is no wrapper that is known: "
            "save the state_dict() of the network itself"
        )
    weights = {key: value for key, value in weights.items() if not _is_beside(key.removeprefix(prefix))}
    for key in weights:
        if not key.startswith(prefix):
            raise UserError(f"{source}: keys of its network begin with {prefix!r}, but not all do, such as {key}")
    return {key.removeprefix(prefix): value for key, value in weights.items()}


def _find_tensors(content: Mapping[str, object], source: str) -> dict[str, Tensor]:
    """Find the tensors of a training file, in containers one in the other."""
    for _ in CONTAINERS:
        inner = [key for key in CONTAINERS if isinstance(content.get(key), Mapping)]
        if not inner:
            break
        if inner[0] in AVERAGES and len(inner) > 1:
            print_note(f"note: {source}: the moving average {inner[0]!r} is used, not {inner[1]!r}")
        content = content[inner[0]]
    weights = {key: value for key, value in content.items() if isinstance(value, Tensor) and isinstance(key, str)}
    if not weights:
        raise UserError(f"{source} holds no weights")
    return weights


def _find_prefixes(weights: Mapping[str, Tensor]) -> set[str]:
    """Find what stands before the keys of networks of a known format."""
    markers = [form.marker for form in FORMATS.values()]
    found = set()
    for key in weights:
        for marker in markers:
            prefix = key.removesuffix(marker)
            if prefix != key and (not prefix or prefix.endswith(".")):
                found.add(prefix)
    return found


def _common_prefix(weights: Mapping[str, Tensor]) -> str:
    """Return the names of wrappers that all keys begin with."""
    prefix = ""
    while part := next((w for w in WRAPPERS if all(key.startswith(f"{prefix}{w}.") for key in weights)), ""):
        prefix += f"{part}."
    return prefix


def _is_apart(key: str, prefixes: Sequence[str]) -> bool:
    """Say whether a key belongs to none of the networks whose keys have these prefixes; "" is a prefix of no other."""
    return not any(key.startswith(prefix) for prefix in prefixes)


def _is_beside(key: str) -> bool:
    """Say whether a tensor belongs to a loss or a metric."""
    return any(BESIDE.fullmatch(part) for part in key.split("."))
