"""Networks by name: ``build_model("deeplabv3", "resnet18_v1s", num_classes=21)``."""

from collections.abc import Callable

from timm.layers import convert_sync_batchnorm
from torch import nn

from models.backbones import build_backbone
from models.heads.aspp import ASPPHead, ASPPProjectHead
from models.heads.fcn import FCNHead
from models.heads.psp import PSPHead
from models.segmentor import Branch, Segmentor
from utils.distributed import World
from utils.errors import lookup
from utils.types import Supervision


def _wide(backbone: nn.Module, narrow: int, wide: int) -> int:
    """The releases' head width: ``narrow`` on light backbones (R18, MobileNets), ``wide`` on bottleneck ResNets."""
    return narrow if backbone.channels[3] < 1024 else wide


def _aux_fcn(backbone: nn.Module, num_classes: int, dropout: nn.Module, align_corners: bool) -> list[Branch]:
    """A quarter-width FCN branch on c3, weight 0.4; none on MobileNets (under 64 channels), as in CIRKD."""
    c3 = backbone.channels[2]
    if c3 // 4 < 64:
        return []
    supervision = Supervision(align_corners=align_corners, weight=0.4)
    return [Branch(FCNHead(c3, c3 // 4, dropout), 2, num_classes, supervision)]


def _release(backbone: nn.Module, head: nn.Module, num_classes: int, aux_dropout: float) -> Segmentor:
    """LAD's and CIRKD's frame: align_corners everywhere, PyTorch's default initialisation outside the backbone."""
    main = Branch(head, 3, num_classes, Supervision(align_corners=True))
    aux = _aux_fcn(backbone, num_classes, nn.Dropout(aux_dropout), align_corners=True)
    for branch in (main, *aux):
        for module in branch.modules():
            if isinstance(module, nn.Conv2d):
                module.reset_parameters()
    return Segmentor(backbone, main, aux)


def _mmseg(backbone: nn.Module, head: nn.Module, num_classes: int) -> Segmentor:
    """MMSegmentation's frame: align_corners False, Kaiming convolutions, classifiers N(0, 0.01^2)."""
    main = Branch(head, 3, num_classes, Supervision())
    aux = _aux_fcn(backbone, num_classes, nn.Dropout2d(0.1), align_corners=False)
    for branch in (main, *aux):
        nn.init.normal_(branch.classifier.weight, 0, 0.01)
        nn.init.zeros_(branch.classifier.bias)
    return Segmentor(backbone, main, aux)


def _deeplabv3(backbone: nn.Module, num_classes: int) -> Segmentor:
    """LAD's models/deeplabv3.py: widths 128 / 256, dropout 0.01 throughout."""
    head = ASPPProjectHead(backbone.channels[3], _wide(backbone, 128, 256), nn.Dropout(0.01), nn.Dropout(0.01))
    return _release(backbone, head, num_classes, aux_dropout=0.01)


def _deeplabv3_cirkd2(backbone: nn.Module, num_classes: int) -> Segmentor:
    """CIRKD v2's models/deeplabv3.py: 512 wide at every ResNet depth, dropout 0.5 and 0.1."""
    head = ASPPProjectHead(backbone.channels[3], 512, nn.Dropout(0.5), nn.Dropout(0.1))
    return _release(backbone, head, num_classes, aux_dropout=0.1)


def _deeplabv3_mmseg(backbone: nn.Module, num_classes: int) -> Segmentor:
    """configs/_base_/models/deeplabv3_r50-d8.py and its R18 child."""
    head = ASPPHead(backbone.channels[3], _wide(backbone, 128, 512), nn.Dropout2d(0.1))
    return _mmseg(backbone, head, num_classes)


def _pspnet(backbone: nn.Module, num_classes: int) -> Segmentor:
    """LAD's models/pspnet.py: branches of a quarter of c4, bottleneck 128 / 512."""
    c4 = backbone.channels[3]
    head = PSPHead(c4, c4 // 4, _wide(backbone, 128, 512), nn.Dropout(0.1), align_corners=True)
    return _release(backbone, head, num_classes, aux_dropout=0.1)


def _pspnet_cirkd2(backbone: nn.Module, num_classes: int) -> Segmentor:
    """CIRKD v2's models/pspnet.py: as v1 with a bottleneck of 128 / 256."""
    c4 = backbone.channels[3]
    head = PSPHead(c4, c4 // 4, _wide(backbone, 128, 256), nn.Dropout(0.1), align_corners=True)
    return _release(backbone, head, num_classes, aux_dropout=0.1)


def _pspnet_mmseg(backbone: nn.Module, num_classes: int) -> Segmentor:
    """configs/_base_/models/pspnet_r50-d8.py and its R18 child."""
    width = _wide(backbone, 128, 512)
    head = PSPHead(backbone.channels[3], width, width, nn.Dropout2d(0.1), align_corners=False)
    return _mmseg(backbone, head, num_classes)


def _fcn(backbone: nn.Module, num_classes: int) -> Segmentor:
    """configs/_base_/models/fcn_r50-d8.py and its R18 child."""
    width = _wide(backbone, 128, 512)
    head = FCNHead(backbone.channels[3], width, nn.Dropout2d(0.1), num_convs=2, concat_input=True)
    return _mmseg(backbone, head, num_classes)


ARCHITECTURES: dict[str, Callable[[nn.Module, int], Segmentor]] = {
    "fcn": _fcn,
    "pspnet": _pspnet,
    "pspnet_cirkd2": _pspnet_cirkd2,
    "pspnet_mmseg": _pspnet_mmseg,
    "deeplabv3": _deeplabv3,
    "deeplabv3_cirkd2": _deeplabv3_cirkd2,
    "deeplabv3_mmseg": _deeplabv3_mmseg,
}


def build_model(arch: str, backbone: str, num_classes: int, in_channels: int = 3) -> Segmentor:
    """A network with random weights. ``in_channels`` is 3, or 3 plus the label planes of an assisted teacher.

    Raises:
        UserError: unknown architecture or backbone.
    """
    build = lookup(ARCHITECTURES, arch, "model")
    model = build(build_backbone(backbone, in_channels), num_classes)
    model.config = {"arch": arch, "backbone": backbone, "num_classes": num_classes, "in_channels": in_channels}
    return model


def sync_batchnorm(module: nn.Module, world: World) -> nn.Module:
    """Share BatchNorm statistics over the processes of a CUDA run; elsewhere torch has no such layer.

    timm's conversion, because timm's BatchNorm layers carry their activation, which torch's would drop.
    """
    return convert_sync_batchnorm(module) if world.size > 1 and world.device.type == "cuda" else module
