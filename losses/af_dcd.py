"""Augmentation-free dense contrastive distillation (Fan et al., NeurIPS 2023): MGD's generated features, and a contrast
over positions and groups of channels. As OSVAI/Af-DCD's losses/ocmgd.py.

Left out: its gradient clipping of this module's own parameters at norm 15, and Cityscapes' deeper generator. It takes
the backbone's last map, this the classifier's input.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from losses.mgd import Generator, mgd_loss
from losses.rings import whole
from utils.errors import UserError
from utils.types import Output


def patch_vectors(maps: Tensor, groups: int, patch: int) -> Tensor:
    """Maps ``[B, C, h, w]`` -> ``[B patches, positions groups, C / groups]``: the vectors that are compared.

    Patches of ``patch`` pixels a side, or of the whole map where it is smaller; rows and columns beyond the last full
    patch are left out.
    """
    high, wide = (min(patch, side) for side in maps.shape[-2:])
    tiles = maps.unfold(2, high, high).unfold(3, wide, wide)  # [B, C, rows, columns, high, wide]
    grouped = tiles.unflatten(1, (groups, -1)).permute(0, 3, 4, 5, 6, 1, 2)
    return grouped.flatten(3, 5).flatten(0, 2)


# compared at a time: on CUDA the gradient of all at once would take patches x vectors^2 x their length floats
PATCHES = 128


def af_dcd_loss(
    generated: Tensor, teacher: Tensor, groups: int = 16, pool: int = 4, patch: int = 4, tau: float = 0.07
) -> Tensor:
    """groups * mean over vectors of the cross entropy of each, whose true class is the teacher's own.

    Similarity is the negative L1 distance / tau; the negatives of a vector are the teacher's vectors of its patch in
    other groups of channels. Features ``[B, C, h, w]``, max-pooled by ``pool`` first; no teacher gradient.
    """
    pool = min(pool, *generated.shape[-2:])
    s, t = (patch_vectors(F.max_pool2d(x, pool), groups, patch) for x in (generated, teacher.detach()))
    parts = zip(s.split(PATCHES), t.split(PATCHES), strict=True)
    logits = -torch.cat([torch.cdist(*part, p=1.0) for part in parts]) / tau
    group = torch.arange(s.shape[1], device=s.device) % groups
    same = group.unsqueeze(0) == group.unsqueeze(1)
    positive = torch.eye(s.shape[1], dtype=torch.bool, device=s.device)
    candidates = logits.masked_fill(same & ~positive, -torch.inf)
    return groups * (candidates.logsumexp(2) - logits.diagonal(dim1=1, dim2=2)).mean()


class AfDCD(nn.Module):
    """Both terms. Options: fd, contrast (inner weights: VOC's), ratio (masked), groups, pool, patch, tau.

    CamVid's script has no pooling: ``pool=1``.

    Raises UserError: groups that do not divide the teacher's channels, or sizes that are no positive whole numbers.
    """

    def __init__(
        self,
        student_channels: int,
        teacher_channels: int,
        num_classes: int,
        fd: float = 0.000001,
        contrast: float = 0.005,
        ratio: float = 0.75,
        groups: float = 16,
        pool: float = 4,
        patch: float = 4,
        tau: float = 0.07,
    ) -> None:
        super().__init__()
        self.part_weights, self.tau = {"fd": fd, "contrast": contrast}, tau
        self.groups, self.pool, self.patch = whole("groups", groups), whole("pool", pool), whole("patch", patch)
        if teacher_channels % self.groups:
            raise UserError(f"groups={groups:g} does not divide the teacher's {teacher_channels} channels")
        self.generator = Generator(student_channels, teacher_channels, ratio)

    def forward(self, student: Output, teacher: Output, label: Tensor) -> dict[str, Tensor]:
        generated = self.generator(student.feat)
        contrast = af_dcd_loss(generated, teacher.feat, self.groups, self.pool, self.patch, self.tau)
        return {"fd": mgd_loss(generated, teacher.feat), "contrast": contrast}
