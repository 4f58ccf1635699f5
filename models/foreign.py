"""Weights that other projects saved, under this project's keys: tables of (pattern, replacement), nothing left over.

Both LAD and CIRKD keep convolution, norm and activation in a Sequential (0 = convolution, 1 = norm) where this project
has mmcv's ConvModule (``conv``, ``bn``).
"""

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from utils.errors import UserError

Table = Sequence[tuple[str, str]]

# backbones, without their prefix, to timm's names
V1S_STEM: Table = (
    (r"^conv1\.", "conv1.0."),
    (r"^bn1\.", "conv1.1."),
    (r"^conv2\.", "conv1.3."),
    (r"^bn2\.", "conv1.4."),
    (r"^conv3\.", "conv1.6."),
    (r"^bn3\.", "bn1."),
)
V1C_STEM: Table = ((r"^stem\.7\.", "bn1."), (r"^stem\.", "conv1."))
# whole networks of LAD and CIRKD; the backbone's rest ("layer1.0.conv1.weight") already has timm's names
_RELEASE_COMMON: Table = (
    *((pattern.replace("^", r"^pretrained\."), f"backbone.{new}") for pattern, new in V1S_STEM),
    (r"^pretrained\.", "backbone."),
    (r"^auxlayer\.block\.0\.", "aux.0.head.convs.0.conv."),
    (r"^auxlayer\.block\.1\.", "aux.0.head.convs.0.bn."),
    (r"^auxlayer\.block\.4\.", "aux.0.classifier."),
)
RELEASE_DEEPLABV3: Table = (
    *_RELEASE_COMMON,
    (r"^head\.aspp\.b0\.0\.", "main.head.aspp.branches.0.conv."),
    (r"^head\.aspp\.b0\.1\.", "main.head.aspp.branches.0.bn."),
    (r"^head\.aspp\.b([123])\.block\.0\.", r"main.head.aspp.branches.\1.conv."),
    (r"^head\.aspp\.b([123])\.block\.1\.", r"main.head.aspp.branches.\1.bn."),
    (r"^head\.aspp\.b4\.gap\.1\.", "main.head.aspp.image_pool.conv."),
    (r"^head\.aspp\.b4\.gap\.2\.", "main.head.aspp.image_pool.bn."),
    (r"^head\.aspp\.project\.0\.", "main.head.project.conv."),
    (r"^head\.aspp\.project\.1\.", "main.head.project.bn."),
    (r"^head\.block\.0\.", "main.head.block.conv."),
    (r"^head\.block\.1\.", "main.head.block.bn."),
    (r"^head\.block\.4\.", "main.classifier."),
)
RELEASE_PSPNET: Table = (
    *_RELEASE_COMMON,
    *(
        (rf"^head\.psp\.conv{i + 1}\.{j}\.", f"main.head.pools.{i}.1.{part}.")
        for i in range(4)
        for j, part in enumerate(("conv", "bn"))
    ),
    (r"^head\.block\.0\.", "main.head.bottleneck.conv."),
    (r"^head\.block\.1\.", "main.head.bottleneck.bn."),
    (r"^head\.classifier\.", "main.classifier."),
)
PREFIXES = ("module.", "backbone.", "pretrained.")
WRAPPERS = ("state_dict", "model")


def rename(weights: Mapping[str, Tensor], table: Table) -> dict[str, Tensor]:
    """Apply the first matching pattern to every key; a key that none matches stays as it is."""
    return {_rename(key, table): value for key, value in weights.items()}


def _rename(key: str, table: Table) -> str:
    for pattern, replacement in table:
        new, count = re.subn(pattern, replacement, key)
        if count:
            return new
    return key


def unwrap(content: Mapping[str, object], source: str) -> dict[str, Tensor]:
    """The state dict inside a training file, without DataParallel's ``module.``.

    Raises:
        UserError: there are no weights in it.
    """
    for key in WRAPPERS:
        if isinstance(content.get(key), Mapping):
            content = content[key]
    weights = {k.removeprefix("module."): v for k, v in content.items() if isinstance(v, Tensor)}
    if not weights:
        raise UserError(f"{source} holds no weights")
    return weights


def backbone_weights(content: Mapping[str, object], own: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """Weights for a backbone with state ``own`` from a classification network's file.

    Deep stems are found under LAD's and CIRKD's names (conv1, bn1, .. conv3, bn3) or MMSegmentation's (stem.0 ..).
    What lies outside the backbone (classifier) is left out; label planes of the stem keep their own weights.

    Raises:
        UserError: layers of the backbone are missing, or the file's backbone has more.
    """
    weights = unwrap(content, source)
    for prefix in PREFIXES:
        if any(key.startswith(prefix) for key in weights):
            weights = {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
    if "conv3.weight" in weights:
        weights = rename(weights, V1S_STEM)
    elif "stem.0.weight" in weights:
        weights = rename(weights, V1C_STEM)
    if "conv1.0.weight" in own and "conv1.0.weight" not in weights and "conv1.weight" in weights:
        raise UserError(f"{source} has a 7x7 stem, this backbone a deep one (three 3x3 convolutions)")
    if "conv1.weight" in own and "conv1.0.weight" in weights:
        raise UserError(f"{source} has a deep stem (three 3x3 convolutions), this backbone a 7x7 one")
    parts = {key.partition(".")[0] for key in own}
    result = {key: value for key, value in weights.items() if key.partition(".")[0] in parts}
    for key, value in own.items():
        if key.endswith("num_batches_tracked"):
            result.setdefault(key, value)
        elif value.ndim == 4 and key in result and result[key].shape[1] == 3 < value.shape[1]:
            result[key] = torch.cat([result[key], value[:, 3:].to(result[key])], 1)
    return result
