"""STDC's context path (arXiv 2104.13188, from BiSeNet) over any encoder with maps at strides 8, 16 and 32."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.layers import make_conv_norm_act
from utils.errors import UserError

CONTEXT_CHANNELS = 128
FUSED_CHANNELS = 256


class AttentionRefinementModule(nn.Module):
    """Refine a map: apply a 3x3 convolution, then weight each channel by a gate that sees the channel means."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.conv = make_conv_norm_act(in_channels, channels, 3, padding=1)
        self.gate = make_conv_norm_act(channels, channels, 1, act_cfg=None)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        weights = self.gate(x.mean((2, 3), keepdim=True)).sigmoid()
        return x * weights


class FeatureFusionModule(nn.Module):
    """Fuse two maps: concatenate, apply a 1x1 convolution, and add the result weighted by a squeeze-and-excite gate."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.conv = make_conv_norm_act(in_channels, channels, 1)
        self.squeeze = nn.Conv2d(channels, channels // 4, 1, bias=False)
        self.excite = nn.Conv2d(channels // 4, channels, 1, bias=False)

    def forward(self, detail: Tensor, context: Tensor) -> Tensor:
        x = self.conv(torch.cat([detail, context], 1))
        squeezed = self.squeeze(x.mean((2, 3), keepdim=True)).relu()
        weights = self.excite(squeezed).sigmoid()
        return x + x * weights


class ContextPath(nn.Module):
    """Turn an image into four maps: the encoder's map at stride 8, context at strides 16 and 8, and their fusion.

    The fusion has stride 8. The last three maps have 128, 128 and 256 channels. Upsampling is nearest neighbour.

    Source: MMSegmentation's stdc.py.
    """

    strides = (8, 16, 8, 8)

    def __init__(self, encoder: nn.Module) -> None:
        """Build the path over an encoder whose last three maps have strides 8, 16 and 32.

        Raises:
            UserError: the encoder's maps have other strides.
        """
        super().__init__()
        if tuple(encoder.strides[-3:]) != (8, 16, 32):
            strides = ", ".join(map(str, encoder.strides))
            raise UserError(f"a context path needs maps at strides 8, 16 and 32; this backbone's are at {strides}")
        c8, c16, c32 = encoder.channels[-3:]
        self.channels = (c8, CONTEXT_CHANNELS, CONTEXT_CHANNELS, FUSED_CHANNELS)
        self.encoder = encoder
        # from coarse to fine: the arm of stride 32 comes first
        self.arms = nn.ModuleList(AttentionRefinementModule(channels, CONTEXT_CHANNELS) for channels in (c32, c16))
        self.smooth = nn.ModuleList(
            make_conv_norm_act(CONTEXT_CHANNELS, CONTEXT_CHANNELS, 3, padding=1) for _ in range(2)
        )
        self.image = make_conv_norm_act(c32, CONTEXT_CHANNELS, 1)
        self.fusion = FeatureFusionModule(c8 + CONTEXT_CHANNELS, FUSED_CHANNELS)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the maps in the order of ``channels`` and ``strides``."""
        s8, s16, s32 = self.encoder(x)[-3:]
        context = self.arms[0](s32) + self.image(s32.mean((2, 3), keepdim=True))
        out16 = self.smooth[0](F.interpolate(context, s16.shape[-2:]))
        context = self.arms[1](s16) + out16
        out8 = self.smooth[1](F.interpolate(context, s8.shape[-2:]))
        return [s8, out16, out8, self.fusion(s8, out8)]
