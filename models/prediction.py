"""Networks as they are used: from what people call an image to logits and classes at its size."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor, nn

from utils.errors import UserError
from utils.pictures import read_image, rgb
from utils.pixels import PixelConvention
from utils.training.evaluation import Predictor


def rgb_pixels(image: str | Path | Image.Image | np.ndarray) -> np.ndarray:
    """RGB uint8 ``[H, W, 3]`` of a file, a PIL image, or an array uint8 ``[H, W]`` (grey), ``[H, W, 3]`` (RGB) or
    ``[H, W, 4]`` (RGBA). EXIF's orientation is applied; transparent pixels are white.

    Raises:
        UserError: a file that cannot be read, an array of another type or shape, something else.
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
    return rgb("the image", ImageOps.exif_transpose(image), "white")


class PixelsToLogits(nn.Module):
    """uint8 RGB ``[B, 3, H, W]`` (and an assisted teacher's label planes) -> logits float32 ``[B, K, H, W]``.

    The pixel convention and the upsampling are those of validation, so that nobody has to know them.
    """

    def __init__(self, model: nn.Module, convention: PixelConvention) -> None:
        super().__init__()
        self.model, self.convention = model, convention
        self.align_corners = model.supervision[0].align_corners

    def forward(self, image: Tensor, *planes: Tensor) -> Tensor:
        x = self.convention.normalize(image)
        if planes:
            x = torch.cat([x, *planes], 1)
        logits = self.model(x, with_aux=False).logits
        return F.interpolate(logits, image.shape[-2:], mode="bilinear", align_corners=self.align_corners)


def segment(
    model: nn.Module,
    convention: PixelConvention,
    pixels: np.ndarray,
    probabilities: bool,
    resize: tuple[int, int] | None = None,
) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
    """See ``models.checkpoints.loading.Loaded.predict``; ``pixels`` as of ``rgb_pixels``."""
    image = torch.from_numpy(pixels.transpose(2, 0, 1).copy())[None].to(next(model.parameters()).device)
    unseen = image[:, 0]  # in place of the label, which is not looked at
    predict = Predictor(model, convention, resize=resize)
    if not probabilities:
        return predict.classes(image, unseen, ())[0].to(torch.uint8).cpu().numpy()
    shares = predict(image, unseen, ())[0].softmax(0)
    return shares.argmax(0).to(torch.uint8).cpu().numpy(), shares.cpu().numpy()
