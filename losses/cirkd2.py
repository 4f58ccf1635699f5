"""CIRKDV2 (winycg/CIRKD, train_cirkdv2.py): CIRKD's relations, relations between channels, and a context module.

The release runs ``kd=1,cirkd2=1``. All terms see the student's features after the context module. Three things differ
from the release:

- It trains its context module and its FitNet convolution outside of DistributedDataParallel, so that their copies drift
  apart. Here they are part of the training step.
- It leaves the context module out where the FitNet weight is 0. Here the module is always there.
- It pools maps by 4x4 before the pixel term where both sides are 256 or more. This is left out here.
"""

import torch
from torch import Tensor, nn

from losses.cirkd import CIRKD
from losses.cirkd_channel import ChannelTerms
from losses.cirkd_memory import CIRKDPixel, CIRKDRegion, share_projector
from losses.fitnet import FitNet
from losses.projector import build_conv_bn_relu
from utils.errors import UserError
from utils.types import Output


class Context(nn.Module):
    """Fuse features with their self-attention over the positions, ``[B, C, h, w] -> [B, C, h, w]``.

    The release calls it GCN. The peak memory is about three matrices of B (h w)^2.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.query = nn.Conv2d(channels, half, 1, bias=False)
        self.key = nn.Conv2d(channels, half, 1, bias=False)
        self.value = nn.Conv2d(channels, half, 1, bias=False)
        self.expand = build_conv_bn_relu(half, channels)
        self.fuse = build_conv_bn_relu(2 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (conv(x).flatten(2) for conv in (self.query, self.key, self.value))
        attention = (query.transpose(1, 2) @ key * query.shape[1] ** -0.5).softmax(2)  # [B, h w, h w], rows sum to 1
        attended = (value @ attention.transpose(1, 2)).unflatten(2, x.shape[-2:])
        return self.fuse(torch.cat([x, self.expand(attended)], 1))


class CIRKD2(nn.Module):
    """Compute all terms of CIRKDV2, each with an inner weight. A term of weight 0 is left out.

    Options that are weights: fitnet (1 or 10 in the release's scripts), pixel (``cirkd``), memory_pixel
    (``cirkd_pixel``), memory_region (``cirkd_region``), and channel, memory_channel and channel_mse
    (``losses.cirkd_channel``). Other options: tau; pixel_size, region_size and channel_size, the slots of the queues;
    as_released of ``cirkd_pixel``.

    Raises:
        UserError: every weight is 0, a size is not a positive whole number, or a queue is too large.
    """

    def __init__(
        self,
        student_channels: int,
        teacher_channels: int,
        num_classes: int,
        fitnet: float = 1.0,
        pixel: float = 1.0,
        memory_pixel: float = 0.1,
        memory_region: float = 0.1,
        channel: float = 1.0,
        memory_channel: float = 0.1,
        channel_mse: float = 100.0,
        tau: float = 0.1,
        pixel_size: float = 20_000,
        region_size: float = 2000,
        channel_size: float = 10_000,
        as_released: float = 0,
    ) -> None:
        super().__init__()
        weights = {
            "fitnet": fitnet,
            "pixel": pixel,
            "memory_pixel": memory_pixel,
            "memory_region": memory_region,
            "channel": channel,
            "memory_channel": memory_channel,
            "channel_mse": channel_mse,
        }
        self.part_weights = {name: weight for name, weight in weights.items() if weight}
        if not self.part_weights:
            raise UserError("every part has weight 0")
        self.context = Context(student_channels)
        self.parts = nn.ModuleDict()
        sizes = (student_channels, teacher_channels, num_classes)  # the first arguments of every loss
        if fitnet:
            self.parts["fitnet"] = FitNet(*sizes)
        if pixel:
            self.parts["pixel"] = CIRKD(*sizes, tau)
        if memory_pixel:
            self.parts["memory_pixel"] = CIRKDPixel(*sizes, tau, pixel_size, as_released=as_released)
        if memory_region:
            self.parts["memory_region"] = CIRKDRegion(*sizes, tau, region_size)
        share_projector(self.parts.values())
        self.channels = None
        if channel or memory_channel or channel_mse:  # computed together
            self.channels = ChannelTerms(student_channels, teacher_channels, tau, channel_size)

    def forward(self, student: Output, teacher: Output, label: Tensor) -> dict[str, Tensor]:
        """Return the terms that have a weight, by name."""
        student = student._replace(feat=self.context(student.feat))
        terms = {name: part(student, teacher, label) for name, part in self.parts.items()}
        if self.channels is not None:
            terms |= self.channels(student, teacher, label)
        return {name: terms[name] for name in self.part_weights}
