"""Predict the classes of images: from a file, picture or array to a class for each of its pixels."""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from utils.bilinear import resize, upsample_argmax
from utils.errors import UserError
from utils.memory import GIB, require_memory
from utils.pictures import convert_to_rgb, read_image
from utils.pixels import PixelConvention
from utils.seeding import RowGenerator

ImageLike = str | Path | Image.Image | np.ndarray


def read_rgb(image: ImageLike) -> np.ndarray:
    """Read an image as RGB uint8 ``[H, W, 3]``. Its EXIF orientation is applied, and transparent pixels become white.

    image: a file, a PIL image, or an array uint8 ``[H, W]`` (grey), ``[H, W, 3]`` (RGB) or ``[H, W, 4]`` (RGBA).

    Raises:
        UserError: the file cannot be read, the array has another type or shape, or the argument is something else.
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
    return convert_to_rgb("the image", image, "white")


class Predictor:
    """Predict the logits or classes of images. Teacher and student may be called with the same arguments.

    image: uint8 RGB ``[B, 3, H, W]``. label: ``[B, H, W]``, for an assisted teacher. generators: one for each image,
    which draws the label noise of an assisted teacher. A student looks at neither and may be given the image only. The
    caller puts the model into evaluation mode.
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
        """Set how images are shown to the network.

        noise: makes the label planes of an assisted teacher.
        scales, flip: average the logits of images resized by each scale, and of their mirror images (LAD, eval.py).
        window, stride: height and width of a sliding window and of its steps. The logits of overlapping windows are
            averaged. The default stride is two thirds of the window.
        precision: type in which autocast computes; without autocast None.
        resize: long and short side that images are resized to fit first. Logits are resized to the size of the
            network's input first, then to the image's size.

        Raises:
            UserError: a stride is given without a window or is larger than it, so that some pixels would be in none.
        """
        if stride and (not window or stride[0] > window[0] or stride[1] > window[1]):
            raise UserError(
                f"--stride {stride[0]} {stride[1]} needs a --window of at least its size: no pixel may lie between two"
            )
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
    def __call__(self, image: Tensor, label: Tensor | None = None, generators: Sequence[RowGenerator] = ()) -> Tensor:
        """Predict the logits, averaged over scales and mirror images: float32 ``[B, K, H, W]``."""
        x = self._make_input(image, label, generators)
        total = None
        for scale, is_mirrored in self.views:
            view = x.flip(3) if is_mirrored else x
            logits = resize(self._compute_view_logits(view, scale), image.shape[-2:], self.align_corners)
            if is_mirrored:
                logits = logits.flip(3)
            total = logits if total is None else total.add_(logits)
        return total / len(self.views) if len(self.views) > 1 else total

    @torch.inference_mode()
    def predict_classes(
        self, image: Tensor, label: Tensor | None = None, generators: Sequence[RowGenerator] = ()
    ) -> Tensor:
        """Predict the class of each pixel: int64 ``[B, H, W]``.

        With one view, and neither windows nor ``resize``, full-size logits are never stored.
        """
        if len(self.views) > 1:
            return self(image, label, generators).argmax(1)
        scale, _ = self.views[0]
        logits = self._compute_view_logits(self._make_input(image, label, generators), scale)
        return upsample_argmax(logits, image.shape[-2:], self.align_corners)

    def _make_input(self, image: Tensor, label: Tensor | None, generators: Sequence[RowGenerator]) -> Tensor:
        """Make the network's input at scale 1: normalised images, and the label planes of an assisted teacher.

        Raises:
            UserError: the images do not fit in memory at their largest scale.
        """
        self._require_memory(image)
        if self.resize:
            image = resize_images_to_fit(image, self.resize)
        x = self.convention.normalize(image)
        if self.noise is None:
            return x
        if self.resize:
            label = resize_labels_to_fit(label, self.resize)
        inputs = []
        for one_x, one_label, generator in zip(x.split(1), label.split(1), generators, strict=True):
            inputs.append(self.noise.add_planes(one_x, one_label, generator))
        return torch.cat(inputs)

    def _require_memory(self, image: Tensor) -> None:
        """Check that images fit in memory at their largest scale, as float32.

        Raises:
            UserError: the images do not fit.
        """
        height, width = image.shape[-2:]
        if self.resize:
            height, width = compute_fitting_size(height, width, self.resize)
        scale = max(scale for scale, _ in self.views)
        height, width = int(height * scale), int(width * scale)
        size = len(image) * 3 * 4 * height * width
        if size > GIB:  # less is not worth a look at the free memory
            require_memory(size, f"an image of {width}x{height} pixels", "a smaller --resize or --scales", image.device)

    def _compute_view_logits(self, x: Tensor, scale: float) -> Tensor:
        """Compute the logits at a scale. They have the head's resolution; with windows or ``resize`` the input's."""
        if scale != 1:
            scaled = [max(1, int(side * scale)) for side in x.shape[-2:]]
            x = F.interpolate(x, scaled, mode="bilinear", align_corners=True)
        logits = self._compute_window_logits(x) if self.window else self._compute_head_logits(x)
        if self.resize:
            logits = resize(logits, x.shape[-2:], self.align_corners)
        return logits

    def _compute_head_logits(self, x: Tensor) -> Tensor:
        """Compute the network's logits in the head's resolution, float32."""
        with torch.autocast(x.device.type, dtype=self.precision, enabled=self.precision is not None):
            return self.model(x, with_aux=False).logits.float()

    def _compute_window_logits(self, x: Tensor) -> Tensor:
        """Compute the mean logits of overlapping windows. The last windows along a side are moved inwards to fit."""
        height, width = x.shape[-2:]
        total = None
        count = x.new_zeros(height, width)
        for top in list_window_starts(height, self.window[0], self.stride[0]):
            for left in list_window_starts(width, self.window[1], self.stride[1]):
                box = (..., slice(top, top + self.window[0]), slice(left, left + self.window[1]))
                logits = resize(self._compute_head_logits(x[box]), x[box].shape[-2:], self.align_corners)
                if total is None:
                    total = logits.new_zeros(*logits.shape[:2], height, width)
                total[box] += logits
                count[box] += 1
        return total / count


