"""Cross-image relations within a mini-batch (CIRKD: Yang et al., CVPR 2022, arXiv 2204.06986)."""

from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from losses.feature_maps import normalise_pixels
from utils.types import Output


def relation_kl(
    student: Tensor, student_contrasts: Tensor, teacher: Tensor, teacher_contrasts: Tensor, tau: float
) -> Tensor:
    """Compute KL(p_T || p_S) for each anchor, ``[N]``, where p = softmax(anchor . contrasts / tau) over the contrasts.

    All arguments are unit vectors: anchors ``[N, C_S]`` and ``[N, C_T]``, contrasts ``[M, C_S]`` and ``[M, C_T]``.
    Activation checkpointing keeps only these vectors for the backward pass and computes the N x M similarities again.
    The peak is about seven N x M matrices, of one call at a time.
    """
    vectors = (student, student_contrasts, teacher, teacher_contrasts)
    return checkpoint(_relation_kl, *vectors, tau, use_reentrant=False, preserve_rng_state=False)


def _relation_kl(s: Tensor, s_contrasts: Tensor, t: Tensor, t_contrasts: Tensor, tau: float) -> Tensor:
    """Compute ``relation_kl`` without checkpointing."""
    log_s = F.log_softmax(s @ s_contrasts.t() / tau, 1)
    log_t = F.log_softmax(t @ t_contrasts.t() / tau, 1)
    return F.kl_div(log_s, log_t, reduction="none", log_target=True).sum(1)


def average_over_image_pairs(student: Tensor, teacher: Tensor, tau: float) -> Tensor:
    """Average ``relation_kl`` over all ordered pairs of images: anchors of one image, contrasts of the other.

    student ``[B, N, C_S]`` and teacher ``[B, N, C_T]`` are unit vectors. The mean is over the anchors, then the pairs.
    """
    relations = []
    for i, j in product(range(len(student)), repeat=2):
        relations.append(relation_kl(student[i], student[j], teacher[i], teacher[j], tau).mean())
    return torch.stack(relations).mean()


def cirkd_loss(student: Tensor, teacher: Tensor, tau: float = 0.1) -> Tensor:
    """Compute 1 / B^2 * sum over ordered image pairs (i, j) of the mean over pixels of i of KL(p_T || p_S).

    p is the softmax over the pixels of j of their cosines with a pixel of i, divided by tau. As in CIRKD v1
    (CriterionMiniBatchCrossImagePair), ignored pixels take part and there is no factor tau^2.

    Features ``[B, C, h, w]``, each network with its own C; the teacher gets no gradient. The pairs are those of one
    rank, as in the release, so the value depends on how the batch is split. The peak memory is about seven matrices of
    (h w)^2 whatever B is; the time grows with B^2.
    """
    return average_over_image_pairs(normalise_pixels(student), normalise_pixels(teacher.detach()), tau)


class CIRKD(nn.Module):
    """Apply ``cirkd_loss`` to the features. Options: tau."""

    def __init__(self, student_channels: int, teacher_channels: int, num_classes: int, tau: float = 0.1) -> None:
        super().__init__()
        self.tau = tau

    def forward(self, student: Output, teacher: Output, label: Tensor) -> Tensor:
        return cirkd_loss(student.feat, teacher.feat, self.tau)
