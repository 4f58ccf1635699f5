"""What the architectures of one code base share around their heads: auxiliary branch, alignment, initialisation."""

from torch import nn

from models.layers import FCNHead
from models.segmentor import Branch, Segmentor
from utils.types import Supervision

FINEST = 8  # output stride of a dilated backbone; a coarser last map means a pyramid whose maps must be fused


def head_width(backbone: nn.Module, narrow: int, wide: int) -> int:
    """The releases' head width: ``narrow`` on light backbones (R18, MobileNets), ``wide`` on bottleneck ResNets."""
    return narrow if backbone.channels[3] < 1024 else wide


def is_pyramid(backbone: nn.Module) -> bool:
    """Whether c4 is coarser than stride 8 (HRNet), so that a head should see all four maps."""
    return backbone.strides[3] > FINEST


def top(backbone: nn.Module) -> tuple[int, int | tuple[int, ...]]:
    """Channels and index of what a head reads: c4, or all maps of a pyramid, whose other layers would never learn."""
    return (sum(backbone.channels), (0, 1, 2, 3)) if is_pyramid(backbone) else (backbone.channels[3], 3)


def auxiliary(
    backbone: nn.Module, num_classes: int, width: int | None, dropout: nn.Module, align_corners: bool
) -> list[Branch]:
    """One FCN branch on c3, weight 0.4.

    Its width is a quarter of c3 where none is given; 0, or a quarter under 64 (MobileNets, as in CIRKD), is no branch.
    """
    c3 = backbone.channels[2]
    if width is None:
        width = c3 // 4 if c3 // 4 >= 64 else 0
    if width == 0:
        return []
    return [Branch(FCNHead(c3, width, dropout), 2, num_classes, Supervision(align_corners=align_corners, weight=0.4))]


def release(
    backbone: nn.Module,
    head: nn.Module,
    num_classes: int,
    aux_width: int | None,
    aux_dropout: float,
    align_corners: bool = True,
) -> Segmentor:
    """LAD's and CIRKD's frame: align_corners everywhere, PyTorch's default initialisation outside the backbone."""
    main = Branch(head, top(backbone)[1], num_classes, Supervision(align_corners=align_corners))
    aux = auxiliary(backbone, num_classes, aux_width, nn.Dropout(aux_dropout), align_corners)
    for branch in (main, *aux):
        for module in branch.modules():
            if isinstance(module, nn.Conv2d):
                module.reset_parameters()
    return Segmentor(backbone, main, aux)


def mmseg(
    backbone: nn.Module, head: nn.Module, num_classes: int, aux_width: int | None, align_corners: bool
) -> Segmentor:
    """MMSegmentation's frame for one head and one auxiliary head."""
    main = Branch(head, top(backbone)[1], num_classes, Supervision(align_corners=align_corners))
    return mmseg_init(backbone, main, auxiliary(backbone, num_classes, aux_width, nn.Dropout2d(0.1), align_corners))


def mmseg_init(backbone: nn.Module, main: Branch, aux: list[Branch]) -> Segmentor:
    """MMSegmentation's initialisation: Kaiming convolutions (mmcv's), classifiers N(0, 0.01^2)."""
    for branch in (main, *aux):
        nn.init.normal_(branch.classifier.weight, 0, 0.01)
        nn.init.zeros_(branch.classifier.bias)
    return Segmentor(backbone, main, aux)
