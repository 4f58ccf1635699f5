"""Layers that several architectures share."""

import os
from typing import Any

import torch
from torch import Tensor, nn


def make_conv_norm_act(*args: Any, **kwargs: Any) -> nn.Module:
    """Make a convolution without bias, BatchNorm and ReLU: mmcv's ConvModule, with its keys conv.weight and bn.*.

    The arguments are those of ConvModule. ``act_cfg=None`` leaves the ReLU out.
    """
    from mmcv.cnn import ConvModule  # its import takes a second; not every start of a program needs it

    _make_mmengine_logger()
    return ConvModule(*args, **{"norm_cfg": {"type": "BN"}, "act_cfg": {"type": "ReLU"}, **kwargs})


def _make_mmengine_logger() -> None:
    """Make the logger that mmcv's registry of layers writes to, if there is none yet.

    mmengine looks up LOCAL_RANK in the list CUDA_VISIBLE_DEVICES for the name of a log file, which is not written here.
    That fails for a process whose number is beyond the list: where SLURM shows each process one GPU, or where processes
    share a GPU. The first entry is always there.
    """
    from mmengine.logging import MMLogger

    local_rank = os.environ.pop("LOCAL_RANK", None)
    try:
        MMLogger.get_current_instance()
    finally:
        if local_rank is not None:
            os.environ["LOCAL_RANK"] = local_rank


def compute_bin_means(x: Tensor, bins: int | tuple[int, int]) -> Tensor:
    """Compute ``nn.AdaptiveAvgPool2d(bins)`` by two matrix products: ``[B, C, H, W] -> [B, C, bins, bins]``.

    The gradient of PyTorch's pool adds in any order on CUDA, but matrix products repeat to the bit. And ONNX can
    express them for image sizes that are not known at export.
    """
    row_bins, column_bins = (bins, bins) if isinstance(bins, int) else bins
    rows = _make_bin_weights(x.shape[-2], row_bins, x)
    columns = _make_bin_weights(x.shape[-1], column_bins, x)
    return rows @ x @ columns.T


def _make_bin_weights(side: int, bins: int, like: Tensor) -> Tensor:
    """Make a matrix ``[bins, side]`` whose product with a side is the mean over each bin.

    Bin i of n over a side of s covers the positions floor(i s / n) to ceil((i + 1) s / n) - 1. Bins may overlap.

    like: a tensor whose device and type are used.
    """
    i = torch.arange(bins, device=like.device).unsqueeze(1)
    position = torch.arange(side, device=like.device).unsqueeze(0)
    first = i * side // bins
    end = ((i + 1) * side + bins - 1) // bins
    is_inside = ((position >= first) & (position < end)).to(like.dtype)
    return is_inside / is_inside.sum(1, keepdim=True)


class Pool(nn.AdaptiveAvgPool2d):
    """Average each bin. Use matrix products if torch is set to deterministic algorithms."""

    def forward(self, x: Tensor) -> Tensor:
        if torch.are_deterministic_algorithms_enabled():
            return compute_bin_means(x, self.output_size)
        return super().forward(x)


class FCNHead(nn.Module):
    """Apply ``num_convs`` convolutions, which turn ``in_channels`` into ``channels``.

    With ``concat_input``, one more convolution fuses the result with the input. Like every head, this one has the
    attribute ``out_channels``, and its branch has the classifier.

    Source: MMSegmentation's FCNHead, and the auxiliary layer of LAD and CIRKD.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        dropout: nn.Module,
        num_convs: int = 1,
        kernel_size: int = 3,
        concat_input: bool = False,
    ) -> None:
        super().__init__()
        self.out_channels = channels
        self.convs = nn.Sequential()
        for i in range(num_convs):
            width = in_channels if i == 0 else channels
            self.convs.append(make_conv_norm_act(width, channels, kernel_size, padding=kernel_size // 2))
        self.fuse = None
        if concat_input:
            self.fuse = make_conv_norm_act(in_channels + channels, channels, 3, padding=1)
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        y = self.convs(x)
        if self.fuse is not None:
            y = self.fuse(torch.cat([x, y], 1))
        return self.dropout(y)


def freeze_unused(network: nn.Module, total: Tensor) -> None:
    """Freeze the parameters of a network that ``total``, the sum of all its maps, does not depend on.

    They never get a gradient, but DistributedDataParallel waits for the gradient of every parameter. Nothing is frozen
    where gradients are disabled.
    """
    if not total.requires_grad:
        return
    total.backward()
    for parameter in network.parameters():
        if parameter.grad is None:
            parameter.requires_grad_(False)
    network.zero_grad(set_to_none=True)
