"""Networks as they are used: from what people call an image to classes at its size."""

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from models.checkpoints.card import Card
from models.label_noise import CODES, LabelNoise
from models.segmentor import Segmentor
from utils.errors import UserError
from utils.pictures import read_image, rgb
from utils.pixels import CONVENTIONS, PixelConvention
from utils.training.evaluation import Predictor


def rgb_pixels(image: str | Path | Image.Image | np.ndarray) -> np.ndarray:
    """RGB uint8 ``[H, W, 3]`` of a file, a PIL image, or an array uint8 ``[H, W]`` (grey), ``[H, W, 3]`` (RGB) or
    ``[H, W, 4]`` (RGBA). EXIF's orientation is applied; transparent pixels are white.

    Raises UserError: a file that cannot be read, an array of another type or shape, something else.
    """
    if isinstance(image, (str, Path)):
        return read_image(Path(image).expanduser(), behind="white")
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim not in (2, 3) or image.shape[2:] not in ((), (3,), (4,)):
            wanted = "uint8 [H, W, 3] RGB of 0..255 (or [H, W], [H, W, 4])"
            raise UserError(f"an image array must be {wanted}, this is {image.dtype} {list(image.shape)}")
        image = Image.fromarray(image)
    if not isinstance(image, Image.Image):
        raise UserError(f"an image is a path, a PIL image or an array, not {type(image).__name__}")
    return rgb("the image", image, "white")


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

        Raises UserError: the card's codes make more or fewer planes than the network reads.
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
        classes, float32 ``[K, H, W]``. On the model's device.

        image: what ``rgb_pixels`` takes. resize: long and short side it is resized to fit before it is looked at, as by
        ``eval.py --resize``.

        Raises UserError: no such image, or a network that reads the label.
        """
        if self.card.label_noise:
            raise UserError("a label-assisted teacher cannot predict from an image alone: use a student")
        pixels = torch.from_numpy(rgb_pixels(image).transpose(2, 0, 1).copy())[None]
        pixels = pixels.to(next(self.model.parameters()).device)
        unseen = pixels[:, 0]  # in place of the label, which is not looked at
        predict = Predictor(self.model, self.convention, resize=resize)
        if not probabilities:
            return predict.classes(pixels, unseen, ())[0].to(torch.uint8).cpu().numpy()
        shares = predict(pixels, unseen, ())[0].softmax(0)
        return shares.argmax(0).to(torch.uint8).cpu().numpy(), shares.cpu().numpy()
