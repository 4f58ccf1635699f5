"""CIRKDV2 (winycg/CIRKD, train_cirkdv2.py): CIRKD's relations and relations between channels, of student features that
went through a context module. It runs ``kd=1,cirkd2=1``.

Mended: the release trains its context module and FitNet convolution outside of DistributedDataParallel, so that their
copies drift apart; and leaves the context out where the FitNet weight is 0. Left out: 4x4 pooling before the pixel term
where both sides of the maps are 256 or more.
"""

import torch
from torch import Tensor, nn

from losses.cirkd import CIRKD
from losses.cirkd_channel import ChannelTerms
from losses.cirkd_memory import CIRKDPixel, CIRKDRegion, share_projector
from losses.fitnet import FitNet
from losses.rings import conv_bn_relu
from utils.errors import UserError
from utils.types import Output


class Context(nn.Module):
    """Self-attention over the positions, beside the features themselves: ``[B, C, h, w] -> [B, C, h, w]`` (its GCN).

    Peak memory: about three matrices of B (h w)^2.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.query, self.key, self.value = (nn.Conv2d(channels, half, 1, bias=False) for _ in range(3))
        self.expand = conv_bn_relu(half, channels)
        self.fuse = conv_bn_relu(2 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (conv(x).flatten(2) for conv in (self.query, self.key, self.value))
        relation = (q.transpose(1, 2) @ k * q.shape[1] ** -0.5).softmax(2)  # [B, h w, h w], rows: where to look
        seen = (v @ relation.transpose(1, 2)).unflatten(2, x.shape[-2:])
        return self.fuse(torch.cat([x, self.expand(seen)], 1))


class CIRKD2(nn.Module):
    """All terms, each with an inner weight. Options: those weights (0 leaves a term out), tau, sizes, as_released.

    fitnet: 1 or 10 in its scripts. pixel: ``cirkd``. memory_pixel, memory_region: ``cirkd_pixel`` (with its
    as_released), ``cirkd_region``. channel, memory_channel, channel_mse: ``losses.cirkd_channel``. pixel_size,
    region_size, channel_size: slots of the queues.
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
        widths = student_channels, teacher_channels, num_classes
        weights = {"fitnet": fitnet, "pixel": pixel, "memory_pixel": memory_pixel, "memory_region": memory_region}
        weights |= {"channel": channel, "memory_channel": memory_channel, "channel_mse": channel_mse}
        self.part_weights = {name: weight for name, weight in weights.items() if weight}
        if not self.part_weights:
            raise UserError("every part has weight 0")
        makers = {
            "fitnet": lambda: FitNet(*widths),
            "pixel": lambda: CIRKD(*widths, tau),
            "memory_pixel": lambda: CIRKDPixel(*widths, tau, pixel_size, as_released=as_released),
            "memory_region": lambda: CIRKDRegion(*widths, tau, region_size),
        }
        self.context = Context(student_channels)
        self.parts = nn.ModuleDict({name: make() for name, make in makers.items() if weights[name]})
        share_projector(self.parts.values())
        with_channels = any((channel, memory_channel, channel_mse))
        self.channels = ChannelTerms(*widths[:2], tau, channel_size) if with_channels else None

    def forward(self, student: Output, teacher: Output, label: Tensor) -> dict[str, Tensor]:
        student = student._replace(feat=self.context(student.feat))
        terms = {name: part(student, teacher, label) for name, part in self.parts.items()}
        if self.channels is not None:
            terms |= self.channels(student, teacher, label)
        return {name: terms[name] for name in self.part_weights}
