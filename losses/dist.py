"""DIST (Huang et al., "Knowledge Distillation from A Stronger Teacher", NeurIPS 2022), applied to pixels."""

import torch
from torch import Tensor, nn

from utils.types import Output


def _one_minus_pearson(a: Tensor, b: Tensor, dim: int) -> Tensor:
    """Compute 1 - the mean Pearson correlation along ``dim`` of two matrices; eps is 1e-8 as in the release."""
    a = a - a.mean(dim, keepdim=True)
    b = b - b.mean(dim, keepdim=True)
    # float64: on the CPU the float32 norm over all pixels has errors of 1e-5 and more
    length_a = torch.linalg.vector_norm(a, dim=dim, dtype=torch.float64).to(a.dtype)
    length_b = torch.linalg.vector_norm(b, dim=dim, dtype=torch.float64).to(b.dtype)
    return 1 - ((a * b).sum(dim) / (length_a * length_b + 1e-8)).mean()


def dist_loss(student: Tensor, teacher: Tensor, beta: float = 1.0, gamma: float = 1.0) -> Tensor:
    """Compute beta * the inter-class + gamma * the intra-class correlation distance of the class probabilities.

    The matrices that are correlated have a row for each pixel of this rank's batch and a column for each class. There
    is no temperature, as in LAD's copy (train_baseline.py:184-217). Logits ``[B, K, h, w]``; the teacher gets no
    gradient.
    """
    rows_s = student.softmax(1).transpose(0, 1).flatten(1).t()
    rows_t = teacher.detach().softmax(1).transpose(0, 1).flatten(1).t()
    return beta * _one_minus_pearson(rows_s, rows_t, 1) + gamma * _one_minus_pearson(rows_s, rows_t, 0)


class DIST(nn.Module):
    """Apply ``dist_loss`` to the logits. Options: beta, gamma."""

    reads_feat = False

    def __init__(
        self, student_channels: int, teacher_channels: int, num_classes: int, beta: float = 1.0, gamma: float = 1.0
    ) -> None:
        super().__init__()
        self.beta = beta
        self.gamma = gamma

    def forward(self, student: Output, teacher: Output, label: Tensor) -> Tensor:
        return dist_loss(student.logits, teacher.logits, self.beta, self.gamma)
