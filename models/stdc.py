"""STDC (Fan et al., Rethinking BiSeNet, CVPR 2021, arXiv 2104.13188): encoders, context path, network."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.frames import mmseg_init
from models.heads import conv_norm_act
from models.heads.fcn import FCNHead
from models.segmentor import Branch, Segmentor
from utils.errors import UserError
from utils.types import Supervision

CHANNELS = (32, 64, 256, 512, 1024)  # of the stages, at strides 2, 4, 8, 16, 32
BLOCKS = {"stdc1": (2, 2, 2), "stdc2": (4, 5, 3)}  # short-term dense concatenate modules of the last three stages
CONTEXT, FUSED = 128, 256  # channels of the context path and of the fusion with c3


class DenseConcat(nn.Module):
    """Short-term dense concatenate module: four convolutions of C/2, C/4, C/8, C/8 channels, all concatenated."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        half, quarter, eighth = channels // 2, channels // 4, channels // 8
        self.layers = nn.ModuleList([conv_norm_act(in_channels, half, 1)])
        for a, b in ((half, quarter), (quarter, eighth), (eighth, eighth)):
            self.layers.append(conv_norm_act(a, b, 3, padding=1))
        self.downsample = self.pool = None
        if stride == 2:
            self.downsample = conv_norm_act(half, half, 3, stride=2, padding=1, groups=half, act_cfg=None)
            self.pool = nn.AvgPool2d(3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        first, *others = self.layers
        x = first(x)
        outputs = [x if self.pool is None else self.pool(x)]
        if self.downsample is not None:
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


class Attention(nn.Module):
    """Attention refinement: a 3x3 convolution whose channels are weighted by a function of their means."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.conv = conv_norm_act(in_channels, channels, 3, padding=1)
        self.gate = conv_norm_act(channels, channels, 1, act_cfg=None)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return x * self.gate(x.mean((2, 3), keepdim=True)).sigmoid()


class Fusion(nn.Module):
    """Feature fusion: 1x1 convolution of the concatenation, plus itself weighted by a squeeze-and-excite gate."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.conv = conv_norm_act(in_channels, channels, 1)
        self.squeeze = nn.Conv2d(channels, channels // 4, 1, bias=False)
        self.excite = nn.Conv2d(channels // 4, channels, 1, bias=False)

    def forward(self, detail: Tensor, context: Tensor) -> Tensor:
        x = self.conv(torch.cat([detail, context], 1))
        return x + x * self.excite(self.squeeze(x.mean((2, 3), keepdim=True)).relu()).sigmoid()


class ContextPath(nn.Module):
    """Image -> [c8, context at stride 16, context at stride 8, fusion], c8 being the encoder's map at stride 8.

    encoder: any network whose last three maps have strides 8, 16 and 32. Of 128, 128 and 256 channels behind c8. The
    upsampling is nearest neighbour (MMSegmentation's stdc.py).

    Raises:
        UserError: the encoder has other strides.
    """

    strides = (8, 16, 8, 8)

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        if tuple(encoder.strides[-3:]) != (8, 16, 32):
            strides = ", ".join(map(str, encoder.strides))
            raise UserError(f"a context path needs maps at strides 8, 16 and 32; this backbone's are at {strides}")
        c8, c16, c32 = encoder.channels[-3:]
        self.channels = (c8, CONTEXT, CONTEXT, FUSED)
        self.encoder = encoder
        self.arms = nn.ModuleList(Attention(channels, CONTEXT) for channels in (c32, c16))
        self.smooth = nn.ModuleList(conv_norm_act(CONTEXT, CONTEXT, 3, padding=1) for _ in range(2))
        self.image = conv_norm_act(c32, CONTEXT, 1)
        self.fusion = Fusion(c8 + CONTEXT, FUSED)

    def forward(self, x: Tensor) -> list[Tensor]:
        s8, s16, s32 = self.encoder(x)[-3:]
        context = self.arms[0](s32) + self.image(s32.mean((2, 3), keepdim=True))
        out16 = self.smooth[0](F.interpolate(context, s16.shape[-2:]))
        context = self.arms[1](s16) + out16
        out8 = self.smooth[1](F.interpolate(context, s8.shape[-2:]))
        return [s8, out16, out8, self.fusion(s8, out8)]


class DetailHead(FCNHead):
    """The boundary branch. It carries the weights that fuse boundary maps of strides 1, 2 and 4 into its target.

    They are fixed, and what they amount to is in the loss (``losses.task.detail_target``); the release saves and
    counts them as a parameter, so this network has them too.
    """

    def __init__(self, in_channels: int, channels: int, dropout: nn.Module) -> None:
        super().__init__(in_channels, channels, dropout)
        self.fusion = nn.Parameter(torch.tensor([0.6, 0.3, 0.1]).view(1, 3, 1, 1), requires_grad=False)


def stdc_backbone(name: str, output_stride: int) -> ContextPath:
    """STDC1 or STDC2 with its context path; it has one form, whatever the ``output_stride`` asked for."""
    return ContextPath(Encoder(BLOCKS[name]))


def stdc(
    backbone: nn.Module, num_classes: int, width: int = 256, aux_width: int = 64, detail_width: int = 64
) -> Segmentor:
    """configs/_base_/models/stdc.py: two semantic auxiliary maps and one of boundaries ("detail", 2 channels).

    On a backbone that is not STDC's own the context path is built over its maps at strides 8, 16 and 32 (this project's
    extension).

    Raises:
        UserError: the backbone has no such maps.
    """
    if not isinstance(backbone, ContextPath):
        backbone = ContextPath(backbone)

    def branch(index: int, channels: int, supervision: Supervision) -> Branch:
        head = FCNHead(backbone.channels[index], channels, nn.Dropout2d(0.1))
        return Branch(head, index, num_classes, supervision)

    main = branch(3, width, Supervision("ohem", align_corners=True))
    aux = [branch(index, aux_width, Supervision("ohem")) for index in (2, 1) if aux_width]
    if detail_width:
        detail = DetailHead(backbone.channels[0], detail_width, nn.Dropout2d(0.1))
        aux.append(Branch(detail, 0, 2, Supervision("detail", align_corners=True)))
    return mmseg_init(backbone, main, aux)
