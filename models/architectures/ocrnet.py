"""Object-contextual representations (Yuan et al., OCRNet, ECCV 2020, arXiv 1909.11065)."""

import torch
from torch import Tensor, nn

from models.architectures.assembly import is_pyramid, mmseg_init
from models.layers import FCNHead, conv_norm_act
from models.segmentor import Branch, Segmentor
from utils.types import Supervision, full_precision


class OCRHead(nn.Module):
    """Each position is augmented with the classes' mean features, weighted by its relation to them.

    The soft region of class k is the softmax over all positions of the coarse logits of k; its feature f_k is the mean
    of the map under that region. A position x with query q(x) sees sum_k softmax_k(q(x) key(f_k) / sqrt(C)) value(f_k).
    """

    coarse_to_fine = True  # the branch passes the coarse logits

    def __init__(self, in_channels: int, channels: int, key_channels: int, dropout: nn.Module) -> None:
        super().__init__()
        self.out_channels = channels
        self.pixels = conv_norm_act(in_channels, channels, 3, padding=1)
        self.query = _two_layers(channels, key_channels)
        self.key = _two_layers(channels, key_channels)
        self.value = conv_norm_act(channels, key_channels, 1)
        self.out = conv_norm_act(key_channels, channels, 1)
        self.fuse = conv_norm_act(2 * channels, channels, 1)
        self.dropout = dropout

    def forward(self, x: Tensor, coarse: Tensor) -> Tensor:
        """x ``[B, C_in, h, w]``, coarse ``[B, K, h, w]`` of the same size -> ``[B, C, h, w]``."""
        x = self.pixels(x)
        # a weight of one position is too small for float16; only the shapes of "meta" tensors are looked at
        with torch.autocast("cpu" if x.is_meta else x.device.type, enabled=False):
            pixels, weights = (full_precision(y.flatten(2)) for y in (x, coarse))
            objects = (weights.softmax(2) @ pixels.transpose(1, 2)).transpose(1, 2).unsqueeze(3)  # [B, C, K, 1]
        query, key, value = (y.flatten(2) for y in (self.query(x), self.key(objects), self.value(objects)))
        relation = (query.transpose(1, 2) @ key * key.shape[1] ** -0.5).softmax(2)  # [B, h*w, K]
        context = (value @ relation.transpose(1, 2)).unflatten(2, x.shape[-2:])  # [B, C_key, h, w]
        return self.dropout(self.fuse(torch.cat([self.out(context), x], 1)))


def _two_layers(in_channels: int, channels: int) -> nn.Sequential:
    return nn.Sequential(conv_norm_act(in_channels, channels, 1), conv_norm_act(channels, channels, 1))


def ocrnet(
    backbone: nn.Module,
    num_classes: int,
    width: int = 512,
    key_width: int = 256,
    aux_width: int | None = None,
    align_corners: bool = False,
) -> Segmentor:
    """MMSegmentation's OCRNet: configs/_base_/models/ocrnet_hr18.py and ocrnet_r50-d8.py.

    On HRNet both heads see all four maps; on a dilated network the coarse one sees c3, the fine one c4. The release's
    coarse head runs twice a step, which updates its BatchNorm statistics twice; here it runs once.
    """
    if is_pyramid(backbone):
        channels, coarse_index, index = sum(backbone.channels), (0, 1, 2, 3), (0, 1, 2, 3)
        coarse, dropout = FCNHead(channels, aux_width or channels, nn.Identity(), kernel_size=1), nn.Identity()
    else:
        channels, coarse_index, index = backbone.channels[3], 2, 3
        coarse, dropout = FCNHead(backbone.channels[2], aux_width or 256, nn.Dropout2d(0.1)), nn.Dropout2d(0.1)
    aux = Branch(coarse, coarse_index, num_classes, Supervision(align_corners=align_corners, weight=0.4))
    head = OCRHead(channels, width, key_width, dropout)
    main = Branch(head, index, num_classes, Supervision(align_corners=align_corners))
    return mmseg_init(backbone, main, [aux])
