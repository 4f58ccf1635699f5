"""Cross entropy of upsampled logits, a few rows at a time: no map of label size and K channels is ever kept."""

import torch
import torch.nn.functional as F
from torch import Tensor

from utils.bilinear import neighbours
from utils.types import IGNORE_INDEX, full_precision

ROWS = 16  # of the label at a time: what a CPU's caches hold
STRIP = 2**26  # bytes at a time on CUDA, where many small kernels take longer to start than to run


class _Strips(torch.autograd.Function):
    """Sum of the loss; its gradient is computed with it, at the size of ``logits``, and only scaled afterwards.

    With p the softmax of upsampled logits and e the smoothing, d loss / d upsampled is p - (1 - e) onehot(y) - e / K.
    The transpose of the interpolation brings it back: columns by PyTorch's own (by a product where runs must repeat,
    since on CUDA it adds in any order), rows by their two weights.
    """

    @staticmethod
    def forward(ctx, logits: Tensor, label: Tensor, align_corners: bool, smoothing: float) -> Tensor:
        (batch, classes, h, w), (height, width) = logits.shape, label.shape[-2:]
        low, high, share = neighbours(height, h, align_corners, logits)
        share = share.view(-1, 1)
        logits = logits.contiguous(memory_format=torch.channels_last)
        columns = None
        if torch.are_deterministic_algorithms_enabled():
            one = torch.eye(w, device=logits.device, dtype=logits.dtype).view(1, w, 1, w)
            columns = F.interpolate(one, (1, width), mode="bilinear", align_corners=align_corners).view(w, width)
        total, gradient = logits.new_zeros(()), torch.zeros_like(logits)
        step = max(ROWS, STRIP // (4 * batch * classes * width)) if logits.is_cuda else ROWS
        for start in range(0, height, step):
            band = slice(start, min(start + step, height))
            mixed = torch.lerp(logits[:, :, low[band]], logits[:, :, high[band]], share[band])
            mixed = mixed.contiguous(memory_format=torch.channels_last)
            rows = mixed.shape[2]
            wide = F.interpolate(mixed, (rows, width), mode="bilinear", align_corners=align_corners)
            log_p = F.log_softmax(wide.permute(0, 2, 3, 1), 3)  # [B, rows, W, K]
            truth = label[:, band].unsqueeze(3)
            ignored = truth == IGNORE_INDEX
            truth = truth.masked_fill(ignored, 0)
            loss = -(1 - smoothing) * log_p.gather(3, truth)
            if smoothing:
                loss = loss - smoothing * log_p.mean(3, keepdim=True)
            total += loss.masked_fill_(ignored, 0).sum()
            if ctx.needs_input_grad[0]:
                p = log_p.exp_().sub_(smoothing / classes) if smoothing else log_p.exp_()
                p.scatter_add_(3, truth, p.new_full((), smoothing - 1).expand_as(truth)).masked_fill_(ignored, 0)
                if columns is not None:
                    narrow = (columns @ p).permute(0, 3, 1, 2)
                else:
                    sizes = [rows, width], [batch, classes, rows, w]
                    narrow = torch.ops.aten.upsample_bilinear2d_backward(p.permute(0, 3, 1, 2), *sizes, align_corners)
                gradient.index_add_(2, low[band], narrow * (1 - share[band]))
                gradient.index_add_(2, high[band], narrow * share[band])
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx, upper: Tensor) -> tuple[Tensor, None, None, None]:
        return ctx.saved_tensors[0] * upper, None, None, None


def upsampled_cross_entropy(logits: Tensor, label: Tensor, align_corners: bool, smoothing: float = 0.0) -> Tensor:
    """``F.cross_entropy(F.interpolate(logits, ...), label, ignore, "sum")``, at least in float32.

    logits ``[B, K, h, w]``, label int64 ``[B, H, W]``.
    """
    with torch.autocast(logits.device.type, enabled=False):
        return _Strips.apply(full_precision(logits), label, align_corners, smoothing)
