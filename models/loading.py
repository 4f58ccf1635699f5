"""Networks from files."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import timm
from torch import Tensor

from models import build_model
from models.backbones import stem_conv, widen_stem
from models.foreign import backbone_weights
from models.label_noise import LabelNoise
from models.segmentor import Segmentor
from utils import checkpoint
from utils.config import TrainConfig
from utils.errors import UserError

FORMAT = 1  # of the cards this version writes


class Loaded(NamedTuple):
    model: Segmentor
    card: dict[str, Any]  # what is known about the network: class_names, palette, dataset, pixels, label_noise, ...

    @property
    def noise(self) -> LabelNoise | None:
        """The label noise an assisted teacher was trained with; None for a network that sees the image only."""
        config = self.card.get("label_noise")
        return LabelNoise(self.card["num_classes"], **config) if config else None


def make_card(
    model: Segmentor,
    class_names: Sequence[str],
    palette: Sequence[tuple[int, int, int]],
    config: TrainConfig,
    noise: LabelNoise | None = None,
) -> dict[str, Any]:
    """What a checkpoint says about itself besides its weights, in plain values."""
    return {
        "format": FORMAT,
        "arch": dict(model.config),
        "num_classes": len(class_names),
        "class_names": list(class_names),
        "palette": [list(color) for color in palette],
        "dataset": config.dataset,
        "data": config.data,
        "pixels": config.pixels,
        "label_noise": dict(noise.config) if noise else None,
    }


def from_checkpoint(path: str | Path) -> Loaded:
    """Rebuild the network of a checkpoint, on the CPU, in eval mode.

    Raises:
        UserError: no such file, damaged, of unknown content, or weights that do not fit what the file says.
    """
    content = checkpoint.read(path)
    if content.get("format") != FORMAT or "arch" not in content:
        raise UserError(f"{path} is no checkpoint of this project")
    weights = content.pop("model")
    for key in ("optimizer", "scaler", "losses"):
        content.pop(key, None)
    model = build_model(**content["arch"])
    checkpoint.load_weights(model, weights, path)
    return Loaded(model.eval(), content)


def initialise(model: Segmentor, pretrained_base: str, pretrained: str, pixels: str) -> None:
    """Start a network from a whole checkpoint, from backbone weights, or leave it as it is.

    A three-channel checkpoint starts a network with label planes: RGB weights are kept, the planes' stay as drawn.

    Raises:
        UserError: the file is of another network, other classes or another pixel convention.
    """
    if pretrained:
        loaded, card = from_checkpoint(pretrained)
        if card["pixels"] != pixels:
            raise UserError(f"--pretrained {pretrained} was trained on other pixels: use --pixels {card['pixels']}")
        own, other = model.config, loaded.config
        different = [f"{k} {other[k]!r}, here {own[k]!r}" for k in own if k != "in_channels" and own[k] != other[k]]
        if different:
            raise UserError(f"--pretrained {pretrained} is another network: {'; '.join(different)}")
        if other["in_channels"] == 3 < own["in_channels"]:
            widen_stem(loaded.backbone, own["in_channels"])
            stem_conv(loaded.backbone).weight.data[:, 3:] = stem_conv(model.backbone).weight.data[:, 3:]
        checkpoint.load_weights(model, loaded.state_dict(), f"--pretrained {pretrained}")
    elif pretrained_base:
        weights = _timm_weights(model) if pretrained_base == "timm" else checkpoint.read(pretrained_base)
        own = model.backbone.state_dict()
        mapped = backbone_weights(weights, own, f"--pretrained-base {pretrained_base}")
        checkpoint.load_weights(model.backbone, mapped, f"--pretrained-base {pretrained_base}")


def _timm_weights(model: Segmentor) -> dict[str, Tensor]:
    """The ImageNet weights timm offers for the backbone's name, downloaded by timm."""
    name = model.config["backbone"]
    if not (timm.is_model(name) and timm.is_model_pretrained(name)):
        raise UserError(f"--pretrained-base timm: timm has no weights for {name!r}; give a file")
    try:
        return timm.create_model(name, pretrained=True).state_dict()
    except Exception as error:  # the hub's client raises many kinds, from no network to a changed hash
        raise UserError(f"--pretrained-base timm: {name} could not be downloaded: {error}") from error
