"""Which network a file holds, from its keys and shapes: format, architecture, backbone, widths, classes, planes."""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from models.architectures import build_model, width_names
from models.backbones.stdc import BLOCKS
from models.checkpoints.card import KINDS
from models.checkpoints.formats import FORMATS, Family, translate
from utils.errors import UserError, print_note

# (has bottleneck blocks, blocks of each stage) -> depth
RESNETS = {
    (False, (2, 2, 2, 2)): 18,
    (False, (3, 4, 6, 3)): 34,
    (True, (3, 4, 6, 3)): 50,
    (True, (3, 4, 23, 3)): 101,
    (True, (3, 8, 36, 3)): 152,
}
STDCS = {blocks: name for name, blocks in BLOCKS.items()}
# the convolution that sees the image, in every family of backbones
STEMS = ("conv1.0.weight", "conv1.weight", "conv_stem.weight", "encoder.stages.0.conv.weight")
CLASSIFIER = "main.classifier.weight"
AUX_CLASSIFIER = "aux.0.classifier.weight"
SINGLE_LOGIT = re.compile(r"(main|aux\.0)\.classifier\.(weight|bias)")
COARSE_TO_FINE = "main.head.query.0.conv.weight"  # of OCRNet, whose main head reads the auxiliary logits
# argument of an architecture -> the key, and its dimension, that tell it; a branch that is absent has width 0
WIDTHS = {
    "width": (CLASSIFIER, 1),
    "aux_width": (AUX_CLASSIFIER, 1),
    "branch_width": ("main.head.pools.0.1.conv.weight", 0),
    "key_width": (COARSE_TO_FINE, 0),
    "detail_width": ("aux.2.classifier.weight", 1),
}
OPTIONAL = ("num_batches_tracked", "head.fusion")  # ends of keys that a file may lack: counters and constants


class Inferred(NamedTuple):
    format: str  # a key of FORMATS
    config: dict[str, Any]  # arguments of build_model
    weights: dict[str, Tensor]  # under this project's keys


def infer(weights: Mapping[str, Tensor], source: str) -> Inferred:
    """Recognise another project's network.

    Raises UserError: it is none of FORMATS, or incomplete so that its layers cannot be counted.
    """
    name = next((name for name, form in FORMATS.items() if form.marker in weights), None)
    if name is None:
        first = ", ".join(list(weights)[:3])
        raise UserError(
            f"{source} holds no network this project knows (its keys: {first}, ...); it reads its own checkpoints and "
            f"those of {', '.join(FORMATS)}; weights of a backbone alone are for --pretrained-base"
        )
    ours = translate(weights, name)
    if CLASSIFIER not in ours:
        raise UserError(f"{source} is incomplete: a {name} file without its classifier")
    ours = drop_other_auxiliary(complete_single_logit(ours, source), source)
    body = _below(ours, "backbone.")
    stem = next((body[key] for key in STEMS if key in body), None)
    for key in (*(f"backbone.{key}" for key in STEMS), *(key for key, _ in WIDTHS.values())):
        if key in ours and ours[key].ndim != 4:
            raise UserError(f"{source} is damaged: {key} of this {name} file is no convolution's")
    if stem is None:
        known = "ResNet, STDC, HRNet, CIRKD's MobileNetV2"
        raise UserError(f"{source}: this {name} file is incomplete, or its backbone is none of {known}")
    backbone = _backbone(body, FORMATS[name].family, len(stem), source)
    config = {"backbone": backbone, "num_classes": len(ours[CLASSIFIER]), "in_channels": stem.shape[1]}
    archs = FORMATS[name].archs
    widths = {w: ours[key].shape[dim] if key in ours else 0 for w, (key, dim) in WIDTHS.items()}
    widths = {w: value for w, value in widths.items() if w in width_names(archs[0])}
    candidates = [{"arch": arch, **config} for arch in archs] + [{"arch": archs[0], **config, **widths}]
    shapes = _shapes(ours)
    chosen = next((c for c in candidates if _shapes(_skeleton(c)) == shapes), candidates[-1])
    return Inferred(name, chosen, ours)


def complete_single_logit(weights: dict[str, Tensor], source: str) -> dict[str, Tensor]:
    """Make two classes of a network with one logit z, whose sigmoid is the share of the second: logits (0, z)."""
    if weights[CLASSIFIER].ndim != 4 or len(weights[CLASSIFIER]) != 1:
        return weights
    print_note(f"note: {source} has one logit: class 1 where it is above 0, else class 0")
    completed = dict(weights)
    for key, value in weights.items():
        if SINGLE_LOGIT.fullmatch(key) and len(value) == 1:
            completed[key] = torch.cat([torch.zeros_like(value), value])
    return completed


