"""STDC's context path (BiSeNet's, arXiv 2104.13188) over any encoder with maps at strides 8, 16 and 32."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.layers import conv_norm_act
from utils.errors import UserError

CONTEXT, FUSED = 128, 256  # channels of the context path and of the fusion with c3


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

    Raises UserError: the encoder has other strides.
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
