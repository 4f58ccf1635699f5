"""STDC-Seg (Fan et al., Rethinking BiSeNet, CVPR 2021, arXiv 2104.13188)."""

import torch
from torch import nn

from models.architectures.assembly import assemble_mmseg_branches
from models.backbones.context_path import ContextPath
from models.layers import FCNHead
from models.segmentor import Branch, Segmentor
from utils.types import Supervision


class DetailHead(FCNHead):
    """Predict boundaries.

    The head also holds the fixed weights that fuse boundary maps of strides 1, 2 and 4 into its target. No code here
    reads them: their effect is in the loss (``losses.task.find_boundaries``). MMSegmentation saves them and counts them
    as a parameter, so this network has them, too.
    """

    def __init__(self, in_channels: int, channels: int, dropout: nn.Module) -> None:
        super().__init__(in_channels, channels, dropout)
        self.fusion = nn.Parameter(torch.tensor([0.6, 0.3, 0.1]).view(1, 3, 1, 1), requires_grad=False)


def build_stdc(
    backbone: nn.Module, num_classes: int, width: int = 256, aux_width: int = 64, detail_width: int = 64
) -> Segmentor:
    """Build MMSegmentation's STDC (configs/_base_/models/stdc.py).

    It has two auxiliary maps of the classes and one of boundaries ("detail", 2 channels). ``aux_width=0`` leaves the
    two out, and ``detail_width=0`` the one.
    On a backbone that is not STDC's own, the context path is built over its maps at strides 8, 16 and 32. That is an
    extension of this project.

    Raises:
        UserError: the backbone has no maps at these strides.
    """
    if not isinstance(backbone, ContextPath):
        backbone = ContextPath(backbone)

    def build_branch(index: int, channels: int, supervision: Supervision) -> Branch:
        head = FCNHead(backbone.channels[index], channels, nn.Dropout2d(0.1))
        return Branch(head, index, num_classes, supervision)

    main = build_branch(3, width, Supervision("ohem", align_corners=True))
    aux = []
    if aux_width:
        aux.append(build_branch(2, aux_width, Supervision("ohem")))
        aux.append(build_branch(1, aux_width, Supervision("ohem")))
    if detail_width:
        detail = DetailHead(backbone.channels[0], detail_width, nn.Dropout2d(0.1))
        aux.append(Branch(detail, 0, 2, Supervision("detail", align_corners=True)))
    return assemble_mmseg_branches(backbone, main, aux)
