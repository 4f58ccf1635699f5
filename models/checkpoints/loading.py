"""Networks from files: this project's checkpoints, and those of LAD, CIRKD, MMSegmentation and torchvision."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from models.architectures import build_model
from models.backbones import narrow_stem, stem_convs, widen_stem
from models.checkpoints import reading
from models.checkpoints.card import Card, read_card
from models.checkpoints.formats import FORMATS, MMSEG, unwrap
from models.checkpoints.imagenet import load_base
from models.checkpoints.recognition import OPTIONAL, infer, mmseg_record
from models.label_noise import CODES, LabelNoise
from models.prediction import rgb_pixels, segment
from models.segmentor import Segmentor
from utils import checkpoint
from utils.errors import UserError
from utils.pixels import CONVENTIONS, PixelConvention
from utils.types import Rgb

# how LAD trained its assisted teachers (train_baseline.py:387-417); its files do not say so
RELEASE_NOISE = {"codes": "random", "pixel_std": 0.03, "scale": CONVENTIONS["bgr_mean"].label_scale}


class Loaded(NamedTuple):
    """A network from a file. ``model(x)`` takes normalised input and gives ``Output`` at its head's resolution;
    ``predict`` takes an image and gives its classes."""

    model: Segmentor
    card: Card

    @property
    def convention(self) -> PixelConvention:
        return CONVENTIONS[self.card.pixels]

    @property
    def noise(self) -> LabelNoise | None:
        """The label noise an assisted teacher is shown; None for a network that sees the image only.

        Raises:
            UserError: the card's codes make more or fewer planes than the network reads.
        """
        config, classes = self.card.label_noise, self.card.num_classes
        if not config:
            return None
        noise, wanted = LabelNoise(classes, **config), self.model.config["in_channels"] - 3
        if noise.planes != wanted:
            fitting = [kind for kind in CODES if LabelNoise(classes, kind, 0.0, 1.0, 0.0).planes == wanted]
            codes = f"label codes {config['codes']!r} make {noise.planes} planes, this teacher reads {wanted}"
            raise UserError(f"{codes}: --label-codes {' or '.join(fitting) or '(none fits)'}")
        return noise

    def shown(self, **changes: Any) -> "Loaded":
        """The same teacher with another label noise: arguments of ``LabelNoise``, None for what stays."""
        given = {key: value for key, value in changes.items() if value is not None}
        return self._replace(card=replace(self.card, label_noise={**self.card.label_noise, **given}))

    def predict(
        self,
        image: str | Path | Image.Image | np.ndarray,
        probabilities: bool = False,
        resize: tuple[int, int] | None = None,
    ) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
        """The class of every pixel, uint8 ``[H, W]`` at the image's size; with ``probabilities`` also those of all
        classes, float32 ``[K, H, W]``. ``image``: what ``models.prediction.rgb_pixels`` takes. ``resize``: long and
        short side it is resized to fit before it is looked at, as by ``eval.py --resize``. On the model's device.

        Raises UserError: no such image, or a network that reads the label.
        """
        if self.card.label_noise:
            raise UserError("a label-assisted teacher cannot predict from an image alone: use a student")
        return segment(self.model, self.convention, rgb_pixels(image), probabilities, resize)


def begin(
    model: Segmentor,
    names: Sequence[str],
    palette: Sequence[Rgb],
    dataset: str,
    data: str,
    pixels: str,
    noise: LabelNoise | None = None,
    pretrained_base: str = "",
    pretrained: str = "",
    start: str = "",
) -> Card:
    """Initialise the network of a new run, and the card of its checkpoints.

    noise: what the network is shown besides the image. start: the card's, of a run that is continued; its network is
    left as it is.
    """
    start = start or initialise(model, pretrained_base, pretrained, pixels)
    shown = dict(noise.config) if noise else None
    return Card(dict(model.config), names, palette, dataset, data, pixels, shown, start)


def from_checkpoint(path: str | Path, assisted: bool = False) -> Loaded:
    """Rebuild the network of a checkpoint, on the CPU, in eval mode.

    assisted: what to take a foreign file with a label plane (four input channels) for. The LAD release gives its
    students one too and shows them zeros, so by default it is a student and the plane is folded away: the same output
    from three channels. True keeps it, as a teacher. This project's own files say which they are.

    Raises:
        UserError: no such file, damaged, of unknown content, or weights that do not fit what the file says.
    """
    content = reading.read(path)
    return _own(content, path) if "arch" in content else _foreign(content, str(path), assisted)


def _own(content: dict[str, Any], path: str | Path) -> Loaded:
    card = read_card(content, path)
    try:
        model = build_model(**card.arch)
    except (AttributeError, TypeError) as error:  # of values of other kinds
        raise UserError(f"{path} does not say which network it holds: {error}") from error
    checkpoint.load_weights(model, content["model"], path)
    return Loaded(model.eval(), card)


def _foreign(content: Mapping[str, Any], source: str, assisted: bool) -> Loaded:
    weights = unwrap(content, source)
    if "main.classifier.weight" in weights:
        raise UserError(f"{source} holds bare weights of this project; use the whole checkpoint (last.pth, best.pth)")
    form, config, weights, origin = infer(weights, source)
    family = FORMATS[form].family
    record = mmseg_record(content, config, source) if family is MMSEG else {"class_names": [], "palette": []}
    if record.pop("align_corners", False):
        config["align_corners"] = True
    if config["in_channels"] not in (3, 4):
        raise UserError(f"{source} sees {config['in_channels']} channels; an image has 3, and a label plane makes 4")
    model = build_model(**config)
    own = model.state_dict()
    left = [origin[key] for key in weights if key not in own]
    if left:
        listed = ", ".join(left[:5]) + (", ..." if len(left) > 5 else "")
        network = f"{config['arch']} on {config['backbone']}"
        raise UserError(f"{source}: {len(left)} keys of this {form} file have no place in {network}: {listed}")
    weights |= {key: value for key, value in own.items() if key.endswith(OPTIONAL) and key not in weights}
    checkpoint.load_weights(model, weights, source)
    if config["in_channels"] == 4 and not assisted:
        narrow_stem(model.backbone)
        model.config["in_channels"] = 3
    noise = RELEASE_NOISE if model.config["in_channels"] == 4 else None
    card = Card(dict(model.config), **record, pixels=family.pixels, label_noise=noise, source=form)
    return Loaded(model.eval(), card)


def initialise(model: Segmentor, pretrained_base: str, pretrained: str, pixels: str) -> str:
    """Start a network from a whole checkpoint, from backbone weights, or leave it as it is; say which in words.

    A three-channel checkpoint starts a network with label planes: RGB weights are kept, the planes' stay as drawn.

    Raises:
        UserError: the file is of another network, other classes or another pixel convention.
    """
    if pretrained:
        loaded, card = from_checkpoint(pretrained, assisted=model.config["in_channels"] > 3)
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
            for wide, own_conv in zip(stem_convs(loaded.backbone), stem_convs(model.backbone), strict=True):
                wide.weight.data[:, 3:] = own_conv.weight.data[:, 3:]
        checkpoint.load_weights(model, loaded.state_dict(), f"--pretrained {pretrained}")
        return f"the weights of {pretrained}"
    if pretrained_base:
        load_base(model, pretrained_base, pixels)
        return f"the backbone weights of {pretrained_base}"
    return "random weights (published results start from ImageNet's: --pretrained-base)"
