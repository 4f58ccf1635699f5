"""Assemble networks from a backbone, a head and an auxiliary branch, as each code base does it."""

from typing import NamedTuple

from torch import nn

from models.backbones import DILATED_OUTPUT_STRIDE
from models.layers import FCNHead
from models.segmentor import Branch, Segmentor
from utils.types import Supervision


class HeadInput(NamedTuple):
    """The maps of a backbone that a head reads."""

    channels: int  # of all these maps together
    index: int | tuple[int, ...]  # of the map, or of several maps, among c1..c4


def choose_head_width(backbone: nn.Module, narrow: int, wide: int) -> int:
    """Choose a head's width: narrow on light backbones (ResNet-18, MobileNets), wide on ResNets of bottlenecks."""
    return narrow if backbone.channels[3] < 1024 else wide


def is_pyramid(backbone: nn.Module) -> bool:
    """Return whether c4 is coarser than in a dilated backbone, as in HRNet, so that a head should read all maps."""
    return backbone.strides[3] > DILATED_OUTPUT_STRIDE


def choose_head_input(backbone: nn.Module) -> HeadInput:
    """Choose what a head reads: c4, or all four maps of a pyramid, whose other layers would otherwise not learn."""
    if is_pyramid(backbone):
        return HeadInput(sum(backbone.channels), (0, 1, 2, 3))
    return HeadInput(backbone.channels[3], 3)


def build_auxiliary(
    backbone: nn.Module, num_classes: int, width: int | None, dropout: nn.Module, align_corners: bool
) -> list[Branch]:
    """Build the auxiliary branch: an FCN head on c3 whose loss has weight 0.4. Return a list of one branch or none.

    width: 0 builds no branch. None takes a quarter of c3's channels, or no branch if that is below 64. That is so on
    MobileNets, as in CIRKD.
    """
    c3 = backbone.channels[2]
    if width is None:
        width = c3 // 4 if c3 // 4 >= 64 else 0
    if width == 0:
        return []
    supervision = Supervision(align_corners=align_corners, weight=0.4)
    return [Branch(FCNHead(c3, width, dropout), 2, num_classes, supervision)]


def assemble_release_network(
    backbone: nn.Module,
    head: nn.Module,
    num_classes: int,
    aux_width: int | None,
    aux_dropout: float,
    align_corners: bool = True,
) -> Segmentor:
    """Assemble a network as LAD and CIRKD do: PyTorch's default initialisation outside the backbone.

    aux_width: as in ``build_auxiliary``. aux_dropout: probability of the auxiliary branch's dropout.
    """
    supervision = Supervision(align_corners=align_corners)
    main = Branch(head, choose_head_input(backbone).index, num_classes, supervision)
    aux = build_auxiliary(backbone, num_classes, aux_width, nn.Dropout(aux_dropout), align_corners)
    for branch in (main, *aux):
        for module in branch.modules():
            if isinstance(module, nn.Conv2d):
                module.reset_parameters()  # mmcv's ConvModule has initialised it in another way
    return Segmentor(backbone, main, aux)


def assemble_mmseg_network(
    backbone: nn.Module, head: nn.Module, num_classes: int, aux_width: int | None, align_corners: bool
) -> Segmentor:
    """Assemble a network of one head and one auxiliary head as MMSegmentation does."""
    supervision = Supervision(align_corners=align_corners)
    main = Branch(head, choose_head_input(backbone).index, num_classes, supervision)
    aux = build_auxiliary(backbone, num_classes, aux_width, nn.Dropout2d(0.1), align_corners)
    return assemble_mmseg_branches(backbone, main, aux)


def assemble_mmseg_branches(
    backbone: nn.Module, main: Branch, aux: list[Branch], network: type[Segmentor] = Segmentor
) -> Segmentor:
    """Assemble a network of given branches, initialised as in MMSegmentation.

    Classifiers are drawn from N(0, 0.01^2). The other convolutions have mmcv's Kaiming initialisation already.

    network: the class of the result.
    """
    for branch in (main, *aux):
        nn.init.normal_(branch.classifier.weight, 0, 0.01)
        nn.init.zeros_(branch.classifier.bias)
    return network(backbone, main, aux)
