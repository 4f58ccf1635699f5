"""The supervised loss: cross entropy, OHEM, Dice or STDC's boundary loss of logits upsampled to label size."""

from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from losses.upsampled_cross_entropy import upsampled_cross_entropy
from utils.distributed import all_reduce
from utils.errors import UserError, require_known
from utils.precision import widen_to_float32
from utils.types import IGNORE_INDEX, Output, Supervision


def compute_avg_factor(label: Tensor, class_weights: Tensor | None = None) -> Tensor:
    """Return the number of labelled pixels of the global batch over the world size: float32, on the device.

    MMSegmentation calls the divisor of a sum over pixels ``avg_factor``, too.

    When each rank divides its sum over pixels by this number, the mean of the ranks' gradients is the gradient of the
    mean over the global batch. Every rank must call this, because the ranks add up their counts.

    class_weights: ``[K]``; each pixel then counts as the weight of its class, which gives a weighted mean.
    """
    labelled = label != IGNORE_INDEX
    if class_weights is None:
        count = labelled.sum(dtype=torch.float32)
    else:
        weights = class_weights[label.long().masked_fill(~labelled, 0)]
        count = weights.masked_fill(~labelled, 0).sum(dtype=torch.float32)
    return all_reduce(count, "mean")


def cross_entropy(
    logits: Tensor,
    label: Tensor,
    align_corners: bool,
    smoothing: float = 0.0,
    avg_factor: Tensor | None = None,
    class_weights: Tensor | None = None,
) -> Tensor:
    """Average the cross entropy of bilinearly upsampled logits over the labelled pixels (LAD, CIRKD: losses/task).

    logits ``[B, K, h, w]``, label ``[B, H, W]``. The mean is over the labelled pixels of the global batch. For that,
    each rank divides its sum by ``compute_avg_factor(label)``. The mean of the ranks' gradients is then the gradient
    of one process. A batch without a labelled pixel has loss 0.

    class_weights w ``[K]``: the loss is the weighted mean, sum(w_y * loss) / sum(w_y), as of ``F.cross_entropy``. With
    weights, ``avg_factor`` must be ``compute_avg_factor(label, class_weights)``.
    """
    total = upsampled_cross_entropy(logits, label, align_corners, smoothing, class_weights)
    if avg_factor is None:
        avg_factor = compute_avg_factor(label, class_weights)
    return total / torch.where(avg_factor > 0, avg_factor, 1)


def _upsample(logits: Tensor, label: Tensor, align_corners: bool) -> Tensor:
    """Interpolate logits to label size, at least in float32."""
    return F.interpolate(widen_to_float32(logits), label.shape[-2:], mode="bilinear", align_corners=align_corners)


def ohem_loss(
    logits: Tensor,
    label: Tensor,
    align_corners: bool,
    threshold: float = 0.7,
    min_kept: int = 10_000,
    smoothing: float = 0.0,
    class_weights: Tensor | None = None,
) -> Tensor:
    """Sum the cross entropy of hard pixels and divide by the number of all pixels (MMSegmentation: OHEMPixelSampler).

    A pixel is hard if the probability of its true class is below ``threshold``. If there are fewer of these than
    ``min_kept`` * B, about so many of the hardest labelled pixels are taken (see ``select_hard_pixels``). Label
    smoothing and class weights do not change which pixels are hard.

    logits ``[B, K, h, w]``, label ``[B, H, W]`` of one rank. class_weights ``[K]``: factors of the pixels' losses; the
    sum is still divided by the number of all pixels.
    """
    logits = _upsample(logits, label, align_corners)
    loss = F.cross_entropy(logits, label, ignore_index=IGNORE_INDEX, reduction="none")
    hard = select_hard_pixels(loss.detach(), label, threshold, min_kept * len(label))
    if smoothing or class_weights is not None:
        if class_weights is not None:
            class_weights = class_weights.to(logits.dtype)
        loss = F.cross_entropy(
            logits,
            label,
            weight=class_weights,
            ignore_index=IGNORE_INDEX,
            reduction="none",
            label_smoothing=smoothing,
        )
    return (loss * hard).mean()


def select_hard_pixels(loss: Tensor, label: Tensor, threshold: float, min_kept: int) -> Tensor:
    """Find the labelled pixels whose true class has a probability below OHEM's limit; boolean ``[B, H, W]``.

    loss: the cross entropy of each pixel, ``[B, H, W]``; the probability is exp(-loss).

    The limit is ``threshold``, or the probability at rank ``min_kept`` (from 0) if that is higher. If there are fewer
    labelled pixels, the highest probability takes the place of the latter. All numbers stay on the device, so that the
    host does not wait.
    """
    labelled = label != IGNORE_INDEX
    probability = (-loss).exp().masked_fill(~labelled, torch.inf)
    count = min(min_kept + 1, probability.numel())
    kept_limit = probability.flatten().topk(count, largest=False, sorted=False).values.amax()  # kthvalue: slow on CUDA
    highest = probability.masked_fill(~labelled, -torch.inf).amax()
    limit = torch.where(kept_limit.isinf(), highest, kept_limit)  # infinite: at most min_kept labelled pixels
    limit = limit.clamp(min=threshold)
    return labelled & (probability < limit)


