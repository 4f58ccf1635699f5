"""DIST (Huang et al., "Knowledge Distillation from A Stronger Teacher", NeurIPS 2022) on pixels."""

import torch
from torch import Tensor, nn

from utils.types import Output


def _one_minus_pearson(a: Tensor, b: Tensor, dim: int) -> Tensor:
    """1 - mean over the other dimension of the Pearson correlation along ``dim``; eps 1e-8 as in the release."""
    a, b = a - a.mean(dim, keepdim=True), b - b.mean(dim, keepdim=True)
    # over all pixels the CPU's norm of float32 is a plain float32 sum, off by 1e-5 and more
    lengths = [torch.linalg.vector_norm(x, dim=dim, dtype=torch.float64).to(x.dtype) for x in (a, b)]
    return 1 - ((a * b).sum(dim) / (lengths[0] * lengths[1] + 1e-8)).mean()


def dist_loss(student: Tensor, teacher: Tensor, beta: float = 1.0, gamma: float = 1.0) -> Tensor:
    """beta * inter-class + gamma * intra-class correlation distance of the class probabilities of all pixels.

    Rows are the pixels of the batch at hand, columns the classes; no temperature, as LAD's copy
    (train_baseline.py:184-217). Shapes ``[B, K, h, w]``; the teacher gets no gradient.
    """
    rows_s = student.softmax(1).transpose(0, 1).flatten(1).t()
    rows_t = teacher.detach().softmax(1).transpose(0, 1).flatten(1).t()
    return beta * _one_minus_pearson(rows_s, rows_t, 1) + gamma * _one_minus_pearson(rows_s, rows_t, 0)


class DIST(nn.Module):
    """``dist_loss`` on the logits. Options: beta, gamma."""

    def __init__(
        self, student_channels: int, teacher_channels: int, num_classes: int, beta: float = 1.0, gamma: float = 1.0
    ) -> None:
        super().__init__()
        self.beta, self.gamma = beta, gamma

    def forward(self, student: Output, teacher: Output, label: Tensor) -> Tensor:
        return dist_loss(student.logits, teacher.logits, self.beta, self.gamma)
