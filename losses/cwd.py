"""Channel-wise distillation (Shu et al., "Channel-wise Knowledge Distillation for Dense Prediction", ICCV 2021)."""

import torch.nn.functional as F
from torch import Tensor, nn

from utils.types import Output


def cwd_loss(student: Tensor, teacher: Tensor, tau: float = 4.0) -> Tensor:
    """Compute tau^2 / (B C) * the sum over images and channels of KL(p_T || p_S).

    p is the softmax over the positions of a channel. This is LAD's CriterionCWD with norm 'channel' and divergence
    'kl' (train_baseline.py:132-181), computed in log space. Shapes ``[B, C, h, w]``; the teacher gets no gradient.
    """
    log_s = _log_softmax(student.flatten(2) / tau)
    log_t = _log_softmax(teacher.detach().flatten(2) / tau)
    channels = student.shape[0] * student.shape[1]
    return F.kl_div(log_s, log_t, reduction="sum", log_target=True) * (tau**2 / channels)


def _log_softmax(x: Tensor) -> Tensor:
    """Compute the log softmax along the last dimension.

    On the CPU ``F.log_softmax`` has errors of 1e-5 and more where there are many positions.
    """
    return x - x.logsumexp(-1, keepdim=True)


class CWD(nn.Module):
    """Apply ``cwd_loss`` to the logits. Options: tau."""

    reads_feat = False

    def __init__(self, student_channels: int, teacher_channels: int, num_classes: int, tau: float = 4.0) -> None:
        super().__init__()
        self.tau = tau

    def forward(self, student: Output, teacher: Output, label: Tensor) -> Tensor:
        return cwd_loss(student.logits, teacher.logits, self.tau)
