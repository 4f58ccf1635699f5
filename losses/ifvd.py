"""Intra-class feature variation distillation (Wang et al., ECCV 2020).

The release of CIRKD runs ``kd=1,ifvd=20,adv=0.001``.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from losses.feature_maps import shrink_label
from utils.types import IGNORE_INDEX, Output


def compute_class_similarities(feat: Tensor, ids: Tensor, num_classes: int) -> Tensor:
    """Compute the cosine of every pixel with the mean of its class in its image, ``[B, h w]``; 1 without a class.

    feat: ``[B, C, h, w]``. ids: ``[B, h w]``; an id of num_classes or more is no class.
    """
    rows = feat.flatten(2).transpose(1, 2)
    image = torch.arange(len(ids), device=ids.device).unsqueeze(1)
    group = (ids.clamp(max=num_classes) + (num_classes + 1) * image).flatten()
    # A cosine is the same with the sum and with the mean, so the sum is not divided by the number of pixels.
    sums = rows.new_zeros(len(ids) * (num_classes + 1), feat.shape[1]).index_add(0, group, rows.flatten(0, 1))
    centre = torch.where((ids < num_classes).unsqueeze(2), sums.index_select(0, group).view_as(rows), rows)
    return F.cosine_similarity(rows, centre, dim=2)


def ifvd_loss(student: Tensor, teacher: Tensor, label: Tensor, num_classes: int = IGNORE_INDEX) -> Tensor:
    """Compute the mean squared difference of the pixels' similarities to their classes, as CIRKD's losses/ifvd.py.

    Features ``[B, C, h, w]``, each network with its own C; label ``[B, H, W]``. Pixels without a class add 0 to the sum
    and count in the mean. The teacher gets no gradient.
    """
    ids = shrink_label(label, student)
    s = compute_class_similarities(student, ids, num_classes)
    t = compute_class_similarities(teacher.detach(), ids, num_classes)
    return F.mse_loss(s, t)


class IFVD(nn.Module):
    """Apply ``ifvd_loss`` to the features."""

    def __init__(self, student_channels: int, teacher_channels: int, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes

    def forward(self, student: Output, teacher: Output, label: Tensor) -> Tensor:
        return ifvd_loss(student.feat, teacher.feat, label, self.num_classes)
