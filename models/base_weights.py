"""Weights a backbone starts from: ImageNet files of this and other projects, and timm's downloads."""

from collections.abc import Mapping

import timm
import torch
from torch import Tensor, nn

from models import files
from models.foreign import translate_backbone, unwrap
from models.segmentor import Segmentor
from utils import checkpoint
from utils.errors import UserError

# this project's backbone -> timm's name for its ImageNet weights, where the two differ
TIMM_WEIGHTS = {
    **{f"resnet{depth}_v1c": f"resnet{depth}c" for depth in (50, 101, 152)},
    **{f"resnet{depth}_v1s": f"resnet{depth}s" for depth in (50, 101, 152)},
    **{f"resnet{depth}_v1b": f"resnet{depth}" for depth in (18, 34, 50, 101, 152)},
}
# under which whole networks keep the part that has ImageNet weights; of two that fit, the longer
PREFIXES = ("backbone.backbone.", "backbone.encoder.", "backbone.", "pretrained.")


def load_base(model: Segmentor, pretrained_base: str) -> None:
    """Load a file, or with "timm" what timm has for the backbone; of an STDC the encoder, its context path has none.

    Raises:
        UserError: no such file or download, another stem, or layers missing, left over or of other shapes.
    """
    source = f"--pretrained-base {pretrained_base}"
    weights = _timm_weights(model) if pretrained_base == "timm" else unwrap(files.read(pretrained_base), source)
    backbone = getattr(model.backbone, "encoder", model.backbone)
    checkpoint.load_weights(backbone, backbone_weights(weights, backbone, source), source)


def backbone_weights(weights: Mapping[str, Tensor], backbone: nn.Module, source: str) -> dict[str, Tensor]:
    """Weights for ``backbone`` from a classification network's file, or from a whole segmentation network's.

    What lies outside the backbone (classifier, heads) is left out; label planes of the stem keep their own weights.

    Raises:
        UserError: the two have different stems.
    """
    own = backbone.state_dict()
    prefix = next((p for p in PREFIXES if any(key.startswith(p) for key in weights)), "")
    weights = {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
    weights = translate_backbone(weights)
    if "conv1.0.weight" in own and "conv1.0.weight" not in weights and "conv1.weight" in weights:
        raise UserError(f"{source} has a 7x7 stem, this backbone a deep one (three 3x3 convolutions)")
    if "conv1.weight" in own and "conv1.0.weight" in weights:
        raise UserError(f"{source} has a deep stem (three 3x3 convolutions), this backbone a 7x7 one")
    parts = {key.partition(".")[0] for key in own}
    result = {key: value for key, value in weights.items() if key.partition(".")[0] in parts}
    for key, value in own.items():
        if key.endswith("num_batches_tracked"):
            result.setdefault(key, value)
        elif value.ndim == 4 and key in result and result[key].shape[1] == 3 < value.shape[1]:
            result[key] = torch.cat([result[key], value[:, 3:].to(result[key])], 1)
    return result


def _timm_weights(model: Segmentor) -> dict[str, Tensor]:
    """The ImageNet weights timm offers for the backbone's name, downloaded by timm."""
    backbone = model.config["backbone"]
    name = TIMM_WEIGHTS.get(backbone, backbone)
    if not (timm.is_model(name) and timm.is_model_pretrained(name)):
        raise UserError(f"--pretrained-base timm: timm has no weights for {backbone!r}; give a file")
    try:
        return timm.create_model(name, pretrained=True).state_dict()
    except Exception as error:  # the hub's client raises many kinds, from no network to a changed hash
        raise UserError(f"--pretrained-base timm: {name} could not be downloaded: {error}") from error
