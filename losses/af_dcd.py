"""Augmentation-free dense contrastive distillation (Fan et al., NeurIPS 2023), as OSVAI/Af-DCD's losses/ocmgd.py.

It adds to MGD's generated features a contrast over positions and groups of channels. The release clips the gradients
of this module's own parameters at norm 15, and has a deeper generator for Cityscapes. Both are left out here. The
release takes the last map of the backbone; this takes the input of the classifier.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from losses.mgd import Generator, mgd_loss
from losses.options import require_whole_number
from utils.errors import UserError
from utils.types import Output

# Patches in one call of cdist. On CUDA the gradient of a call takes patches * vectors^2 * their length floats.
PATCHES = 128


def split_into_patches(maps: Tensor, groups: int, patch: int) -> Tensor:
    """Cut maps into patches and each pixel of a patch into groups of channels; these vectors are compared.

    ``[B, C, h, w] -> [B patches, positions groups, C / groups]``. A patch has ``patch`` pixels a side, or the whole
    side of a smaller map. Rows and columns beyond the last full patch are left out.
    """
    height, width = (min(patch, side) for side in maps.shape[-2:])
    tiles = maps.unfold(2, height, height).unfold(3, width, width)  # [B, C, rows, columns, height, width]
    grouped = tiles.unflatten(1, (groups, -1)).permute(0, 3, 4, 5, 6, 1, 2)
    return grouped.flatten(3, 5).flatten(0, 2)


def af_dcd_loss(
    generated: Tensor, teacher: Tensor, groups: int = 16, pool: int = 4, patch: int = 4, tau: float = 0.07
) -> Tensor:
    """Compute groups * the mean over vectors of the cross entropy of finding the teacher's vector at the same place.

    The similarity of two vectors is their negative L1 distance / tau. The negatives of a vector are the teacher's
    vectors of the same patch in other groups of channels. Features ``[B, C, h, w]`` are first max-pooled by ``pool``.
    The teacher gets no gradient.
    """
    pool = min(pool, *generated.shape[-2:])
    s = split_into_patches(F.max_pool2d(generated, pool), groups, patch)
    t = split_into_patches(F.max_pool2d(teacher.detach(), pool), groups, patch)
    parts = zip(s.split(PATCHES), t.split(PATCHES), strict=True)
    logits = -torch.cat([torch.cdist(*part, p=1.0) for part in parts]) / tau
    group = torch.arange(s.shape[1], device=s.device) % groups
    same_group = group.unsqueeze(0) == group.unsqueeze(1)
    positive = torch.eye(s.shape[1], dtype=torch.bool, device=s.device)
    candidates = logits.masked_fill(same_group & ~positive, -torch.inf)
    return groups * (candidates.logsumexp(2) - logits.diagonal(dim1=1, dim2=2)).mean()


class AfDCD(nn.Module):
    """Compute ``mgd_loss`` ("fd") and ``af_dcd_loss`` ("contrast") on the features.

    Options: fd and contrast, the inner weights, by default those for VOC; ratio, the share of masked pixels; groups,
    pool, patch, tau. The release's script for CamVid has no pooling (``pool=1``).

    Raises:
        UserError: the groups do not divide the teacher's channels, a size is not a positive whole number, or the ratio
            is not in [0, 1).
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
        self.part_weights = {"fd": fd, "contrast": contrast}
        self.groups = require_whole_number("groups", groups)
        self.pool = require_whole_number("pool", pool)
        self.patch = require_whole_number("patch", patch)
        self.tau = tau
        if teacher_channels % self.groups:
            raise UserError(f"groups={groups:g} does not divide the teacher's {teacher_channels} channels")
        self.generator = Generator(student_channels, teacher_channels, ratio)

    def forward(self, student: Output, teacher: Output, label: Tensor) -> dict[str, Tensor]:
        generated = self.generator(student.feat)
        contrast = af_dcd_loss(generated, teacher.feat, self.groups, self.pool, self.patch, self.tau)
        return {"fd": mgd_loss(generated, teacher.feat), "contrast": contrast}
