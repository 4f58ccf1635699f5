"""Networks from files: this project's checkpoints, and those of LAD, CIRKD, MMSegmentation and torchvision."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.architectures import build_model
from models.backbones import narrow_stem, stem_convs, widen_stem
from models.checkpoints import reading
from models.checkpoints.card import Card, read_card
from models.checkpoints.formats import FORMATS, MMSEG, unwrap
from models.checkpoints.imagenet import load_base
from models.checkpoints.recognition import OPTIONAL, has_single_logit, infer, mmseg_record
from models.checkpoints.smp_files import CONFIG, is_smp, recognise_smp
from models.checkpoints.smp_files import SOURCE as SMP_SOURCE
from models.prediction import Loaded
from models.segmentor import Segmentor
from models.user_networks import UserNetwork, build_user_network, is_user_network
from utils import checkpoint
from utils.errors import UserError
from utils.pixels import CONVENTIONS
from utils.user_code import is_user_name

# how LAD trained its assisted teachers (train_baseline.py:387-417); its files do not say so
RELEASE_NOISE = {"codes": "random", "pixel_std": 0.03, "scale": CONVENTIONS["bgr_mean"].label_scale}


def from_checkpoint(
    path: str | Path, assisted: bool = False, backbone: str = "", model: str = "", model_flag: str = "--model"
) -> Loaded:
    """Rebuild the network of a checkpoint, on the CPU, in eval mode.

    assisted: what to take a foreign file with a label plane (four input channels) for. The LAD release gives its
    students one too and shows them zeros, so by default it is a student and the plane is folded away: the same output
    from three channels. True keeps it, as a teacher. This project's own files say which they are.
    backbone: of a file of segmentation_models_pytorch whose keys do not tell its encoder.
    model: the user's function ``package.module:function`` that builds the network, for a file that names one. It is
    imported because the caller names it: what a file names is never imported.
    model_flag: the flag that ``model`` comes from, for messages.

    Raises UserError: no such file, damaged, of unknown content, weights that do not fit what the file says, or
    ``model`` is not the function that the file names.
    """
    content = reading.read(path)
    _require_same_network(_network_of(content), path, model, model_flag)
    if _is_own(content):
        return _own(content, path, model_flag)
    return _foreign(content, str(path), assisted, backbone)


def network_name(path: str | Path) -> str:
    """Return the architecture that a checkpoint of this project names, and "" for another's file.

    Raises UserError: no such file, or a damaged one.
    """
    return _network_of(reading.read(path))


def _is_own(content: Mapping[str, Any]) -> bool:
    """Say whether a file is this project's. Training files of others may name their architecture, too."""
    return "arch" in content and ("format" in content or isinstance(content["arch"], Mapping))


def _network_of(content: Mapping[str, Any]) -> str:
    """Return the architecture that the content of a file names, or ""."""
    arch = content.get("arch")
    name = arch.get("arch") if _is_own(content) and isinstance(arch, Mapping) else ""
    return name if isinstance(name, str) else ""


def _require_same_network(held: str, path: str | Path, model: str, flag: str) -> None:
    """Check that a user's network is built by a function that the caller names, and by the one the file was made with.

    held: the architecture that the file names.

    Raises UserError: the caller names no function or another, or the file needs none.
    """
    if held == model or not (model or is_user_network(held)):
        return
    if not is_user_network(held):
        kind = held or "another project's network"
        raise UserError(f"{flag} {model}: {path} holds {kind}, which this project builds itself: leave {flag} out")
    if not is_user_name(held):
        raise UserError(f"{path} is damaged: its network is {held[:60]!r}")
    if not model:
        reason = "code that a file names is imported only when you name it, too"
        raise UserError(f"{path} holds a network from outside this project: give {flag} {held} ({reason})")
    advice = f"give {flag} {held}; a function that has moved must stay importable under this name"
    raise UserError(f"{flag} {model}: {path} holds another network: {advice}")


def _own(content: dict[str, Any], path: str | Path, model_flag: str) -> Loaded:
    card = read_card(content, path)
    try:
        if is_user_network(card.arch.get("arch")):
            model = build_user_network(**card.arch, flag=model_flag)
        else:
            model = build_model(**card.arch)
    except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:  # of other kinds or ranges
        raise UserError(f"{path} does not say which network it holds: {error}") from error
    checkpoint.load_weights(model, content["model"], path)
    return Loaded(model.eval(), card)