def list_window_starts(side: int, window: int, stride: int) -> list[int]:
    """List the positions at which windows start along a side, so that they cover all of it."""
    last = max(side - window, 0)
    return sorted({*range(0, last, stride), last})


def compute_fitting_size(height: int, width: int, sides: tuple[int, int]) -> tuple[int, int]:
    """Compute the height and width of an image that is resized to fit two sides, as mmcv's ``imrescale`` does.

    sides: bounds of the longer and of the shorter side, in either order. The image becomes as large as they allow,
    upright or lying.
    """
    factor = min(max(sides) / max(height, width), min(sides) / min(height, width))
    return max(1, int(height * factor + 0.5)), max(1, int(width * factor + 0.5))


def resize_images_to_fit(image: Tensor, sides: tuple[int, int]) -> Tensor:
    """Resize images uint8 ``[B, 3, H, W]`` to fit two sides, as MMSegmentation does in testing.

    They are resized bilinearly and rounded, by OpenCV.
    """
    height, width = compute_fitting_size(*image.shape[-2:], sides)
    pictures = []
    for picture in image.permute(0, 2, 3, 1).cpu().numpy():
        resized = cv2.resize(picture, (width, height), interpolation=cv2.INTER_LINEAR)
        pictures.append(torch.from_numpy(resized).permute(2, 0, 1))
    return torch.stack(pictures).to(image.device)


def resize_labels_to_fit(label: Tensor, sides: tuple[int, int]) -> Tensor:
    """Resize labels ``[B, H, W]`` to the size of their images after ``resize_images_to_fit``, by nearest neighbour."""
    size = compute_fitting_size(*label.shape[-2:], sides)
    return F.interpolate(label[:, None].float(), size).squeeze(1).to(label.dtype)
