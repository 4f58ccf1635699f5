"""Object-contextual representations (Yuan et al., OCRNet, ECCV 2020, arXiv 1909.11065)."""

import torch
from torch import Tensor, nn

from models.architectures.assembly import assemble_mmseg_branches, is_pyramid
from models.layers import FCNHead, make_conv_norm_act
from models.segmentor import Branch, Segmentor
from utils.precision import widen_to_float32
from utils.types import Output, Supervision

ALL_MAPS = (0, 1, 2, 3)


class OCRHead(nn.Module):
    """Add to each position the mean features of the classes, weighted by the position's relation to each class.

    A coarse head gives logits for every class. The softmax over all positions of the logits of class k is its soft
    region, and f_k is the mean of the map under that region. A position x with query q(x) then gets the sum over k of
    softmax_k(q(x) key(f_k) / sqrt(C)) value(f_k).
    """

    def __init__(self, in_channels: int, channels: int, key_channels: int, dropout: nn.Module) -> None:
        super().__init__()
        self.out_channels = channels
        self.pixels = make_conv_norm_act(in_channels, channels, 3, padding=1)
        self.query = _make_two_layers(channels, key_channels)
        self.key = _make_two_layers(channels, key_channels)
        self.value = make_conv_norm_act(channels, key_channels, 1)
        self.out = make_conv_norm_act(key_channels, channels, 1)
        self.fuse = make_conv_norm_act(2 * channels, channels, 1)
        self.dropout = dropout

    def forward(self, x: Tensor, coarse: Tensor) -> Tensor:
        """Turn a map x ``[B, C_in, h, w]`` and coarse logits ``[B, K, h, w]`` into a map ``[B, C, h, w]``."""
        x = self.pixels(x)
        objects = compute_region_means(x, coarse)
        query = self.query(x).flatten(2)  # [B, C_key, h*w]
        key = self.key(objects).flatten(2)  # [B, C_key, K]
        value = self.value(objects).flatten(2)  # [B, C_key, K]
        query = query * key.shape[1] ** -0.5  # before the product, which would exceed the range of float16
        relation = (query.transpose(1, 2) @ key).softmax(2)  # [B, h*w, K]
        context = (value @ relation.transpose(1, 2)).unflatten(2, x.shape[-2:])  # [B, C_key, h, w]
        return self.dropout(self.fuse(torch.cat([self.out(context), x], 1)))


def compute_region_means(x: Tensor, coarse: Tensor) -> Tensor:
    """Compute the mean of a map ``[B, C, h, w]`` under the soft region of each class: ``[B, C, K, 1]``.

    coarse: logits ``[B, K, h, w]``. Half precision is widened to float32, because the weight of one position is too
    small for float16.
    """
    device_type = "cpu" if x.is_meta else x.device.type  # autocast knows no "meta" device
    with torch.autocast(device_type, enabled=False):
        pixels = widen_to_float32(x.flatten(2))
        weights = widen_to_float32(coarse.flatten(2)).softmax(2)
        return (weights @ pixels.transpose(1, 2)).transpose(1, 2).unsqueeze(3)


class CascadeSegmentor(Segmentor):
    """Segment images from coarse to fine: the main head reads the logits of the one auxiliary branch.

    This is MMSegmentation's CascadeEncoderDecoder.
    """

    def forward(self, x: Tensor, with_aux: bool = True) -> Output:
        """Return the fine logits, with the coarse ones as ``aux``. ``with_aux`` has no effect: both are needed."""
        features = self.backbone(x)
        coarse, _ = self.aux[0](features)
        logits, feat = self.main(features, coarse)
        return Output(logits, (coarse,), feat)


def _make_two_layers(in_channels: int, channels: int) -> nn.Sequential:
    """Make two 1x1 convolutions with norm and activation."""
    return nn.Sequential(make_conv_norm_act(in_channels, channels, 1), make_conv_norm_act(channels, channels, 1))


def build_ocrnet(
    backbone: nn.Module,
    num_classes: int,
    width: int = 512,
    key_width: int = 256,
    aux_width: int | None = None,
    align_corners: bool = False,
) -> CascadeSegmentor:
    """Build MMSegmentation's OCRNet: configs/_base_/models/ocrnet_hr18.py and ocrnet_r50-d8.py.

    On a pyramid such as HRNet both heads read all four maps. On a dilated network the coarse head reads c3 and the fine
    head c4. In MMSegmentation the coarse head runs twice in a step, which updates its BatchNorm statistics twice; here
    it runs once.
    """
    if is_pyramid(backbone):
        channels = sum(backbone.channels)
        coarse_index = ALL_MAPS
        fine_index = ALL_MAPS
        coarse_head = FCNHead(channels, aux_width or channels, nn.Identity(), kernel_size=1)
        dropout = nn.Identity()
    else:
        channels = backbone.channels[3]
        coarse_index = 2
        fine_index = 3
        coarse_head = FCNHead(backbone.channels[2], aux_width or 256, nn.Dropout2d(0.1))
        dropout = nn.Dropout2d(0.1)
    coarse_supervision = Supervision(align_corners=align_corners, weight=0.4)
    aux = Branch(coarse_head, coarse_index, num_classes, coarse_supervision)
    head = OCRHead(channels, width, key_width, dropout)
    main = Branch(head, fine_index, num_classes, Supervision(align_corners=align_corners))
    return assemble_mmseg_branches(backbone, main, [aux], CascadeSegmentor)
