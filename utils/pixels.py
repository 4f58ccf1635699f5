"""Pixel conventions: how a uint8 RGB image becomes a network input. A checkpoint names the one it was trained with."""

from typing import NamedTuple

import torch
from torch import Tensor

from utils.types import Rgb


class PixelConvention(NamedTuple):
    """Describe how a uint8 RGB image becomes the input of a network."""

    channels: tuple[int, int, int]  # order in which the network sees the RGB planes
    mean: tuple[float, float, float]  # RGB, 0..255
    std: tuple[float, float, float]  # RGB, 0..255
    label_scale: float  # factor on the label plane that keeps its strength relative to the image

    @property
    def pad_color(self) -> Rgb:
        """Return the RGB grey levels nearest to the mean; normalised padding of them is zero, to half a level."""
        return tuple(round(m) for m in self.mean)

    def normalize(self, image: Tensor) -> Tensor:
        """Turn uint8 RGB ``[B, 3, H, W]`` into float32 network input of the same shape, on the image's device."""
        # scalars, because tensors of constants and lists of indices would be copies to the device
        return torch.stack([(image[:, c] - self.mean[c]) / self.std[c] for c in self.channels], 1)

    def translate(self, x: Tensor, other: "PixelConvention") -> Tensor:
        """Turn network input of this convention ``[B, 3, H, W]`` into that of ``other``."""
        if other == self:
            return x
        planes = [x[:, self.channels.index(c)] * self.std[c] + self.mean[c] for c in other.channels]
        return torch.stack([(p - other.mean[c]) / other.std[c] for p, c in zip(planes, other.channels, strict=True)], 1)


CONVENTIONS = {
    # LAD and CIRKD (dataset/*.py): BGR minus the mean, no division; LAD's label plane is multiplied by 100.
    "bgr_mean": PixelConvention((2, 1, 0), (122.67891434, 116.66876762, 104.00698793), (1.0, 1.0, 1.0), 100.0),
    # torchvision, timm and MMSegmentation: RGB standardised; 100 / mean(std) keeps the plane's relative strength.
    "imagenet": PixelConvention((0, 1, 2), (123.675, 116.28, 103.53), (58.395, 57.12, 57.375), 1.74),
    # EfficientNet-Lite and what else timm calls Inception's: RGB from -1 to 1; the relative strength is imagenet's.
    "inception": PixelConvention((0, 1, 2), (127.5, 127.5, 127.5), (127.5, 127.5, 127.5), 0.78),
}
