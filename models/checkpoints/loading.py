"""Networks from files: this project's checkpoints, and those of LAD, CIRKD, MMSegmentation and torchvision."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from models.architectures import build_model
from models.backbones import find_stem_convs, narrow_stem, widen_stem
from models.checkpoints import reading
from models.checkpoints.card import Card, read_card
from models.checkpoints.formats import FORMATS, MMSEG, unwrap
from models.checkpoints.imagenet import load_base
from models.checkpoints.recognition import (
    OPTIONAL,
    MmsegRecord,
    has_single_logit,
    read_mmseg_record,
    recognise_network,
)
from models.checkpoints.smp_files import CONFIG, is_smp, recognise_smp
from models.checkpoints.smp_files import SOURCE as SMP_SOURCE
from models.prediction import Loaded
from models.segmentor import Segmentor
from utils import checkpoint
from utils.errors import UserError
from utils.pixels import CONVENTIONS

# how LAD trained its assisted teachers (train_baseline.py:387-417); its files do not say so
RELEASE_NOISE = {"codes": "random", "pixel_std": 0.03, "scale": CONVENTIONS["bgr_mean"].label_scale}


def from_checkpoint(path: str | Path, assisted: bool = False, backbone: str = "") -> Loaded:
    """Rebuild the network of a checkpoint, on the CPU, in eval mode.

    assisted: what to take a foreign file with a label plane (four input channels) for. The LAD release gives its
    students one too and shows them zeros, so by default it is a student and the plane is folded away: the same output
    from three channels. True keeps it, as a teacher. This project's own files say which they are.
    backbone: of a file of segmentation_models_pytorch whose keys do not tell its encoder.

    Raises UserError: no such file, damaged, of unknown content, or weights that do not fit what the file says.
    """
    content = reading.read_weight_file(path)
    # training files of others may name their architecture, too
    is_own = "arch" in content and ("format" in content or isinstance(content["arch"], Mapping))
    if is_own:
        return _own(content, path)
    return _foreign(content, str(path), assisted, backbone)


def _own(content: dict[str, Any], path: str | Path) -> Loaded:
    card = read_card(content, path)
    try:
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
    form, config, weights = recognise_network(weights, source)
    family = FORMATS[form].family
    record = MmsegRecord(align_corners=False, class_names=[], palette=[])
    if family is MMSEG:
        record = read_mmseg_record(content, config, source)
    if record.align_corners:
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
    card = Card(
        dict(model.config),
        record.class_names,
        record.palette,
        pixels=family.pixels,
        label_noise=noise,
        source=form,
        training=training,
    )
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
    if pretrained:
        assisted = model.config["in_channels"] > 3
        loaded, card = from_checkpoint(pretrained, assisted, model.config["backbone"])
        if card.pixels != pixels:
            raise UserError(f"--pretrained {pretrained} was trained on other pixels: use --pixels {card.pixels}")
        # CIRKD's DeepLabV3 differs from LAD's in dropout alone
        own, other = ({**c, "arch": c["arch"].removesuffix("_cirkd1")} for c in (model.config, loaded.config))
        keys = [key for key in own | other if key != "in_channels" and own.get(key) != other.get(key)]
        if keys:
            different = "; ".join(f"{key} {other.get(key)!r}, here {own.get(key)!r}" for key in keys)
            raise UserError(f"--pretrained {pretrained} is another network: {different}")
        if other["in_channels"] == 3 < own["in_channels"]:
            widen_stem(loaded.backbone, own["in_channels"])
            for wide, own_conv in zip(find_stem_convs(loaded.backbone), find_stem_convs(model.backbone), strict=True):
                wide.weight.data[:, 3:] = own_conv.weight.data[:, 3:]
        checkpoint.load_weights(model, loaded.state_dict(), f"--pretrained {pretrained}")
        return f"the weights of {pretrained}"
    if pretrained_base:
        load_base(model, pretrained_base, pixels)
        return f"the backbone weights of {pretrained_base}"
    return "random weights (published results start from ImageNet's: --pretrained-base)"
