"""Intra-class feature variation distillation (Wang et al., ECCV 2020).

CIRKD runs ``kd=1,ifvd=20,adv=0.001``.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from losses.maps import label_rows
from utils.types import IGNORE_INDEX, Output


def class_similarities(feat: Tensor, ids: Tensor, num_classes: int) -> Tensor:
    """Cosine of every pixel with its class's mean in its image; 1 where it has no class.

    feat ``[B, C, h, w]``; ids ``[B, h w]``, a class below num_classes. One scatter, no loop over classes.
    """
    rows = feat.flatten(2).transpose(1, 2)
    image = torch.arange(len(ids), device=ids.device).unsqueeze(1)
    group = (ids.clamp(max=num_classes) + (num_classes + 1) * image).flatten()
    # sums: a cosine does not see that they are not divided by the number of pixels
    sums = rows.new_zeros(len(ids) * (num_classes + 1), feat.shape[1]).index_add(0, group, rows.flatten(0, 1))
    centre = torch.where((ids < num_classes).unsqueeze(2), sums.index_select(0, group).view_as(rows), rows)
    return F.cosine_similarity(rows, centre, dim=2)


def ifvd_loss(student: Tensor, teacher: Tensor, label: Tensor, num_classes: int = IGNORE_INDEX) -> Tensor:
    """Mean over all pixels of the squared difference of the similarities, as CIRKD's losses/ifvd.py.

    Features ``[B, C, h, w]``, each with its own C; label ``[B, H, W]``, reduced by its nearest pixels. Pixels without a
    class add 0 to the sum and count in the mean. The teacher gets no gradient.
    """
    ids = label_rows(label, student)
    return F.mse_loss(*(class_similarities(feat, ids, num_classes) for feat in (student, teacher.detach())))


class IFVD(nn.Module):
    """``ifvd_loss`` on the features."""

    def __init__(self, student_channels: int, teacher_channels: int, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes

    def forward(self, student: Output, teacher: Output, label: Tensor) -> Tensor:
        return ifvd_loss(student.feat, teacher.feat, label, self.num_classes)