def has_single_logit(weights: Mapping[str, Tensor]) -> bool:
    """Say whether ``complete_single_logit`` made two classes of one: the logit of the first is always 0."""
    return len(weights[CLASSIFIER]) == 2 and not weights[CLASSIFIER][0].any()


def drop_other_auxiliary(weights: dict[str, Tensor], source: str) -> dict[str, Tensor]:
    """Leave out an auxiliary head of another number of classes, which fine-tuning left as it was.

    An OCRNet needs its auxiliary head, and an STDC has heads of several kinds: theirs stay.
    """
    auxiliary = [key for key in weights if key.startswith("aux.")]
    main, classifier = weights[CLASSIFIER], weights.get(AUX_CLASSIFIER)
    needed = any(not key.startswith("aux.0.") for key in auxiliary) or COARSE_TO_FINE in weights
    if classifier is None or needed or not main.ndim == classifier.ndim == 4 or len(classifier) == len(main):
        return weights
    classes = f"{len(classifier)} classes, the main head {len(main)}"
    print_note(f"note: {source}: its auxiliary head has {classes}: it is left out")
    return {key: value for key, value in weights.items() if key not in auxiliary}


def _skeleton(config: Mapping[str, Any]) -> Mapping[str, Tensor]:
    """Keys and shapes of a network, without memory for its weights."""
    with torch.device("meta"):
        return build_model(**config).state_dict()


def _shapes(weights: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {key: value.shape for key, value in weights.items() if not key.endswith(OPTIONAL)}


def _below(weights: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}


def _count(weights: Mapping[str, Tensor], prefix: str) -> int:
    """How many numbered modules lie below ``prefix``."""
    return len({key.partition(".")[0] for key in _below(weights, prefix)})


def _backbone(weights: Mapping[str, Tensor], family: Family, stem_width: int, source: str) -> str:
    """The backbone's name, from its weights without prefix."""
    if "blocks.0.0.conv_dw.weight" in weights:
        return "mobilenetv2_100"
    if "encoder.stages.0.conv.weight" in weights:
        blocks = tuple(_count(weights, f"encoder.stages.{stage}.") for stage in (2, 3, 4))
        return _known(STDCS, blocks, f"an STDC of {blocks} modules", source)
    if "stage4.0.branches.0.0.conv1.weight" in weights:
        width = len(weights["stage4.0.branches.0.0.conv1.weight"])
        return f"hrnet_w{width}" + ("_small_v2" if _count(weights, "layer1.") == 2 else "")
    blocks = tuple(_count(weights, f"layer{stage}.") for stage in (1, 2, 3, 4))
    bottleneck = "layer1.0.conv3.weight" in weights
    depth = _known(RESNETS, (bottleneck, blocks), f"a ResNet of {blocks} blocks", source)
    deep = stem_width if "conv1.0.weight" in weights else 0
    return _known(family.resnets, deep, f"a stem of {stem_width} channels", source).format(depth)


def _known(table: Mapping[Any, Any], key: Any, what: str, source: str) -> Any:
    if key not in table:
        raise UserError(f"{source} has {what}: incomplete, or not a network this project has")
    return table[key]


# settings of MMSegmentation that change the network and not its shapes -> the values this project has
SHAPELESS = {"dilations": ("1,1,2,4", "1,12,24,36"), "dilation": ("1",), "multi_grid": (), "pool_scales": ("1,2,3,6",)}


def mmseg_record(content: Mapping[str, Any], config: Mapping[str, Any], source: str) -> dict[str, Any]:
    """What MMSegmentation's files say about themselves in ``meta``: class names, palette, align_corners.

    Raises UserError: its training configuration differs in a setting that shapes do not show.
    """
    meta = content.get("meta")
    meta = meta if isinstance(meta, Mapping) else {}
    text = meta.get("cfg") or meta.get("config")
    text = text if isinstance(text, str) else ""
    for setting, known in SHAPELESS.items():
        for value in re.findall(rf"\b{setting}=\(?([\d, ]+)", text):
            if value.replace(" ", "").strip(",") not in known:
                raise UserError(f"{source} was trained with {setting}={value.strip(' ,')}, which this project has not")
    record: dict[str, Any] = {}
    if "align_corners" in width_names(config["arch"]) and set(re.findall(r"align_corners=(\w+)", text)) == {"True"}:
        record["align_corners"] = True
    described = meta.get("dataset_meta")
    described = described if isinstance(described, Mapping) else {}
    for key, values in (
        ("class_names", described.get("classes") or meta.get("CLASSES")),
        ("palette", described.get("palette") or meta.get("PALETTE")),
    ):
        values = [list(v) if isinstance(v, tuple) else v for v in values] if isinstance(values, (list, tuple)) else []
        record[key] = values if KINDS[key](values) and len(values) == config["num_classes"] else []
    return record
