"""Recognise the network in another project's file from its keys and shapes.

They tell the format, architecture, backbone, widths, number of classes and number of input channels.
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from models.architectures import build_model, list_options
from models.backbones.stdc import BLOCKS
from models.checkpoints.formats import FORMATS, RELEASE, Family, translate_network
from utils.errors import UserError, print_note

# (has bottleneck blocks, number of blocks of each stage) -> depth
RESNETS = {
    (False, (2, 2, 2, 2)): 18,
    (False, (3, 4, 6, 3)): 34,
    (True, (3, 4, 6, 3)): 50,
    (True, (3, 4, 23, 3)): 101,
    (True, (3, 8, 36, 3)): 152,
}
STDCS = {blocks: name for name, blocks in BLOCKS.items()}
# keys of the convolution that sees the image, without the backbone's prefix
BACKBONE_STEM_KEYS = ("conv1.0.weight", "conv1.weight", "conv_stem.weight", "encoder.stages.0.conv.weight")
CLASSIFIER = "main.classifier.weight"
AUX_CLASSIFIER = "aux.0.classifier.weight"
CLASSIFIER_KEY = re.compile(r"(main|aux\.\d)\.classifier\.(weight|bias)")
COARSE_TO_FINE = "main.head.query.0.conv.weight"  # a key of OCRNet, whose main head reads the auxiliary logits
# width argument of an architecture -> (key, dimension) whose size is the width; a branch that is absent has width 0
WIDTHS = {
    "width": (CLASSIFIER, 1),
    "aux_width": (AUX_CLASSIFIER, 1),
    "branch_width": ("main.head.pools.0.1.conv.weight", 0),
    "key_width": (COARSE_TO_FINE, 0),
    "detail_width": ("aux.2.classifier.weight", 1),
}
OPTIONAL = ("num_batches_tracked", "head.fusion")  # ends of keys that a file may lack: counters and constants


class Recognised(NamedTuple):
    """Hold what ``build_model`` needs for a network of another project."""

    format: str  # a key of FORMATS: a code base and an architecture
    config: dict[str, Any]  # arguments of build_model
    weights: dict[str, Tensor]  # under this project's keys
    has_single_logit: bool  # the classifier had one logit, of which two classes were made


def recognise_network(weights: Mapping[str, Tensor], source: str) -> Recognised:
    """Find out which network a state dict of another project holds, and convert its weights to this project's.

    Keys are renamed. One logit becomes two classes, and an auxiliary head with another number of classes is dropped;
    a note is printed for either. Whether all weights fit is only known when they are loaded.

    weights: without wrappers' prefixes, and not of segmentation_models_pytorch, which ``models.checkpoints.smp_files``
    reads. source: the file, for messages.

    Raises:
        UserError: the format or the backbone is unknown, the classifier or the first convolution is missing, a weight
            is not that of a convolution, or the network takes other channels than an image and LAD's label plane.
    """
    format_name = _find_format(weights, source)
    ours = translate_network(weights, format_name)
    if CLASSIFIER not in ours:
        raise UserError(f"{source} is incomplete: a {format_name} file without its classifier")
    ours, has_single_logit = complete_single_logit(ours, source)
    ours = drop_unrelated_auxiliary(ours, source)
    _require_convolutions(ours, format_name, source)
    body = _strip_prefix(ours, "backbone.")
    stem = next((body[key] for key in BACKBONE_STEM_KEYS if key in body), None)
    if stem is None:
        known = "ResNet, STDC, HRNet, CIRKD's MobileNetV2"
        raise UserError(f"{source}: this {format_name} file is incomplete, or its backbone is none of {known}")
    in_channels = stem.shape[1]
    _require_known_channels(in_channels, FORMATS[format_name].family, source)
    config = {
        "backbone": _recognise_backbone(body, FORMATS[format_name].family, len(stem), source),
        "num_classes": len(ours[CLASSIFIER]),
        "in_channels": in_channels,
    }
    config = _choose_config(config, FORMATS[format_name].archs, ours)
    return Recognised(format_name, config, ours, has_single_logit)


def _find_format(weights: Mapping[str, Tensor], source: str) -> str:
    """Return the key of FORMATS whose marker is in the file.

    Raises:
        UserError: the file has no marker of a known format.
    """
    for name, form in FORMATS.items():
        if form.marker in weights:
            return name
    first = ", ".join(list(weights)[:3])
    raise UserError(
        f"{source} holds no network this project knows (its keys: {first}, ...); it reads its own checkpoints and "
        f"those of {', '.join(FORMATS)} and segmentation_models_pytorch; weights of a backbone alone are for "
        f"--pretrained-base"
    )


def _require_known_channels(in_channels: int, family: Family, source: str) -> None:
    """Check that a network sees three channels. A fourth one of LAD's networks is the label plane.

    Raises:
        UserError: it sees other channels.
    """
    may_read_label = family is RELEASE
    if in_channels == 3 or (in_channels == 4 and may_read_label):
        return
    planes = ", and a label plane makes 4" if may_read_label else ""
    raise UserError(f"{source}: its network takes {in_channels} channels; an image has 3{planes}")


def _require_convolutions(weights: Mapping[str, Tensor], name: str, source: str) -> None:
    """Check that the weights whose shapes are read below are those of convolutions.

    Raises:
        UserError: such a weight does not have four dimensions.
    """
    width_keys = [key for key, _ in WIDTHS.values()]
    for key in (*(f"backbone.{stem}" for stem in BACKBONE_STEM_KEYS), *width_keys):
        if key in weights and weights[key].ndim != 4:
            raise UserError(f"{source} is damaged: {key} of this {name} file is not the weight of a convolution")


def _choose_config(config: dict[str, Any], archs: tuple[str, ...], weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the arguments of build_model: the first architecture that fits with its default widths.

    If none does, this is the first one, with widths read from the file.

    config: the arguments without architecture and widths. archs: the architectures that the file may hold.
    """
    candidates = [{"arch": arch, **config} for arch in archs]
    shapes = _list_shapes(weights)
    for candidate in candidates:
        if _list_shapes(_build_skeleton(candidate)) == shapes:
            return candidate
    return {**candidates[0], **_read_widths(weights, archs[0])}


