"""Double similarity distillation (Feng et al., IEEE TIP 2021, arXiv 2107.08591): where, and which classes together.

CIRKD runs it with inner weights 1000 and 10 and without ``kd``: ``dsd=1``.
"""

from collections.abc import Sequence
from itertools import combinations

import torch.nn.functional as F
from torch import Tensor, nn

from losses.at import attention
from utils.bilinear import resize
from utils.types import Output


def psd_loss(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """Pixel-wise: mean over pairs of maps of the squared difference of the normalised residual attentions.

    As CIRKD's losses/dsd.py. Two or more maps ``[B, C, h, w]``, each with its own C, all of one h, w; those of the
    teacher get no gradient.
    """
    s, t = [attention(x) for x in student], [attention(x.detach()) for x in teacher]
    pairs = list(combinations(range(len(s)), 2))
    return sum(F.mse_loss(F.normalize(s[j] - s[i]), F.normalize(t[j] - t[i])) for i, j in pairs) / len(pairs)


def category_similarities(logits: Tensor, tau: float) -> Tensor:
    """Products of the classes' distributions over the 2x2 pooled (ceil) positions: ``[B, K, h, w] -> [B, K, K]``."""
    spread = (F.avg_pool2d(logits, 2, 2, ceil_mode=True).flatten(2) / tau).softmax(2)
    return spread @ spread.transpose(1, 2)


def csd_loss(student: Tensor, teacher: Tensor, tau: float = 4.0) -> Tensor:
    """Category-wise: mean squared difference of the similarities of logits ``[B, K, h, w]``; no teacher gradient."""
    return F.mse_loss(category_similarities(student, tau), category_similarities(teacher.detach(), tau))


class DSD(nn.Module):
    """Both, on [auxiliary logits, features, logits]. Options: psd, csd (inner weights), tau.

    The first auxiliary map takes part where both networks have one; without it the release compares the logits with
    themselves as a third pair, which makes its pixel-wise term 2/3 of this one.
    """

    reads_aux = True  # of the teacher

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
        self.part_weights, self.tau = {"psd": psd, "csd": csd}, tau

    def forward(self, student: Output, teacher: Output, label: Tensor) -> dict[str, Tensor]:
        shared, size = min(1, len(student.aux), len(teacher.aux)), student.feat.shape[-2:]
        s, t = ([resize(m, size) for m in (*o.aux[:shared], o.feat, o.logits)] for o in (student, teacher))
        return {"psd": psd_loss(s, t), "csd": csd_loss(student.logits, teacher.logits, self.tau)}
