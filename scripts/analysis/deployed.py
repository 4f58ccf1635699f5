"""A network as it is used: uint8 pixels in, logits at image size out."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from utils.pixels import PixelConvention


class Deployed(nn.Module):
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
