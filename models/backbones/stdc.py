"""The encoders of STDC (Fan et al., Rethinking BiSeNet, CVPR 2021, arXiv 2104.13188)."""

import torch
from torch import Tensor, nn

from models.backbones.context_path import ContextPath
from models.layers import make_conv_norm_act

CHANNELS = (32, 64, 256, 512, 1024)  # of the five stages, whose strides are 2, 4, 8, 16 and 32
# number of STDC modules (short-term dense concatenate) in each of the last three stages
BLOCKS = {"stdc1": (2, 2, 2), "stdc2": (4, 5, 3)}


class STDCModule(nn.Module):
    """Apply four convolutions of C/2, C/4, C/8 and C/8 channels in a row, and concatenate all four outputs."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        half = channels // 2
        quarter = channels // 4
        eighth = channels // 8
        self.layers = nn.ModuleList([make_conv_norm_act(in_channels, half, 1)])
        for width_in, width_out in ((half, quarter), (quarter, eighth), (eighth, eighth)):
            self.layers.append(make_conv_norm_act(width_in, width_out, 3, padding=1))
        self.downsample = nn.Identity()
        self.pool = nn.Identity()
        if stride == 2:
            self.downsample = make_conv_norm_act(half, half, 3, stride=2, padding=1, groups=half, act_cfg=None)
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


class STDCNet(nn.Module):
    """Run the classification network of STDC1 or STDC2, and return the maps of its last three stages."""

    channels = CHANNELS[2:]
    strides = (8, 16, 32)

    def __init__(self, blocks: tuple[int, int, int]) -> None:
        super().__init__()
        first, second = CHANNELS[:2]
        self.stages = nn.ModuleList()
        self.stages.append(make_conv_norm_act(3, first, 3, stride=2, padding=1))
        self.stages.append(make_conv_norm_act(first, second, 3, stride=2, padding=1))
        in_channels = second
        for count, channels in zip(blocks, self.channels, strict=True):
            stage = nn.Sequential(STDCModule(in_channels, channels, 2))
            for _ in range(count - 1):
                stage.append(STDCModule(channels, channels, 1))
            self.stages.append(stage)
            in_channels = channels

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps[2:]


def build_stdc_backbone(name: str, output_stride: int) -> ContextPath:
    """Build STDC1 or STDC2 with its context path. Its strides are fixed, so ``output_stride`` has no effect."""
    return ContextPath(STDCNet(BLOCKS[name]))