def _read_widths(weights: Mapping[str, Tensor], arch: str) -> dict[str, int]:
    """Return the widths of a network from its shapes; 0 for a branch that it does not have."""
    widths = {}
    for name, (key, dimension) in WIDTHS.items():
        if name in list_options(arch):
            widths[name] = weights[key].shape[dimension] if key in weights else 0
    return widths


def complete_single_logit(weights: dict[str, Tensor], source: str) -> tuple[dict[str, Tensor], bool]:
    """Turn a classifier of one logit z, for a sigmoid, into one of two classes: logits (0, z) mean the same.

    OCRNet makes a region of each auxiliary logit. There the logit is doubled, since two equal regions have the same
    effect as one.

    Return the weights, and whether there was a single logit. Weights of other classifiers stay as they are.
    """
    if weights[CLASSIFIER].ndim != 4 or len(weights[CLASSIFIER]) != 1:
        return weights, False
    print_note(f"note: {source} has one logit: class 1 where it is above 0, else class 0")
    completed = dict(weights)
    for key, value in weights.items():
        if CLASSIFIER_KEY.fullmatch(key) and len(value) == 1:
            is_region = COARSE_TO_FINE in weights and key.startswith("aux.")
            completed[key] = torch.cat([value if is_region else torch.zeros_like(value), value])
    return completed, True


def drop_unrelated_auxiliary(weights: dict[str, Tensor], source: str) -> dict[str, Tensor]:
    """Leave out an auxiliary head with another number of classes than the main head. A note says so.

    Fine-tuning on a new data set leaves such a head behind. OCRNet needs its auxiliary head, and STDC has auxiliary
    heads of several kinds; these stay.
    """
    auxiliary = [key for key in weights if key.startswith("aux.")]
    is_needed = COARSE_TO_FINE in weights or any(not key.startswith("aux.0.") for key in auxiliary)
    if is_needed or AUX_CLASSIFIER not in weights:
        return weights
    main = weights[CLASSIFIER]
    classifier = weights[AUX_CLASSIFIER]
    are_convolutions = main.ndim == 4 and classifier.ndim == 4
    if not are_convolutions or len(classifier) == len(main):
        return weights
    print_note(
        f"note: {source}: its auxiliary head has {len(classifier)} classes, the main head {len(main)}: it is left out"
    )
    return {key: value for key, value in weights.items() if key not in auxiliary}


def _build_skeleton(config: Mapping[str, Any]) -> Mapping[str, Tensor]:
    """Return the state dict of a network without memory for its weights, to compare keys and shapes."""
    with torch.device("meta"):
        return build_model(**config).state_dict()


def _list_shapes(weights: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    """Return the shape of each weight that every file must have."""
    return {key: value.shape for key, value in weights.items() if not key.endswith(OPTIONAL)}


def _strip_prefix(weights: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the weights whose keys begin with a prefix, without the prefix."""
    return {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}


def _count_modules(weights: Mapping[str, Tensor], prefix: str) -> int:
    """Count the numbered modules whose keys begin with ``prefix``."""
    return len({key.partition(".")[0] for key in _strip_prefix(weights, prefix)})


def _recognise_backbone(weights: Mapping[str, Tensor], family: Family, stem_width: int, source: str) -> str:
    """Return the name of a backbone. ``weights`` have no prefix; ``stem_width`` is the width of the first convolution.

    Raises:
        UserError: the numbers of blocks or the stem of the backbone are those of no network here.
    """
    if "blocks.0.0.conv_dw.weight" in weights:
        return "mobilenetv2_100"
    if "encoder.stages.0.conv.weight" in weights:
        blocks = tuple(_count_modules(weights, f"encoder.stages.{stage}.") for stage in (2, 3, 4))
        return _look_up(STDCS, blocks, f"an STDC of {blocks} modules", source)
    if "stage4.0.branches.0.0.conv1.weight" in weights:
        return _recognise_hrnet(weights)
    blocks = tuple(_count_modules(weights, f"layer{stage}.") for stage in (1, 2, 3, 4))
    has_bottlenecks = "layer1.0.conv3.weight" in weights
    depth = _look_up(RESNETS, (has_bottlenecks, blocks), f"a ResNet of {blocks} blocks", source)
    deep_stem_width = stem_width if "conv1.0.weight" in weights else 0
    name = _look_up(family.resnets, deep_stem_width, f"a stem of {stem_width} channels", source)
    return name.format(depth)


def _recognise_hrnet(weights: Mapping[str, Tensor]) -> str:
    """Return the name of an HRNet. The small ones have two blocks in their first layer."""
    width = len(weights["stage4.0.branches.0.0.conv1.weight"])
    is_small = _count_modules(weights, "layer1.") == 2
    return f"hrnet_w{width}_small_v2" if is_small else f"hrnet_w{width}"


def _look_up(table: Mapping[Any, Any], key: Any, description: str, source: str) -> Any:
    """Return ``table[key]``.

    Raises:
        UserError: the table has no such key. ``description`` says in words what the file has, for the message.
    """
    if key not in table:
        raise UserError(f"{source} has {description}: incomplete, or not a network this project has")
    return table[key]
