"""Double similarity distillation (Feng et al., IEEE TIP 2021, arXiv 2107.08591): of pixels and of categories.

The release of CIRKD runs ``dsd=1``, with the inner weights 1000 and 10 and without ``kd``.
"""

from collections.abc import Sequence
from itertools import combinations

import torch.nn.functional as F
from torch import Tensor, nn

from losses.at import compute_attention
from utils.bilinear import resize
from utils.types import Output


def psd_loss(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """Compute the pixel-wise term: the squared difference of the residual attentions, averaged over pairs of maps.

    A residual attention is the difference of the attention maps of two layers, scaled to length 1. This is CIRKD's
    losses/dsd.py. Each network gives two or more maps ``[B, C, h, w]``, all of the same h and w, each with its own C.
    The teacher gets no gradient.
    """
    s = [compute_attention(x) for x in student]
    t = [compute_attention(x.detach()) for x in teacher]
    pairs = list(combinations(range(len(s)), 2))
    return sum(F.mse_loss(F.normalize(s[j] - s[i]), F.normalize(t[j] - t[i])) for i, j in pairs) / len(pairs)


def compute_category_similarities(logits: Tensor, tau: float) -> Tensor:
    """Compute how much each two classes overlap: ``[B, K, h, w] -> [B, K, K]``.

    A class is represented by its distribution over the positions, the softmax of its 2x2 average-pooled logits / tau.
    """
    distribution = (F.avg_pool2d(logits, 2, 2, ceil_mode=True).flatten(2) / tau).softmax(2)
    return distribution @ distribution.transpose(1, 2)


def csd_loss(student: Tensor, teacher: Tensor, tau: float = 4.0) -> Tensor:
    """Compute the category-wise term: the mean squared difference of the categories' similarities.

    Logits ``[B, K, h, w]``; the teacher gets no gradient.
    """
    s = compute_category_similarities(student, tau)
    t = compute_category_similarities(teacher.detach(), tau)
    return F.mse_loss(s, t)


class DSD(nn.Module):
    """Compute ``psd_loss`` on [auxiliary logits, features, logits] and ``csd_loss`` on the logits.

    Options: psd and csd, the inner weights; tau. The first auxiliary map takes part where both networks have one.
    Without it the release compares the logits with themselves as a third pair, so its pixel-wise term is 2/3 of this.
    """

    reads_aux = True  # the teacher's auxiliary maps must be computed

    def __init__(
        self,
        student_channels: int,
        teacher_channels: int,
        num_classes: int,
        psd: float = 1000.0,
        csd: float = 10.0,
        tau: float = 4.0,
    ) -> None:
        super().__init__()
        self.part_weights = {"psd": psd, "csd": csd}
        self.tau = tau

    def forward(self, student: Output, teacher: Output, label: Tensor) -> dict[str, Tensor]:
        maps = [(student.feat, teacher.feat), (student.logits, teacher.logits)]
        if student.aux and teacher.aux:
            maps.insert(0, (student.aux[0], teacher.aux[0]))
        size = student.feat.shape[-2:]
        s = [resize(ours, size) for ours, _ in maps]
        t = [resize(theirs, size) for _, theirs in maps]
        return {"psd": psd_loss(s, t), "csd": csd_loss(student.logits, teacher.logits, self.tau)}
