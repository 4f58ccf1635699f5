"""Channel-wise distillation (Shu et al., "Channel-wise Knowledge Distillation for Dense Prediction", ICCV 2021)."""

import torch.nn.functional as F
from torch import Tensor, nn

from utils.types import Output


def cwd_loss(student: Tensor, teacher: Tensor, tau: float = 4.0) -> Tensor:
    """tau^2 / (B C) * sum over images and channels of KL(p_T || p_S), p a softmax over the positions of a channel.

    As LAD's CriterionCWD with norm 'channel', divergence 'kl' (train_baseline.py:132-181), in log space. Shapes
    ``[B, C, h, w]``; the teacher gets no gradient.
    """
    log_s, log_t = (_log_softmax(x.flatten(2) / tau) for x in (student, teacher.detach()))
    channels = student.shape[0] * student.shape[1]
    return F.kl_div(log_s, log_t, reduction="sum", log_target=True) * (tau**2 / channels)


def _log_softmax(x: Tensor) -> Tensor:
    """Along the last dimension. ``F.log_softmax`` is off by 1e-5 and more on the CPU where there are many positions."""
    return x - x.logsumexp(-1, keepdim=True)


class CWD(nn.Module):
    """``cwd_loss`` on the logits. Options: tau."""

    def __init__(self, student_channels: int, teacher_channels: int, num_classes: int, tau: float = 4.0) -> None:
        super().__init__()
        self.tau = tau

    def forward(self, student: Output, teacher: Output, label: Tensor) -> Tensor:
        return cwd_loss(student.logits, teacher.logits, self.tau)
