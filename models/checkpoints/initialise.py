"""Load the weights from which a training starts, into a network that has random ones."""

from collections.abc import Mapping
from typing import Any

from models.backbones import keep_label_planes
from models.checkpoints.card import Card
from models.checkpoints.imagenet import load_base
from models.checkpoints.loading import from_checkpoint, read_network_name
from models.segmentor import Segmentor
from models.user_networks import UserNetwork, is_user_network
from utils import checkpoint
from utils.errors import UserError


def initialise(model: Segmentor | UserNetwork, pretrained_base: str, pretrained: str, pixels: str) -> str:
    """Load the weights from which a training starts. Return in words which they are.

    pretrained: a checkpoint of the whole network. pretrained_base: weights of the backbone, the argument of
    ``load_base``; it is not used if ``pretrained`` is given. If both are empty, the network keeps the weights that it
    has. A user's network takes no ``pretrained_base``. pixels: the pixel convention of the run.

    Raises:
        UserError: the file cannot be read, or is of another network, other classes or another pixel convention. Or
            ``pretrained_base`` is given for a user's network.
    """
    if is_user_network(model.config["arch"]):
        return _initialise_user_network(model, pretrained_base, pretrained, pixels)
    if pretrained:
        _load_whole_network(model, pretrained, pixels)
        return f"the weights of {pretrained}"
    if pretrained_base:
        load_base(model, pretrained_base, pixels)
        return f"the backbone weights of {pretrained_base}"
    return "random weights (published results start from ImageNet's: --pretrained-base)"


def _load_whole_network(model: Segmentor, pretrained: str, pixels: str) -> None:
    """Load a checkpoint into a network. Label planes that the checkpoint does not read keep their random weights.

    Raises:
        UserError: the checkpoint is of another network, other classes or another pixel convention.
    """
    needs_planes = model.config["in_channels"] > 3
    loaded = from_checkpoint(pretrained, assisted=needs_planes, backbone=model.config["backbone"])
    _require_pixels(loaded.card, pretrained, pixels)
    _require_same_config(model.config, loaded.model.config, pretrained)
    weights = keep_label_planes(loaded.model.state_dict(), model.state_dict())
    checkpoint.load_weights(model, weights, f"--pretrained {pretrained}")


def _require_same_config(own: Mapping[str, Any], other: Mapping[str, Any], pretrained: str) -> None:
    """Check that two networks differ in nothing but their input channels.

    Raises:
        UserError: the networks have another architecture, backbone, width or number of classes.
    """
    # CIRKD's DeepLabV3 differs from LAD's in dropout alone, which has no weights
    own = {**own, "arch": own["arch"].removesuffix("_cirkd1")}
    other = {**other, "arch": other["arch"].removesuffix("_cirkd1")}
    differences = []
    for key in own | other:
        if key != "in_channels" and own.get(key) != other.get(key):
            differences.append(f"{key} {other.get(key)!r}, here {own.get(key)!r}")
    if differences:
        raise UserError(f"--pretrained {pretrained} is another network: {'; '.join(differences)}")


def _require_pixels(card: Card, pretrained: str, pixels: str) -> None:
    """Check that a checkpoint was trained on the pixel convention of this run.

    Raises:
        UserError: the checkpoint was trained on another pixel convention.
    """
    if card.pixels != pixels:
        raise UserError(f"--pretrained {pretrained} was trained on other pixels: use --pixels {card.pixels}")


def _initialise_user_network(model: UserNetwork, pretrained_base: str, pretrained: str, pixels: str) -> str:
    """Start a user's network from a checkpoint of the same function, or leave it as the function made it.

    Raises:
        UserError: backbone weights are asked for, or the checkpoint is of another network, other classes or another
            pixel convention.
    """
    arch = model.config["arch"]
    if pretrained_base:
        advice = f"the function of --model {arch} loads such weights itself: leave it out (--pretrained-base '')"
        raise UserError(f"--pretrained-base {pretrained_base}: {advice}")
    if not pretrained:
        return f"the weights that {arch} gave it"
    held = read_network_name(pretrained)
    if held != arch:
        raise UserError(f"--pretrained {pretrained} is another network: {held or 'of another project'}, here {arch}")
    loaded = from_checkpoint(pretrained, model=arch)
    _require_pixels(loaded.card, pretrained, pixels)
    weights = keep_label_planes(loaded.model.state_dict(), model.state_dict())
    checkpoint.load_weights(model, weights, f"--pretrained {pretrained}")
    return f"the weights of {pretrained}"