def _foreign(content: Mapping[str, Any], source: str, assisted: bool, backbone: str) -> Loaded:
    weights = unwrap(content, source)
    if is_smp(weights):
        return _load_smp(weights, content.get(CONFIG), source, backbone)
    if "main.classifier.weight" in weights:
        raise UserError(f"{source} holds bare weights of this project; use the whole checkpoint (last.pth, best.pth)")
    form, config, weights = infer(weights, source)
    family = FORMATS[form].family
    record = mmseg_record(content, config, source) if family is MMSEG else {"class_names": [], "palette": []}
    if record.pop("align_corners", False):
        config["align_corners"] = True
    if config["in_channels"] not in (3, 4):
        raise UserError(f"{source} sees {config['in_channels']} channels; an image has 3, and a label plane makes 4")
    model = build_model(**config)
    own = model.state_dict()
    weights |= {key: value for key, value in own.items() if key.endswith(OPTIONAL) and key not in weights}
    checkpoint.load_weights(model, weights, f"{source}, as {config['arch']} on {config['backbone']},")
    if config["in_channels"] == 4 and not assisted:
        narrow_stem(model.backbone)
        model.config["in_channels"] = 3
    noise = RELEASE_NOISE if model.config["in_channels"] == 4 else None
    training = {"single_logit": True} if has_single_logit(weights) else {}
    card = Card(dict(model.config), **record, pixels=family.pixels, label_noise=noise, source=form, training=training)
    return Loaded(model.eval(), card)


def _load_smp(weights: Mapping[str, Tensor], saved: Mapping[str, Any] | None, source: str, backbone: str) -> Loaded:
    """Rebuild a network of segmentation_models_pytorch, and say which pixels it is taken to have been trained on."""
    network = recognise_smp(weights, saved, source, backbone)
    model = build_model(**network.config)
    checkpoint.load_weights(
        model, network.weights, f"{source}, as {model.config['arch']} on {model.config['backbone']},"
    )
    print(f"{source}: {SMP_SOURCE}; its images are taken to be normalised as {network.pixels!r}", file=sys.stderr)
    return Loaded(model.eval(), Card(dict(model.config), pixels=network.pixels, source=SMP_SOURCE))


def initialise(model: Segmentor, pretrained_base: str, pretrained: str, pixels: str) -> str:
    """Start a network from a whole checkpoint, from backbone weights, or leave it as it is; say which in words.

    A three-channel checkpoint starts a network with label planes: RGB weights are kept, the planes' stay as drawn.

    Raises UserError: the file is of another network, other classes or another pixel convention.
    """
    if is_user_network(model.config["arch"]):
        return _initialise_user_network(model, pretrained_base, pretrained, pixels)
    if pretrained:
        assisted = model.config["in_channels"] > 3
        loaded, card = from_checkpoint(pretrained, assisted, model.config["backbone"])
        _require_pixels(card, pretrained, pixels)
        # CIRKD's DeepLabV3 differs from LAD's in dropout alone
        own, other = ({**c, "arch": c["arch"].removesuffix("_cirkd1")} for c in (model.config, loaded.config))
        keys = [key for key in own | other if key != "in_channels" and own.get(key) != other.get(key)]
        if keys:
            different = "; ".join(f"{key} {other.get(key)!r}, here {own.get(key)!r}" for key in keys)
            raise UserError(f"--pretrained {pretrained} is another network: {different}")
        if other["in_channels"] == 3 < own["in_channels"]:
            widen_stem(loaded.backbone, own["in_channels"])
            for wide, own_conv in zip(stem_convs(loaded.backbone), stem_convs(model.backbone), strict=True):
                wide.weight.data[:, 3:] = own_conv.weight.data[:, 3:]
        checkpoint.load_weights(model, loaded.state_dict(), f"--pretrained {pretrained}")
        return f"the weights of {pretrained}"
    if pretrained_base:
        load_base(model, pretrained_base, pixels)
        return f"the backbone weights of {pretrained_base}"
    return "random weights (published results start from ImageNet's: --pretrained-base)"


def _require_pixels(card: Card, pretrained: str, pixels: str) -> None:
    """Raise a UserError if a checkpoint was trained on another pixel convention than this run's."""
    if card.pixels != pixels:
        raise UserError(f"--pretrained {pretrained} was trained on other pixels: use --pixels {card.pixels}")


def _initialise_user_network(model: UserNetwork, pretrained_base: str, pretrained: str, pixels: str) -> str:
    """Start a user's network from a checkpoint of the same function, or leave it as the function made it.

    Raises UserError: backbone weights are asked for, or the checkpoint is of another network, other classes or another
    pixel convention.
    """
    arch = model.config["arch"]
    if pretrained_base:
        advice = f"the function of --model {arch} loads such weights itself: leave it out (--pretrained-base '')"
        raise UserError(f"--pretrained-base {pretrained_base}: {advice}")
    if not pretrained:
        return f"the weights that {arch} gave it"
    held = network_name(pretrained)
    if held != arch:
        raise UserError(f"--pretrained {pretrained} is another network: {held or 'of another project'}, here {arch}")
    loaded, card = from_checkpoint(pretrained, model=arch)
    _require_pixels(card, pretrained, pixels)
    own = model.state_dict()
    weights = loaded.state_dict()
    for key, value in weights.items():
        is_narrow = key in own and value.ndim == 4 and value.shape[1] == 3 < own[key].shape[1]
        if is_narrow:  # the convolution that sees the image: label planes keep their own weights
            weights[key] = torch.cat([value, own[key][:, 3:]], 1)
    checkpoint.load_weights(model, weights, f"--pretrained {pretrained}")
    return f"the weights of {pretrained}"
