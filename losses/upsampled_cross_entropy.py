"""Cross entropy of upsampled logits, computed in bands of rows: no map of label size with K channels is ever kept."""

import torch
import torch.nn.functional as F
from torch import Tensor

from utils.bilinear import find_neighbours
from utils.precision import widen_to_float32
from utils.types import IGNORE_INDEX

CPU_ROWS = 16  # label rows in a band: they fit into the caches of a CPU
CUDA_BYTES = 2**27  # of a band on CUDA: the loss takes 10 % longer with half of it, 4 % less with twice (H200)


class _BandedCrossEntropy(torch.autograd.Function):
    """Sum the cross entropy over all pixels and compute the gradient in the same pass, at the size of ``logits``.

    p is the softmax of the upsampled logits, y the label, e the smoothing, and w the class weights. The gradient with
    respect to the upsampled logits is

    without class weights: p - (1 - e) onehot(y) - e / K,
    with class weights: (w_y + e (mean(w) - w_y)) p - (1 - e) w_y onehot(y) - e w / K.

    The transpose of the interpolation takes it to the size of the logits, band by band.
    """

    @staticmethod
    def forward(
        ctx,
        logits: Tensor,
        label: Tensor,
        align_corners: bool,
        smoothing: float,
        class_weights: Tensor | None,
    ) -> Tensor:
        batch, classes, h, w = logits.shape
        height, width = label.shape[-2:]
        upper, lower, weight = find_neighbours(height, h, align_corners, logits)
        weight = weight.view(-1, 1)
        logits = logits.contiguous(memory_format=torch.channels_last)
        columns = _make_column_weights(logits, width, align_corners)
        total = logits.new_zeros(())
        gradient = torch.zeros_like(logits)
        step = CPU_ROWS
        if logits.is_cuda:
            step = max(step, CUDA_BYTES // (4 * batch * classes * width))
        for start in range(0, height, step):
            band = slice(start, min(start + step, height))
            mixed = torch.lerp(logits[:, :, upper[band]], logits[:, :, lower[band]], weight[band])
            log_p = _compute_wide_log_softmax(mixed, width, align_corners)
            truth = label[:, band].unsqueeze(3)
            total += _sum_losses(log_p, truth, smoothing, class_weights)
            if ctx.needs_input_grad[0]:
                wide = _compute_band_gradient(log_p, truth, smoothing, class_weights)
                narrow = _transpose_interpolation(wide, w, columns, align_corners)
                gradient.index_add_(2, upper[band], narrow * (1 - weight[band]))
                gradient.index_add_(2, lower[band], narrow * weight[band])
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx, grad_output: Tensor) -> tuple[Tensor, None, None, None, None]:
        return ctx.saved_tensors[0] * grad_output, None, None, None, None


def _make_column_weights(logits: Tensor, width: int, align_corners: bool) -> Tensor | None:
    """Return the matrix ``[w, width]`` of the interpolation along rows, or None if torch's own way is used.

    On CUDA, torch's transpose of the interpolation adds numbers in an order that varies, and a product with the matrix
    is faster. On a CPU it is used for deterministic algorithms only.
    """
    if not (logits.is_cuda or torch.are_deterministic_algorithms_enabled()):
        return None
    w = logits.shape[3]
    identity = torch.eye(w, device=logits.device, dtype=logits.dtype).view(1, w, 1, w)
    return F.interpolate(identity, (1, width), mode="bilinear", align_corners=align_corners).view(w, width)


def _compute_wide_log_softmax(mixed: Tensor, width: int, align_corners: bool) -> Tensor:
    """Interpolate rows to the width of the label and compute the log softmax: ``[B, K, n, w] -> [B, n, width, K]``."""
    mixed = mixed.contiguous(memory_format=torch.channels_last)
    wide = F.interpolate(mixed, (mixed.shape[2], width), mode="bilinear", align_corners=align_corners)
    return F.log_softmax(wide.permute(0, 2, 3, 1), 3)


def _sum_losses(log_p: Tensor, truth: Tensor, smoothing: float, class_weights: Tensor | None) -> Tensor:
    """Sum the cross entropy over the labelled pixels of a band. log_p: ``[B, n, W, K]``. truth: ``[B, n, W, 1]``."""
    ignored = truth == IGNORE_INDEX
    truth = truth.masked_fill(ignored, 0)
    loss = -(1 - smoothing) * log_p.gather(3, truth)
    if class_weights is not None:
        loss = loss * class_weights[truth]
    if smoothing:
        every_class = log_p if class_weights is None else log_p * class_weights
        loss = loss - smoothing * every_class.mean(3, keepdim=True)
    return loss.masked_fill_(ignored, 0).sum()


def _compute_band_gradient(log_p: Tensor, truth: Tensor, smoothing: float, class_weights: Tensor | None) -> Tensor:
    """Compute the gradient with respect to the upsampled logits, ``[B, n, W, K]``. It overwrites ``log_p``.

    ``_BandedCrossEntropy`` has the formula. The gradient of ignored pixels is 0.
    """
    ignored = truth == IGNORE_INDEX
    truth = truth.masked_fill(ignored, 0)
    classes = log_p.shape[3]
    gradient = log_p.exp_()  # p
    at_truth = gradient.new_full((), smoothing - 1).expand_as(truth)
    if class_weights is not None:
        own = class_weights[truth]
        gradient.mul_(own + smoothing * (class_weights.mean() - own))
        at_truth = at_truth * own
    if smoothing:
        uniform = smoothing / classes
        gradient.sub_(uniform if class_weights is None else uniform * class_weights)
    gradient.scatter_add_(3, truth, at_truth)
    return gradient.masked_fill_(ignored, 0)


def _transpose_interpolation(wide: Tensor, w: int, columns: Tensor | None, align_corners: bool) -> Tensor:
    """Apply the transpose of the interpolation along rows: ``[B, n, W, K] -> [B, K, n, w]``."""
    if columns is not None:
        return (columns @ wide).permute(0, 3, 1, 2)
    batch, rows, width, classes = wide.shape
    sizes = ([rows, width], [batch, classes, rows, w])
    return torch.ops.aten.upsample_bilinear2d_backward(wide.permute(0, 3, 1, 2), *sizes, align_corners)


def upsampled_cross_entropy(
    logits: Tensor,
    label: Tensor,
    align_corners: bool,
    smoothing: float = 0.0,
    class_weights: Tensor | None = None,
) -> Tensor:
    """Sum the cross entropy of bilinearly upsampled logits over the labelled pixels, at least in float32.

    The value is that of ``F.cross_entropy`` with reduction "sum" on the result of ``F.interpolate``. These two would
    keep two maps ``[B, K, H, W]`` in memory.

    logits: ``[B, K, h, w]``. label: int64 ``[B, H, W]``. smoothing: of the label.
    class_weights: ``[K]``. In the smoothed part each class counts with its own weight, as in ``F.cross_entropy``.
    """
    logits = widen_to_float32(logits)
    if class_weights is not None:
        class_weights = class_weights.to(logits.dtype)
    with torch.autocast(logits.device.type, enabled=False):
        return _BandedCrossEntropy.apply(logits, label, align_corners, smoothing, class_weights)
