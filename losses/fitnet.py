"""FitNets' hint (Romero et al., ICLR 2015, arXiv 1412.6550, eq. 3) with a 1x1 regressor."""

import torch.nn.functional as F
from torch import Tensor, nn

from utils.types import Output


def fitnet_loss(student: Tensor, teacher: Tensor, kernel: Tensor) -> Tensor:
    """Compute the mean squared difference of the mapped student features and the teacher's (CIRKD: losses/fitnet.py).

    student: ``[B, C_S, h, w]``. teacher: ``[B, C_T, h, w]``, gets no gradient. kernel: ``[C_T, C_S, 1, 1]`` of the 1x1
    convolution that maps the student.
    """
    return F.mse_loss(F.conv2d(student, kernel), teacher.detach())


class FitNet(nn.Module):
    """Apply ``fitnet_loss`` to the features. The kernel is learned, also where the channels are equal."""

    def __init__(self, student_channels: int, teacher_channels: int, num_classes: int) -> None:
        super().__init__()
        self.regressor = nn.Conv2d(student_channels, teacher_channels, 1, bias=False)

    def forward(self, student: Output, teacher: Output, label: Tensor) -> Tensor:
        return fitnet_loss(student.feat, teacher.feat, self.regressor.weight)