def find_boundaries(label: Tensor) -> Tensor:
    """Find the boundaries of a label map ``[B, H, W]``: pixels whose Laplacian at stride 1 or at stride 2 is positive.

    STDC fuses binary maps a, b, c of strides 1, 2 and 4 as 0.6 a + 0.3 b + 0.1 c > 0.1. Map c alone never meets that,
    so it is left out. The Laplacian is that of the raw ids, so the border of an ignored region (255) is a boundary,
    too.
    """
    with torch.autocast(label.device.type, enabled=False):
        ids = label.float().unsqueeze(1)
        kernel = ids.new_full((1, 1, 3, 3), -1)
        kernel[..., 1, 1] = 8
        fine, coarse = (F.conv2d(ids, kernel, stride=stride, padding=1) > 0.1 for stride in (1, 2))
        return (fine | (F.interpolate(coarse.float(), label.shape[-2:]) > 0)).squeeze(1)


def detail_loss(logits: Tensor, label: Tensor, align_corners: bool) -> Tensor:
    """Compute STDC's boundary loss: binary cross entropy plus Dice of 2-channel logits (not boundary, boundary).

    logits ``[B, 2, h, w]``, label ``[B, H, W]`` of one rank.
    """
    logits = _upsample(logits, label, align_corners)
    target = F.one_hot(find_boundaries(label).long(), 2).permute(0, 3, 1, 2).to(logits)
    return F.binary_cross_entropy_with_logits(logits, target) + binary_dice_loss(logits.sigmoid(), target)


def binary_dice_loss(probability: Tensor, target: Tensor, smooth: float = 1e-3) -> Tensor:
    """Average ``1 - 2 p.t / (p.p + t.t)`` over the samples. ``smooth`` is added to p.p and to t.t."""
    p = probability.flatten(1)
    t = target.flatten(1)
    return (1 - 2 * (p * t).sum(1) / ((p * p).sum(1) + (t * t).sum(1) + 2 * smooth)).mean()


def dice_loss(logits: Tensor, label: Tensor, align_corners: bool) -> Tensor:
    """Average ``1 - 2 sum(p t) / (sum(p^2) + sum(t))`` over the classes in the batch of this rank.

    This is V-Net's Dice loss (Milletari et al., 3DV 2016, arXiv 1606.04797, equation in section 3), of each class
    against the rest. p is the softmax, t the one-hot label; the sums are over the labelled pixels of all images. A
    class without a pixel is left out, as it has no overlap to ask for.

    logits ``[B, K, h, w]``, label ``[B, H, W]`` of one rank. There are no class weights: every class counts alike
    already, however few pixels it has.
    """
    logits = _upsample(logits, label, align_corners)
    label = label.unsqueeze(1)
    p = logits.softmax(1) * (label != IGNORE_INDEX)
    t = label == torch.arange(logits.shape[1], device=label.device).view(1, -1, 1, 1)
    overlap = (p * t).sum((0, 2, 3))
    predicted = (p * p).sum((0, 2, 3))
    labelled = t.sum((0, 2, 3))
    present = labelled > 0
    return ((1 - 2 * overlap / (predicted + labelled).clamp(min=1)) * present).sum() / present.sum().clamp(min=1)


CRITERIA: dict[str, Callable[..., Tensor]] = {
    "ce": cross_entropy,
    "ohem": ohem_loss,
    "dice": dice_loss,
    "detail": detail_loss,
}
CLASS_CRITERIA = ("ce", "ohem", "dice")  # the losses of classes, which --task-loss may name
PIXEL_CRITERIA = ("ce", "ohem")  # sums over pixels, which label smoothing and class weights apply to


