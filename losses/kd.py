"""Pixel-wise knowledge distillation (Hinton et al., arXiv 1503.02531; Liu et al., CVPR 2019)."""

import torch.nn.functional as F
from torch import Tensor, nn

from utils.types import Output


def kd_loss(student: Tensor, teacher: Tensor, tau: float = 1.0) -> Tensor:
    """Compute tau^2 * the mean over pixels of KL(softmax(teacher / tau) || softmax(student / tau)).

    This is CIRKD's CriterionKD (losses/kd.py, tau 1). LAD's commented-out form has tau 4 and no factor tau^2. Logits
    ``[B, K, h, w]``; the teacher gets no gradient.
    """
    log_s = F.log_softmax(student / tau, 1)
    log_t = F.log_softmax(teacher.detach() / tau, 1)
    pixels = student.numel() // student.shape[1]
    return F.kl_div(log_s, log_t, reduction="sum", log_target=True) * (tau**2 / pixels)


class KD(nn.Module):
    """Apply ``kd_loss`` to the logits. Options: tau."""

    reads_feat = False

    def __init__(self, student_channels: int, teacher_channels: int, num_classes: int, tau: float = 1.0) -> None:
        super().__init__()
        self.tau = tau

    def forward(self, student: Output, teacher: Output, label: Tensor) -> Tensor:
        return kd_loss(student.logits, teacher.logits, self.tau)
