"""Networks as they are used: from what people call an image to classes at its size."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from models.checkpoints.card import Card
from models.label_noise import CODES, LabelNoise
from models.segmentor import Segmentor
from utils.bilinear import resize, upsample_argmax
from utils.errors import UserError
from utils.pictures import read_image, rgb
from utils.pixels import CONVENTIONS, PixelConvention
from utils.types import Draw


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


class Predictor:
    """Predict the logits or classes of images, with one signature for teacher and student.

    Both methods take ``image``, uint8 RGB ``[B, 3, H, W]``, ``label [B, H, W]``, which only an assisted teacher looks
    at, and ``draws``: where the label noise comes from, one for each image.
    """

    def __init__(
        self,
        model: nn.Module,
        convention: PixelConvention,
        noise: nn.Module | None = None,
        scales: Sequence[float] = (1.0,),
        flip: bool = False,
        window: tuple[int, int] | None = None,
        stride: tuple[int, int] | None = None,
        precision: torch.dtype | None = None,
        resize: tuple[int, int] | None = None,
    ) -> None:
        """Set how images are seen.

        noise: turns labels into input planes of an assisted teacher. scales, flip: average the logits of resized and
        mirrored inputs (LAD: eval.py). window, stride: average the overlapping logits of a sliding window of this
        height and width; the default stride is two thirds of it. precision: what autocast computes in; None computes
        in the precision of the weights. resize: the long and short side that images are resized to fit first; their
        logits are resized to that size, then to the image's.

        Raises:
            UserError: the stride leaves pixels out.
        """
        if stride and not (window and all(step <= side for step, side in zip(stride, window, strict=True))):
            step = "{} {}".format(*stride)
            raise UserError(f"--stride {step} needs a --window of at least its size: no pixel may lie between two")
        if window and not stride:
            stride = tuple(max(1, side * 2 // 3) for side in window)
        self.model = model
        self.convention = convention
        self.noise = noise
        self.precision = precision
        self.resize = resize
        self.window = window
        self.stride = stride
        self.views = [(scale, False) for scale in scales]
        if flip:
            self.views += [(scale, True) for scale in scales]
        self.align_corners = model.supervision[0].align_corners

    @torch.inference_mode()
    def __call__(self, image: Tensor, label: Tensor, draws: Sequence[Draw]) -> Tensor:
        """Return the mean logits over the views, float32 ``[B, K, H, W]``."""
        x = self._make_input(image, label, draws)
        total = None
        for scale, is_mirrored in self.views:
            seen = x.flip(3) if is_mirrored else x
            logits = resize(self._view_logits(seen, scale), image.shape[-2:], self.align_corners)
            if is_mirrored:
                logits = logits.flip(3)
            total = logits if total is None else total.add_(logits)
        return total / len(self.views) if len(self.views) > 1 else total

    @torch.inference_mode()
    def classes(self, image: Tensor, label: Tensor, draws: Sequence[Draw]) -> Tensor:
        """Return the class of every pixel, int64 ``[B, H, W]``. A single view never holds full-size logits."""
        if len(self.views) > 1:
            return self(image, label, draws).argmax(1)
        logits = self._view_logits(self._make_input(image, label, draws), self.views[0][0])
        return upsample_argmax(logits, image.shape[-2:], self.align_corners)

    def _make_input(self, image: Tensor, label: Tensor, draws: Sequence[Draw]) -> Tensor:
        """Return what the network sees at scale 1: normalised images, and the label planes of an assisted teacher."""
        if self.resize:
            image, label = resize_to_fit(image, label, self.resize)
        x = self.convention.normalize(image)
        if self.noise is None:
            return x
        rows = zip(x.split(1), label.split(1), draws, strict=True)
        return torch.cat([self.noise.add_planes(*row) for row in rows])

    def _view_logits(self, x: Tensor, scale: float) -> Tensor:
        """Return the logits at a scale: at head resolution, or at the input's with windows or ``resize``."""
        if scale != 1:
            scaled = [max(1, int(side * scale)) for side in x.shape[-2:]]
            x = F.interpolate(x, scaled, mode="bilinear", align_corners=True)
        logits = self._window_logits(x) if self.window else self._head_logits(x)
        return resize(logits, x.shape[-2:], self.align_corners) if self.resize else logits

    def _head_logits(self, x: Tensor) -> Tensor:
        """Return the network's logits at head resolution, float32."""
        with torch.autocast(x.device.type, dtype=self.precision, enabled=self.precision is not None):
            return self.model(x, with_aux=False).logits.float()

    def _window_logits(self, x: Tensor) -> Tensor:
        """Return the mean logits of overlapping windows; the last row and column are moved inwards to fit."""
        height, width = x.shape[-2:]
        total = None
        count = x.new_zeros(height, width)
        for top in window_starts(height, self.window[0], self.stride[0]):
            for left in window_starts(width, self.window[1], self.stride[1]):
                box = (..., slice(top, top + self.window[0]), slice(left, left + self.window[1]))
                logits = resize(self._head_logits(x[box]), x[box].shape[-2:], self.align_corners)
                if total is None:
                    total = logits.new_zeros(*logits.shape[:2], height, width)
                total[box] += logits
                count[box] += 1
        return total / count


def window_starts(side: int, window: int, stride: int) -> list[int]:
    """Return where windows start along a side, so that they cover all of it."""
    last = max(side - window, 0)
    return sorted({*range(0, last, stride), last})


def resize_to_fit(image: Tensor, label: Tensor, sides: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Resize images as MMSegmentation's tests do (mmcv's ``imrescale``), and the label by nearest neighbour.

    image: uint8 ``[B, 3, H, W]``, resized by OpenCV, bilinear and rounded. The factor is the largest for which the
    longer side is at most ``sides[0]`` and the shorter at most ``sides[1]``, whichever way the image lies.
    """
    height, width = image.shape[-2:]
    factor = min(max(sides) / max(height, width), min(sides) / min(height, width))
    size = (max(1, int(height * factor + 0.5)), max(1, int(width * factor + 0.5)))
    pictures = []
    for picture in image.permute(0, 2, 3, 1).cpu().numpy():
        resized = cv2.resize(picture, size[::-1], interpolation=cv2.INTER_LINEAR)
        pictures.append(torch.from_numpy(resized).permute(2, 0, 1))
    label = F.interpolate(label[:, None].float(), size).squeeze(1).to(label.dtype)
    return torch.stack(pictures).to(image.device), label
