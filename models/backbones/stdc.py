"""The encoders of STDC (Fan et al., Rethinking BiSeNet, CVPR 2021, arXiv 2104.13188)."""

import torch
from torch import Tensor, nn

from models.backbones.context_path import ContextPath
from models.layers import conv_norm_act

CHANNELS = (32, 64, 256, 512, 1024)  # of the stages, at strides 2, 4, 8, 16, 32
BLOCKS = {"stdc1": (2, 2, 2), "stdc2": (4, 5, 3)}  # short-term dense concatenate modules of the last three stages


class DenseConcat(nn.Module):
    """Short-term dense concatenate module: four convolutions of C/2, C/4, C/8, C/8 channels, all concatenated."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        half, quarter, eighth = channels // 2, channels // 4, channels // 8
        self.layers = nn.ModuleList([conv_norm_act(in_channels, half, 1)])
        for a, b in ((half, quarter), (quarter, eighth), (eighth, eighth)):
            self.layers.append(conv_norm_act(a, b, 3, padding=1))
        self.downsample = self.pool = nn.Identity()
        if stride == 2:
            self.downsample = conv_norm_act(half, half, 3, stride=2, padding=1, groups=half, act_cfg=None)
            self.pool = nn.AvgPool2d(3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        first, *others = self.layers
        x = first(x)
        outputs = [self.pool(x)]
        x = self.downsample(x)
        for layer in others:
            x = layer(x)
            outputs.append(x)
        return torch.cat(outputs, 1)


class Encoder(nn.Module):
    """STDC1's or STDC2's classification network of five stages; returns the last three."""

    channels, strides = CHANNELS[2:], (8, 16, 32)

    def __init__(self, blocks: tuple[int, int, int]) -> None:
        super().__init__()
        stem, second, *_ = CHANNELS
        self.stages = nn.ModuleList(
            [conv_norm_act(3, stem, 3, stride=2, padding=1), conv_norm_act(stem, second, 3, stride=2, padding=1)]
        )
        for count, a, b in zip(blocks, CHANNELS[1:], CHANNELS[2:], strict=False):
            self.stages.append(nn.Sequential(DenseConcat(a, b, 2), *(DenseConcat(b, b, 1) for _ in range(count - 1))))

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps[2:]


def stdc_backbone(name: str, output_stride: int) -> ContextPath:
    """STDC1 or STDC2 with its context path; it has one form, whatever the ``output_stride`` asked for."""
    return ContextPath(Encoder(BLOCKS[name]))
