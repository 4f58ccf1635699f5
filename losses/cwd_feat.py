"""Channel-wise distillation of features (Shu et al., ICCV 2021, arXiv 2011.13256).

The release of CIRKD runs ``kd=1,cwd_feat=50,cwd=3,adv=0.001``.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from losses.cwd import cwd_loss
from losses.feature_maps import build_alignment
from utils.types import Output


def cwd_feat_loss(student: Tensor, teacher: Tensor, kernel: Tensor | None = None, tau: float = 4.0) -> Tensor:
    """Compute ``cwd_loss`` of the mapped student features, divided by B C_S instead of B C_T.

    student: ``[B, C_S, h, w]``. teacher: ``[B, C_T, h, w]``, gets no gradient. kernel: ``[C_T, C_S, 1, 1]`` of a 1x1
    convolution that maps the student, where the channels differ.

    The paper divides by the channels that are compared. CIRKD's losses/cwd.py counts the channels before its
    convolution, and the published weight 50 goes with that.
    """
    mapped = student if kernel is None else F.conv2d(student, kernel)
    return cwd_loss(mapped, teacher, tau) * (teacher.shape[1] / student.shape[1])


class CWDFeat(nn.Module):
    """Apply ``cwd_feat_loss`` with a learned kernel, or with none where the channels are equal. Options: tau."""

    def __init__(self, student_channels: int, teacher_channels: int, num_classes: int, tau: float = 4.0) -> None:
        super().__init__()
        self.tau = tau
        self.align = build_alignment(student_channels, teacher_channels)

    def forward(self, student: Output, teacher: Output, label: Tensor) -> Tensor:
        kernel = None if self.align is None else self.align.weight
        return cwd_feat_loss(student.feat, teacher.feat, kernel, self.tau)
