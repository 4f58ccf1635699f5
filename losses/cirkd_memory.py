"""Relations to queues of pixels and of regions (CIRKD: Yang et al., CVPR 2022, arXiv 2204.06986).

The queues hold unit vectors of the teacher, S slots for each class. Every iteration first stores keys of the global
batch, image by image. Then it compares all labelled pixels of student and teacher with the same random slots.

The release is CIRKD v1's losses/cirkd_memory.py. Three things differ from it:

- A class stores its own pixels. The release has an indexing error: it stores pixels of any class, from the top rows of
  the map. CIRKD's published numbers were made with that, and ``as_released=1`` does the same.
- A full ring buffer continues at its start. The release overwrites its last slots and then begins again.
- A batch without labelled pixels has loss 0, and a single process needs no process group.
"""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from losses.cirkd import relation_kl
from losses.feature_maps import normalise_pixels, shrink_label
from losses.options import require_whole_number
from losses.projector import build_projector
from losses.vector_queues import VectorQueues, write_to_queues
from utils.distributed import all_gather_cat, all_reduce
from utils.types import IGNORE_INDEX, Output


def select_region_keys(feat: Tensor, member: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the mean direction of each class in each image, ``[B, K, 1, C]``, and whether it exists, ``[B, K, 1]``.

    feat: unit vectors ``[B, N, C]``. member: ``[B, K, N]``, whether a pixel belongs to a class.
    """
    return F.normalize(member.to(feat) @ feat, dim=2).unsqueeze(2), member.any(2, keepdim=True)


def select_pixel_keys(feat: Tensor, member: Tensor, per_image: int, as_released: bool = False) -> tuple[Tensor, Tensor]:
    """Draw up to V = ``per_image`` random pixels of each class in each image.

    feat: unit vectors ``[B, N, C]``.
    member: ``[B, K, N]``, whether a pixel belongs to a class.
    as_released: for a class with n pixels, draw from the first n pixels of the map, whatever their class is.

    Returns ``[B, K, V, C]``, the pixels, and ``[B, K, V]``, whether they exist. The choice follows torch's global
    random state.
    """
    if as_released:
        member = torch.arange(feat.shape[1], device=feat.device) < member.sum(2, keepdim=True)
    score = torch.rand(feat.shape[:2], device=feat.device).unsqueeze(1)
    best, index = torch.where(member, score, -1.0).topk(min(per_image, feat.shape[1]), 2)
    image = torch.arange(len(feat), device=feat.device).view(-1, 1, 1)
    return feat[image, index], best >= 0


def memory_loss(student: Tensor, teacher: Tensor, contrasts: Tensor, labelled: Tensor, tau: float = 0.1) -> Tensor:
    """Average KL(p_T || p_S) over the labelled pixels, where p = softmax(pixel . contrasts / tau); no factor tau^2.

    student, teacher: unit vectors ``[B, N, C]``. contrasts: unit vectors ``[M, C]``. labelled: ``[B, N]``, which
    pixels have a label. The teacher gets no gradient.

    The mean is over the global batch (see ``losses.task.cross_entropy``), or over each part of it with
    ``--accumulate``. For the peak memory see ``relation_kl``.
    """
    rows = [relation_kl(s, contrasts, t, contrasts, tau) for s, t in zip(student, teacher.detach(), strict=True)]
    total = torch.stack(rows).masked_fill(~labelled, 0).sum()
    count = all_reduce(labelled.sum(dtype=total.dtype), "mean")
    return total / torch.where(count > 0, count, 1)


class CIRKDRegion(VectorQueues):
    """Compare each pixel of student and teacher with a queue of the teacher's region vectors (``memory_loss``).

    A region vector is the mean direction of one class in one image. A projector turns the student's features into as
    many channels as the teacher's have.

    Options: tau, the temperature; size, the number of slots of each class; contrasts, the wanted number of slots that
    an iteration compares with. Each of the K classes gives contrasts // K + 1 of them, as in the authors' code, but at
    most ``size``.

    Raises:
        UserError: a size or count is not a positive whole number. Or twice the size of the queue does not fit into the
            memory that is free: that of the host, or later that of the GPU which the loss is moved to.
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
        # built before the queue: in this order of random draws a seed gives the same weights as in older versions
        projector = build_projector(student_channels, teacher_channels)
        super().__init__(num_classes, require_whole_number("size", size), teacher_channels)
        self.projector = projector
        self.tau = tau
        self.contrasts_per_class = require_whole_number("contrasts", contrasts) // num_classes + 1

    def forward(self, student: Output, teacher: Output, label: Tensor) -> Tensor:
        """Store vectors of the batch in the queue, in training mode only, and return the loss. All ranks must call it.

        label: ``[B, H, W]``.
        """
        ids = shrink_label(label, student.feat)
        target = normalise_pixels(teacher.feat.detach())
        if self.training:
            self.store_keys(target, ids)
        projected = normalise_pixels(self.projector(student.feat))
        contrasts = self.draw_contrasts(self.contrasts_per_class)
        return memory_loss(projected, target, contrasts, ids != IGNORE_INDEX, self.tau)

    def select_keys(self, feat: Tensor, member: Tensor) -> tuple[Tensor, Tensor]:
        """Return the vectors to store and whether they exist, as ``select_region_keys`` does."""
        return select_region_keys(feat, member)

    @torch.no_grad()
    def store_keys(self, feat: Tensor, ids: Tensor) -> None:
        """Store the vectors of every rank's images in the queue of every rank, so that all queues stay equal.

        feat: the teacher's unit vectors ``[B, N, C]``. ids: their classes ``[B, N]``.
        """
        classes = torch.arange(len(self.queue), device=ids.device)
        is_member = ids.unsqueeze(1) == classes.view(1, -1, 1)  # [B, K, N]; an ignored pixel is of no class
        keys, valid = self.select_keys(feat, is_member)
        write_to_queues(self.queue, self.pointer, all_gather_cat(keys), all_gather_cat(valid))


class CIRKDPixel(CIRKDRegion):
    """Compare each pixel of student and teacher with a queue of the teacher's pixels (``memory_loss``).

    For VOC with the release's teacher the queue takes 430 MB.

    Options: those of ``CIRKDRegion``; per_image, how many pixels of a class are stored from an image; as_released, 0 or
    1 (see the top of this file).
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
        self.per_image = require_whole_number("per_image", per_image)
        self.as_released = bool(as_released)

    def select_keys(self, feat: Tensor, member: Tensor) -> tuple[Tensor, Tensor]:
        """Return the vectors to store and whether they exist, as ``select_pixel_keys`` does."""
        return select_pixel_keys(feat, member, self.per_image, self.as_released)


def share_projector(losses: Iterable[nn.Module]) -> None:
    """Give all memory losses the projector of the first one: in CIRKD both queues see the same projected pixels."""
    memories = [loss for loss in losses if isinstance(loss, CIRKDRegion)]
    for memory in memories[1:]:
        memory.projector = memories[0].projector