class TaskLoss(nn.Module):
    """Compute the main loss plus weighted auxiliary losses, each logit map supervised as the network says.

    aux_weight: replaces the weights of the network's auxiliary maps (LAD: 0.4 for the teacher, 0.02 for the student).
    label_smoothing: of cross entropy and OHEM.
    criterion: one of CLASS_CRITERIA, or a sum such as "ce+dice"; it replaces the network's own criterion on every map
    of classes.
    ignored_in_mean: divide the cross entropy by the number of all pixels, not by the number or the weight of the
    labelled ones (MMSegmentation's ``avg_non_ignore=False``). OHEM does so in any case.
    class_weights: K numbers for cross entropy and OHEM, on every map of classes.

    Raises:
        UserError: a criterion is unknown or given twice, or there are class weights or label smoothing and the main
            map has no criterion that takes them.
    """

    def __init__(
        self,
        supervision: Sequence[Supervision],
        aux_weight: float | None = None,
        label_smoothing: float = 0.0,
        criterion: str = "",
        ignored_in_mean: bool = False,
        class_weights: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        self.label_smoothing = label_smoothing
        self.ignored_in_mean = ignored_in_mean
        if criterion:
            supervision = _replace_criterion(supervision, criterion)
        self.supervision = tuple(supervision)
        self.criteria = tuple(_split_criteria(item.kind, CRITERIA, "criterion") for item in self.supervision)
        self.aux_weights = tuple(s.weight if aux_weight is None else aux_weight for s in self.supervision[1:])
        weights = None if class_weights is None else torch.tensor(class_weights, dtype=torch.float32)
        if not set(self.criteria[0]) & set(PIXEL_CRITERIA):
            kind = self.supervision[0].kind
            if weights is not None:
                reason = "every class has the same weight in it already"
                raise UserError(f"--class-weights has no effect on the task loss {kind}: {reason}")
            if label_smoothing:
                raise UserError(f"--label-smoothing has no effect on the task loss {kind}: leave it out")
        # not persistent: the setting holds them, and runs of before there were weights have no such key
        self.register_buffer("class_weights", weights, persistent=False)

    def compute_avg_factor(self, label: Tensor) -> Tensor:
        """Return the ``avg_factor`` of a batch in one part. ``label`` is this rank's share of the batch.

        This is ``losses.task.compute_avg_factor`` with the class weights. Every rank must call it.
        """
        return compute_avg_factor(label, self.class_weights)

    def forward(
        self, output: Output, label: Tensor, avg_factor: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return main + sum of weight * auxiliary, and the terms ``{"ce": main, "aux": unweighted auxiliary sum}``.

        A network without auxiliary maps has no term "aux".

        label: ``[B, H, W]``.
        avg_factor: the divisor of the sum of the cross entropy over the pixels of ``label``. It is the number of
        labelled pixels of the global batch (with class weights, their weight) / world size / parts of the batch. There
        are several parts where gradients are accumulated. None: ``self.compute_avg_factor(label)``, for which the
        ranks wait for each other. With ``ignored_in_mean`` the divisor is the number of pixels of ``label`` instead.

        Raises:
            UserError: the number of class weights is not the number of classes.
        """
        if self.class_weights is not None and len(self.class_weights) != output.logits.shape[1]:
            raise UserError(f"{len(self.class_weights)} class weights for {output.logits.shape[1]} classes")
        if avg_factor is None:
            avg_factor = self.compute_avg_factor(label)
        if self.ignored_in_mean:
            avg_factor = torch.full_like(avg_factor, label.numel())
        maps = (output.logits, *output.aux)
        losses = [
            self._compute_loss(criteria, supervision.align_corners, logits, label, avg_factor)
            for criteria, supervision, logits in zip(self.criteria, self.supervision, maps, strict=True)
        ]
        main = losses[0]
        auxiliary = losses[1:]
        if not auxiliary:
            return main, {"ce": main}
        weighted = sum(w * a for w, a in zip(self.aux_weights, auxiliary, strict=True))
        return main + weighted, {"ce": main, "aux": sum(auxiliary)}

    def _compute_loss(
        self, criteria: Sequence[str], align_corners: bool, logits: Tensor, label: Tensor, avg_factor: Tensor
    ) -> Tensor:
        """Sum the criteria of one logit map."""
        losses = []
        for kind in criteria:
            options: dict[str, Any] = {}
            if kind in PIXEL_CRITERIA:
                options |= {"smoothing": self.label_smoothing, "class_weights": self.class_weights}
            if kind == "ce":
                options["avg_factor"] = avg_factor
            losses.append(CRITERIA[kind](logits, label, align_corners, **options))
        return sum(losses)


def _replace_criterion(supervision: Sequence[Supervision], criterion: str) -> list[Supervision]:
    """Give every map of classes the criterion of ``--task-loss``.

    Raises:
        UserError: the criterion is not a sum of CLASS_CRITERIA.
    """
    _split_criteria(criterion, CLASS_CRITERIA, "loss in --task-loss")
    return [s._replace(kind=criterion) if s.kind in CLASS_CRITERIA else s for s in supervision]


def _split_criteria(text: str, known: Collection[str], what: str) -> tuple[str, ...]:
    """Split a sum of criteria, such as "ce+dice", into its parts.

    what: the noun for a part, for the message.

    Raises:
        UserError: a part is not in ``known``, or given twice.
    """
    parts = tuple(text.split("+"))
    for part in parts:
        require_known(part, known, what)
        if parts.count(part) > 1:
            raise UserError(f"{what} {part!r} is given twice in {text}")
    return parts
