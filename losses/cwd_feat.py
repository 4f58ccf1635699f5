"""Channel-wise distillation of features (Shu et al., ICCV 2021, arXiv 2011.13256).

The release of CIRKD runs ``kd=1,cwd_feat=50,cwd=3,adv=0.001``.
"""

from torch import Tensor, nn

from losses.cwd import cwd_loss
from losses.feature_maps import build_alignment
from utils.types import Output


def cwd_feat_loss(aligned: Tensor, teacher: Tensor, student_channels: int, tau: float = 4.0) -> Tensor:
    """Compute ``cwd_loss`` of the aligned student features, divided by B C_S instead of B C_T.

    aligned: the student's features with the teacher's number of channels, ``[B, C_T, h, w]``. teacher:
    ``[B, C_T, h, w]``, gets no gradient. student_channels: C_S, the channels before the alignment.

    The paper divides by the channels that are compared. CIRKD's losses/cwd.py counts the channels before its
    convolution, and the published weight 50 goes with that.
    """
    return cwd_loss(aligned, teacher, tau) * (teacher.shape[1] / student_channels)


class CWDFeat(nn.Module):
    """Apply ``cwd_feat_loss``, with a learned 1x1 convolution where the channels differ. Options: tau."""

    def __init__(self, student_channels: int, teacher_channels: int, num_classes: int, tau: float = 4.0) -> None:
        super().__init__()
        self.tau = tau
        self.align = build_alignment(student_channels, teacher_channels)

    def forward(self, student: Output, teacher: Output, label: Tensor) -> Tensor:
        return cwd_feat_loss(self.align(student.feat), teacher.feat, student.feat.shape[1], self.tau)
