"""Relations to memories of pixels and regions (CIRKD: Yang et al., CVPR 2022, arXiv 2204.06986).

The memories hold unit vectors of the teacher, a ring of slots for each class, and start as random directions. Every
iteration stores keys of the global batch, image by image, and then compares all labelled pixels of student and teacher
with the same random slots. As CIRKD v1's cirkd_memory.py, but for:

- a class stores pixels of its own; the release's index picks pixels of any class from the top rows of the map, as
  ``as_released=1`` does, with which CIRKD's published numbers were made;
- a full ring continues at its start; the release then overwrites its last slots and begins again;
- a batch without labelled pixels has loss 0, and one process without a group works.
"""

from collections.abc import Iterable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from losses.cirkd import relation_kl
from losses.maps import label_rows, unit_rows
from losses.rings import Rings, enqueue, projector, whole
from utils.distributed import all_gather_cat, all_reduce
from utils.types import IGNORE_INDEX, Output


def region_keys(feat: Tensor, member: Tensor) -> tuple[Tensor, Tensor]:
    """The mean direction of each class in each image ``[B, K, 1, C]``, and whether it is there ``[B, K, 1]``.

    feat: unit vectors ``[B, N, C]``; member: whether a pixel is of a class, ``[B, K, N]``.
    """
    return F.normalize(member.to(feat) @ feat, dim=2).unsqueeze(2), member.any(2, keepdim=True)


def pixel_keys(feat: Tensor, member: Tensor, per_image: int, as_released: bool = False) -> tuple[Tensor, Tensor]:
    """Up to ``per_image`` random pixels of each class in each image ``[B, K, V, C]``, and what is there ``[B, K, V]``.

    Arguments as ``region_keys``; the choice follows torch's global random state. as_released: of a class with n pixels
    they are drawn from the map's first n pixels, whatever these show.
    """
    if as_released:
        member = torch.arange(feat.shape[1], device=feat.device) < member.sum(2, keepdim=True)
    score = torch.rand(feat.shape[:2], device=feat.device).unsqueeze(1)
    best, index = torch.where(member, score, -1.0).topk(min(per_image, feat.shape[1]), 2)
    image = torch.arange(len(feat), device=feat.device).view(-1, 1, 1)
    return feat[image, index], best >= 0


def memory_loss(student: Tensor, teacher: Tensor, contrasts: Tensor, labelled: Tensor, tau: float = 0.1) -> Tensor:
    """Mean over labelled pixels of KL(p_T || p_S), p = softmax(pixel . contrasts / tau); no tau^2.

    student, teacher: unit vectors ``[B, N, C]``; contrasts ``[M, C]``; labelled ``[B, N]``. The mean is over the global
    batch (see losses.task.cross_entropy), of ``--accumulate`` over each part. Peak memory: of ``relation_kl``.
    """
    rows = [relation_kl(s, contrasts, t, contrasts, tau) for s, t in zip(student, teacher.detach(), strict=True)]
    total = torch.stack(rows).masked_fill(~labelled, 0).sum()
    count = all_reduce(labelled.sum(dtype=total.dtype), "mean")
    return total / torch.where(count > 0, count, 1)


class CIRKDRegion(Rings):
    """``memory_loss`` to ``region_keys``: a ring of keys for each class, a projector from student to teacher features.

    Options: tau, size (slots a class), contrasts (divided by the classes, plus one, it is the number of slots of every
    class that an iteration compares with).

    Raises UserError: a size or count that is no positive whole number, or too large for the memory.
    """

    def __init__(
        self,
        student_channels: int,
        teacher_channels: int,
        num_classes: int,
        tau: float = 0.1,
        size: float = 2000,
        contrasts: float = 1024,
    ) -> None:
        project = projector(student_channels, teacher_channels)
        super().__init__(num_classes, whole("size", size), teacher_channels)
        self.projector, self.keys = project, region_keys
        self.tau, self.contrasts = tau, whole("contrasts", contrasts) // num_classes + 1

    def forward(self, student: Output, teacher: Output, label: Tensor) -> Tensor:
        """Label ``[B, H, W]``, reduced to the size of the features by its nearest pixels. Eval mode stores nothing."""
        ids, target = label_rows(label, student.feat), unit_rows(teacher.feat.detach())
        if self.training:
            self.remember(target, ids)
        projected = unit_rows(self.projector(student.feat))
        return memory_loss(projected, target, self.draw(self.contrasts), ids != IGNORE_INDEX, self.tau)

    @torch.no_grad()
    def remember(self, feat: Tensor, ids: Tensor) -> None:
        """Keys are chosen in the process that has the image and then gathered: every process stores the same."""
        classes = torch.arange(len(self.queue), device=ids.device)
        keys, valid = self.keys(feat, ids.unsqueeze(1) == classes.view(1, -1, 1))
        enqueue(self.queue, self.pointer, all_gather_cat(keys), all_gather_cat(valid))


class CIRKDPixel(CIRKDRegion):
    """``memory_loss`` to ``pixel_keys``. The queue takes 430 MB for the pixels of VOC with the release's teacher.

    Options: those of ``CIRKDRegion``, per_image (new pixels of a class an image), as_released (0 or 1).
    """

    def __init__(
        self,
        student_channels: int,
        teacher_channels: int,
        num_classes: int,
        tau: float = 0.1,
        size: float = 20_000,
        contrasts: float = 4096,
        per_image: float = 16,
        as_released: float = 0,
    ) -> None:
        super().__init__(student_channels, teacher_channels, num_classes, tau, size, contrasts)
        self.keys = partial(pixel_keys, per_image=whole("per_image", per_image), as_released=bool(as_released))


def share_projector(losses: Iterable[nn.Module]) -> None:
    """Give all memory losses the projector of the first: in CIRKD both memories see the same projected pixels."""
    memories = [loss for loss in losses if isinstance(loss, CIRKDRegion)]
    for memory in memories[1:]:
        memory.projector = memories[0].projector
