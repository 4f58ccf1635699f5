"""FitNets' hint (Romero et al., ICLR 2015, arXiv 1412.6550, eq. 3) with a 1x1 regressor."""

import torch.nn.functional as F
from torch import Tensor, nn

from utils.types import Output


def fitnet_loss(regressed: Tensor, teacher: Tensor) -> Tensor:
    """Compute the mean squared difference of the regressed features and the teacher's (CIRKD: losses/fitnet.py).

    regressed: what the regressor makes of the student's features, ``[B, C_T, h, w]``. teacher: ``[B, C_T, h, w]``, gets
    no gradient.
    """
    return F.mse_loss(regressed, teacher.detach())


class FitNet(nn.Module):
    """Apply ``fitnet_loss`` to the features. The regressor is learned, also where the channels are equal."""

    def __init__(self, student_channels: int, teacher_channels: int, num_classes: int) -> None:
        super().__init__()
        self.regressor = nn.Conv2d(student_channels, teacher_channels, 1, bias=False)

    def forward(self, student: Output, teacher: Output, label: Tensor) -> Tensor:
        return fitnet_loss(self.regressor(student.feat), teacher.feat)
