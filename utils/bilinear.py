"""Bilinear interpolation of maps: as a whole, and in bands of rows that need less memory."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


def resize(x: Tensor, size: Sequence[int], align_corners: bool = False) -> Tensor:
    """Resize maps bilinearly. The result has the type of ``x``; under autocast, CUDA alone would return float32."""
    if x.shape[-2:] == tuple(size):
        return x
    return F.interpolate(x, size, mode="bilinear", align_corners=align_corners).to(x.dtype)


class Neighbours(NamedTuple):
    """Hold, for each position along a side of the large map, the two positions of the small map that it mixes."""

    first: Tensor  # int64 [side]
    second: Tensor  # int64 [side]
    weight: Tensor  # [side]: that of the second position, 0 to 1; the first one has the rest


def find_neighbours(side: int, small: int, align_corners: bool, like: Tensor) -> Neighbours:
    """Find the neighbours and weights of a linear interpolation from ``small`` to ``side`` positions.

    like: a tensor whose device and type are used.
    """
    position = torch.arange(side, device=like.device, dtype=torch.float64)
    if align_corners:
        position = position * ((small - 1) / max(side - 1, 1))
    else:
        position = ((position + 0.5) * (small / side) - 0.5).clamp_(min=0)
    first = position.long().clamp_(max=small - 1)
    second = (first + 1).clamp_(max=small - 1)
    return Neighbours(first, second, (position - first).to(like.dtype))


def upsample_argmax(logits: Tensor, size: Sequence[int], align_corners: bool, band_height: int = 48) -> Tensor:
    """Compute ``interpolate(logits, size, "bilinear").argmax(1)`` in bands of rows, which bounds the memory.

    The logits of one band are interpolated first along the rows, then along the columns. These are the sums of
    ``F.interpolate`` in another order, so that two nearly equal logits may change places.

    Shapes: ``[B, K, h, w] -> int64 [B, H, W]``.
    """
    height, width = size
    rows = find_neighbours(height, logits.shape[2], align_corners, logits)
    columns = find_neighbours(width, logits.shape[3], align_corners, logits)
    logits = logits.permute(0, 2, 3, 1).contiguous()  # channels last: the argmax then reads adjacent memory
    classes = torch.empty(len(logits), height, width, dtype=torch.long, device=logits.device)
    for start in range(0, height, band_height):
        band = slice(start, min(start + band_height, height))
        mixed = _mix_rows(logits, rows, band)
        classes[:, band] = _find_band_classes(mixed, columns, align_corners)
    return classes


def _mix_rows(logits: Tensor, rows: Neighbours, band: slice) -> Tensor:
    """Interpolate the rows of a band: ``[B, h, w, K] -> [B, band, w, K]``."""
    upper = logits.index_select(1, rows.first[band])
    lower = logits.index_select(1, rows.second[band])
    return upper.lerp_(lower, rows.weight[band].view(-1, 1, 1))


def _find_band_classes(mixed: Tensor, columns: Neighbours, align_corners: bool) -> Tensor:
    """Find the class of each pixel of a band whose rows are interpolated: ``[B, band, w, K] -> int64 [B, band, W]``.

    Where both neighbours of a pixel have the same largest class, the pixel has that class as well. Only the other
    pixels need to be interpolated, which is faster where they are few. CUDA interpolates all pixels, because the host
    would have to wait for the device to count them.
    """
    if mixed.is_cuda:
        return _interpolate_columns(mixed, columns, align_corners)
    best = mixed.argmax(3)
    classes = best.index_select(2, columns.first)
    differs = classes != best.index_select(2, columns.second)
    unsure = differs.flatten().nonzero().squeeze(1)
    if len(unsure) > classes.numel() / 3:
        return _interpolate_columns(mixed, columns, align_corners)
    classes.view(-1)[unsure] = _find_pixel_classes(mixed, columns, unsure)
    return classes


def _interpolate_columns(mixed: Tensor, columns: Neighbours, align_corners: bool) -> Tensor:
    """Find the classes of a band by interpolating all of its pixels: ``[B, band, w, K] -> int64 [B, band, W]``."""
    size = (mixed.shape[1], len(columns.first))
    return resize(mixed.permute(0, 3, 1, 2), size, align_corners).argmax(1)


def _find_pixel_classes(mixed: Tensor, columns: Neighbours, pixels: Tensor) -> Tensor:
    """Find the classes of some pixels of a band by interpolating only these. Return int64 ``[N]``.

    mixed: ``[B, band, w, K]``. pixels: int64 ``[N]``, indices into the flattened ``[B, band, W]``.
    """
    width = len(columns.first)
    row = pixels.div(width, rounding_mode="floor")
    column = pixels - row * width
    row_start = row * mixed.shape[2]
    logits = mixed.flatten(0, 2)
    left = logits.index_select(0, row_start + columns.first[column])
    right = logits.index_select(0, row_start + columns.second[column])
    return left.lerp_(right, columns.weight[column, None]).argmax(1)
