"""The supervised loss: upsample the logits to label size, then cross entropy, OHEM, or the STDC boundary loss."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from losses.pixels import upsampled_cross_entropy
from utils.errors import lookup
from utils.types import IGNORE_INDEX, Output, Supervision, full_precision, valid_pixels


def cross_entropy(
    logits: Tensor, label: Tensor, align_corners: bool, smoothing: float = 0.0, valid: Tensor | None = None
) -> Tensor:
    """Mean over valid pixels of the cross entropy of bilinearly upsampled logits (LAD, CIRKD: losses/task).

    logits ``[B, K, h, w]``, label ``[B, H, W]``. The mean is over the valid pixels of the global batch: each process
    divides by the mean count ``valid``, so that averaging gradients over processes gives the gradient of one process. A
    batch without a valid pixel has loss 0.
    """
    total = upsampled_cross_entropy(logits, label, align_corners, smoothing)
    valid = valid_pixels(label) if valid is None else valid
    return total / torch.where(valid > 0, valid, 1)


def _upsampled(logits: Tensor, label: Tensor, align_corners: bool) -> Tensor:
    """At label size, at least in float32."""
    return F.interpolate(full_precision(logits), label.shape[-2:], mode="bilinear", align_corners=align_corners)


def ohem(
    logits: Tensor,
    label: Tensor,
    align_corners: bool,
    threshold: float | None = 0.7,
    min_kept: int = 10_000,
    smoothing: float = 0.0,
    valid: Tensor | None = None,
) -> Tensor:
    """Cross entropy of hard pixels only, summed and divided by all pixels (MMSegmentation's OHEMPixelSampler).

    Hard is a pixel whose true class has less than ``threshold`` probability, and in any case the ``min_kept`` * B
    hardest; without a threshold exactly these. Smoothed labels do not change which pixels are hard. The batch is that
    of one process; ``valid`` does not matter.
    """
    logits = _upsampled(logits, label, align_corners)
    loss = F.cross_entropy(logits, label, ignore_index=IGNORE_INDEX, reduction="none")
    hard = hard_pixels(loss.detach(), label, threshold, min_kept * len(label))
    if smoothing:
        loss = F.cross_entropy(logits, label, ignore_index=IGNORE_INDEX, reduction="none", label_smoothing=smoothing)
    return (loss * hard).mean()


def hard_pixels(loss: Tensor, label: Tensor, threshold: float | None, min_kept: int) -> Tensor:
    """Boolean ``[B, H, W]``: where the true class's probability ``exp(-loss)`` is below OHEM's limit.

    The limit is the probability at rank ``min_kept`` (from 0, or the last valid one), or the threshold if that is
    higher. It stays a tensor: the host does not wait for the device. Without a threshold: the ``min_kept`` pixels of
    the largest loss.
    """
    valid = label != IGNORE_INDEX
    if threshold is None:  # by the loss: of very hard pixels all probabilities are 0
        losses = loss.masked_fill(~valid, -torch.inf).flatten()
        hardest = losses.topk(min(min_kept, losses.numel()), sorted=False).indices
        return valid & torch.zeros_like(valid).flatten().index_fill(0, hardest, True).view_as(valid)
    probability = (-loss).exp().masked_fill(~valid, torch.inf)
    lowest = min(min_kept + 1, probability.numel())
    limit = probability.flatten().topk(lowest, largest=False, sorted=False).values.amax()  # kthvalue is slow on CUDA
    highest = probability.masked_fill(~valid, -torch.inf).amax()
    return (probability < torch.where(limit.isinf(), highest, limit).clamp(min=threshold)) & valid


def detail_target(label: Tensor) -> Tensor:
    """Boundaries of a label map ``[B, H, W]``: where its Laplacian at stride 1, or at stride 2, is positive.

    STDC fuses three binary maps, of strides 1, 2 and 4, as 0.6 a + 0.3 b + 0.1 c > 0.1, which c alone never meets. The
    raw ids are used, so that the border of an ignored region (255) is a boundary too.
    """
    with torch.autocast(label.device.type, enabled=False):
        ids = label.float().unsqueeze(1)
        kernel = ids.new_full((1, 1, 3, 3), -1)
        kernel[..., 1, 1] = 8
        fine, coarse = (F.conv2d(ids, kernel, stride=stride, padding=1) > 0.1 for stride in (1, 2))
        return (fine | (F.interpolate(coarse.float(), label.shape[-2:]) > 0)).squeeze(1)


def detail_loss(
    logits: Tensor, label: Tensor, align_corners: bool, smoothing: float = 0.0, valid: Tensor | None = None
) -> Tensor:
    """STDC's boundary loss: binary cross entropy plus Dice of 2-channel logits (not boundary, boundary).

    It is not one of classes, so ``smoothing`` and ``valid`` do not concern it.
    """
    logits = _upsampled(logits, label, align_corners)
    target = F.one_hot(detail_target(label).long(), 2).permute(0, 3, 1, 2).to(logits)
    return F.binary_cross_entropy_with_logits(logits, target) + dice_loss(logits.sigmoid(), target)


def dice_loss(probability: Tensor, target: Tensor, smooth: float = 1e-3) -> Tensor:
    """Mean over samples of ``1 - 2 p.t / (p.p + t.t)``, each square sum plus ``smooth``."""
    p, t = probability.flatten(1), target.flatten(1)
    return (1 - 2 * (p * t).sum(1) / ((p * p).sum(1) + (t * t).sum(1) + 2 * smooth)).mean()


def soft_dice(
    logits: Tensor, label: Tensor, align_corners: bool, smoothing: float = 0.0, valid: Tensor | None = None
) -> Tensor:
    """Mean of ``1 - 2 sum(p t) / (sum(p^2) + sum(t))`` over the classes that the batch of a process holds.

    V-Net's Dice loss (Milletari et al., 3DV 2016, arXiv 1606.04797, equation in section 3), of each class against the
    rest; p is the softmax, t the one-hot label, the sums go over the labelled pixels of all images. A class without a
    pixel has no overlap to ask for and is left out. Labels are not smoothed; ``valid`` does not matter.
    """
    logits = _upsampled(logits, label, align_corners)
    label = label.unsqueeze(1)
    p = logits.softmax(1) * (label != IGNORE_INDEX)
    t = label == torch.arange(logits.shape[1], device=label.device).view(1, -1, 1, 1)
    overlap, predicted, labelled = ((p * t).sum((0, 2, 3)), (p * p).sum((0, 2, 3)), t.sum((0, 2, 3)))
    present = labelled > 0
    return ((1 - 2 * overlap / (predicted + labelled).clamp(min=1)) * present).sum() / present.sum().clamp(min=1)


CRITERIA: dict[str, Callable[..., Tensor]] = {
    "ce": cross_entropy,
    "ohem": ohem,
    "dice": soft_dice,
    "detail": detail_loss,
}
NAMED = ("ce", "ohem", "dice")  # those over classes, which --task-loss may name


class TaskLoss(nn.Module):
    """Main loss plus weighted auxiliary losses, each map supervised as the network says.

    aux_weight: replaces the weights of the network's auxiliary maps where it is given (LAD: 0.4 for the teacher,
    0.02 for the student). label_smoothing: of every loss over classes. named: one of NAMED, or a sum such as
    "ce+dice", for every map over classes in place of the network's own. ignored_in_mean: cross entropy is divided by
    all pixels (MMSegmentation's ``avg_non_ignore=False``).
    """

    def __init__(
        self,
        supervision: Sequence[Supervision],
        aux_weight: float | None = None,
        label_smoothing: float = 0.0,
        named: str = "",
        ignored_in_mean: bool = False,
    ) -> None:
        super().__init__()
        self.label_smoothing, self.ignored_in_mean = label_smoothing, ignored_in_mean
        self.supervision = tuple(s._replace(kind=named) if named and s.kind in NAMED else s for s in supervision)
        for part in named.split("+") if named else []:
            lookup(dict.fromkeys(NAMED), part, "loss in --task-loss")
        for item in supervision:
            lookup(CRITERIA, item.kind, "criterion")
        self.aux_weights = tuple(s.weight if aux_weight is None else aux_weight for s in self.supervision[1:])

    def forward(self, output: Output, label: Tensor, valid: Tensor | None = None) -> dict[str, Tensor]:
        """``{"task": main + sum of weight * auxiliary, "ce": main, "aux": unweighted auxiliary sum}``.

        valid: ``valid_pixels(label)`` where it has been counted already; counting makes processes wait for each other.
        """
        valid = valid_pixels(label) if valid is None else valid
        if self.ignored_in_mean:
            valid = torch.full_like(valid, label.numel())
        options = {"smoothing": self.label_smoothing, "valid": valid}
        main, *aux = (
            sum(CRITERIA[kind](logits, label, s.align_corners, **options) for kind in s.kind.split("+"))
            for s, logits in zip(self.supervision, (output.logits, *output.aux), strict=True)
        )
        terms = {"task": main, "ce": main}
        if aux:
            terms["task"] = main + sum(w * a for w, a in zip(self.aux_weights, aux, strict=True))
            terms["aux"] = sum(aux)
        return terms
