"""Cross-image relations within a mini-batch (CIRKD: Yang et al., CVPR 2022, arXiv 2204.06986)."""

from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from losses.maps import unit_rows
from utils.types import Output


def relation_kl(
    student: Tensor, student_contrasts: Tensor, teacher: Tensor, teacher_contrasts: Tensor, tau: float
) -> Tensor:
    """KL(p_T || p_S) of every anchor ``[N]``, p = softmax(anchor . contrasts / tau) over the contrasts.

    Unit vectors ``[N, C_S]``, ``[M, C_S]``, ``[N, C_T]``, ``[M, C_T]``. Only they are kept for the backward pass, which
    computes the N x M similarities again: these live for one call at a time, about seven matrices in all.
    """
    vectors = student, student_contrasts, teacher, teacher_contrasts
    return checkpoint(_relation_kl, *vectors, tau, use_reentrant=False, preserve_rng_state=False)


def _relation_kl(s: Tensor, s_contrasts: Tensor, t: Tensor, t_contrasts: Tensor, tau: float) -> Tensor:
    log_s = F.log_softmax(s @ s_contrasts.t() / tau, 1)
    log_t = F.log_softmax(t @ t_contrasts.t() / tau, 1)
    return F.kl_div(log_s, log_t, reduction="none", log_target=True).sum(1)


def cirkd_loss(student: Tensor, teacher: Tensor, tau: float = 0.1) -> Tensor:
    """1 / B^2 * sum over ordered image pairs (i, j) of the mean over pixels of i of KL(p_T || p_S) to the pixels of j.

    As CIRKD v1's CriterionMiniBatchCrossImagePair: ignored pixels included, no tau^2. Features ``[B, C, h, w]``, each
    with its own C; the teacher gets no gradient. The pairs are those of one process, as there, so the value depends on
    how the batch is split. Peak memory: about seven matrices of (h w)^2, whatever B; the time
    grows with B^2.
    """
    return pair_relations(unit_rows(student), unit_rows(teacher.detach()), tau)


def pair_relations(student: Tensor, teacher: Tensor, tau: float) -> Tensor:
    """Mean over ordered pairs of images of the mean ``relation_kl`` of unit vectors ``[B, N, C]``, each its own C."""
    pairs = product(range(len(student)), repeat=2)
    relations = [relation_kl(student[i], student[j], teacher[i], teacher[j], tau).mean() for i, j in pairs]
    return torch.stack(relations).mean()


class CIRKD(nn.Module):
    """``cirkd_loss`` on the features. Options: tau."""

    def __init__(self, student_channels: int, teacher_channels: int, num_classes: int, tau: float = 0.1) -> None:
        super().__init__()
        self.tau = tau

    def forward(self, student: Output, teacher: Output, label: Tensor) -> Tensor:
        return cirkd_loss(student.feat, teacher.feat, self.tau)
