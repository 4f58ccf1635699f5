"""The checkpoint formats of other projects, and how a network is taken out of a training file.

To read a new format, write its key table (``models.checkpoints.keys``) and add a line to FORMATS.
"""

import re
from collections.abc import Collection, Mapping
from typing import NamedTuple

from torch import Tensor

from models.checkpoints import keys
from models.checkpoints.keys import SMP_MARKER, Table, rename
from utils.errors import UserError, print_note


class Family(NamedTuple):
    """Describe what the networks of one code base have in common."""

    prefix: str  # begins the backbone's keys
    pixels: str  # the pixel convention, a key of utils.pixels.CONVENTIONS
    # number of channels of a deep stem's first convolution, or 0 for a 7x7 stem -> name of the ResNet, with {} for its
    # depth
    resnets: Mapping[int, str]


class Format(NamedTuple):
    """Describe the files of one architecture of one code base."""

    family: Family
    archs: tuple[str, ...]  # architectures that the file may hold; the first whose own widths fit is taken
    marker: str  # a key that every such file has. Formats are tried in order: no file of one further down may have it
    table: Table


RELEASE = Family("pretrained.", "bgr_mean", {64: "resnet{}_v1s", 0: "resnet{}"})
MMSEG = Family("backbone.", "imagenet", {32: "resnet{}_v1c", 0: "resnet{}_v1b"})
TORCHVISION = Family("backbone.", "imagenet", {0: "resnet{}"})
_OCR_MARKER = "decode_head.1.object_context_block.bottleneck.conv.weight"
FORMATS: dict[str, Format] = {
    "LAD/CIRKD DeepLabV3": Format(
        RELEASE, ("deeplabv3", "deeplabv3_cirkd2"), "head.aspp.project.0.weight", keys.RELEASE_DEEPLABV3
    ),
    "LAD/CIRKD PSPNet": Format(RELEASE, ("pspnet", "pspnet_cirkd2"), "head.psp.conv1.0.weight", keys.RELEASE_PSPNET),
    "MMSegmentation OCRNet": Format(MMSEG, ("ocrnet",), _OCR_MARKER, keys.MMSEG_OCRNET),
    "MMSegmentation STDC": Format(MMSEG, ("stdc",), "backbone.arms.0.conv_layer.conv.weight", keys.MMSEG_STDC),
    "MMSegmentation PSPNet": Format(
        MMSEG, ("pspnet_mmseg",), "decode_head.psp_modules.0.1.conv.weight", keys.MMSEG_PSPNET
    ),
    "MMSegmentation DeepLabV3": Format(
        MMSEG, ("deeplabv3_mmseg",), "decode_head.aspp_modules.0.conv.weight", keys.MMSEG_DEEPLABV3
    ),
    "MMSegmentation FCN": Format(MMSEG, ("fcn",), "decode_head.convs.0.conv.weight", keys.MMSEG_FCN),
    "torchvision DeepLabV3": Format(
        TORCHVISION, ("deeplabv3_torchvision",), "classifier.0.project.0.weight", keys.TORCHVISION_DEEPLABV3
    ),
    "torchvision FCN": Format(TORCHVISION, ("fcn_torchvision",), "classifier.4.weight", keys.TORCHVISION_FCN),
}
# names of modules that wrap a network in training code; they begin the keys, and one may wrap another
WRAPPERS = ("module", "model", "net", "network", "student", "ema", "ema_model", "model_ema")
# names that PyTorch and Lightning put into keys, where they wrap a network or a part of it
INTERNAL = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module")
# keys of dictionaries in a training file that hold weights; AVERAGES hold their moving average, which is evaluated.
# MMEngine's "ema_state_dict" is none: it saves the average as "state_dict", and as "ema_state_dict" what was trained.
AVERAGES = ("state_dict_ema", "model_ema", "ema_model", "ema", "params_ema")
CONTAINERS = (*AVERAGES, "state_dict", "model", "model_state", "model_state_dict", "net", "network", "weights")
MAX_NESTING = 12  # containers within containers: there is a bound because a dictionary can hold itself
MAX_KEYS = 5  # keys that a message lists
# a part of the key of a tensor that belongs to a loss or metric of the training code, not to the network
LOSS_OR_METRIC = re.compile(
    r"(\w+_)?(criterion|criteria|loss(es)?|metrics?|m?iou|jaccard|confmat|confusion|accuracy)(_\w+)?"
)


def translate_network(weights: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """Rename the keys of a whole network's file to this project's keys. ``name`` is a key of FORMATS."""
    prefix = FORMATS[name].family.prefix
    backbone = {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
    heads = {key: value for key, value in weights.items() if not key.startswith(prefix)}
    ours = {f"backbone.{key}": value for key, value in translate_backbone(backbone).items()}
    return ours | rename(heads, FORMATS[name].table)


def translate_backbone(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the keys of a backbone, which have no prefix, to the keys of ``models.backbones``."""
    for marker, table in keys.BACKBONE_TABLES:
        if marker in weights:
            return rename(weights, table)
    return dict(weights)


def unwrap(content: Mapping[str, object], source: str) -> dict[str, Tensor]:
    """Return the state dict of the network in a training file, without the names of modules that wrap the network.

    Where a file holds a network and its moving average, the average is taken, and a note says so. Tensors of losses,
    metrics and wrappers are left out.

    Raises:
        UserError: the file holds no weights, several networks or sets of weights, or a network in an unknown wrapper.
            Or only some of the network's keys have the wrapper's name.
    """
    weights = {_remove_internal_names(key): value for key, value in _find_tensors(content, source).items()}
    prefix, weights = _choose_network(weights, source)
    weights = {
        key: value
        for key, value in weights.items()
        if not _is_loss_or_metric(key.removeprefix(prefix)) and not _is_tensor_of_wrapper(key, prefix)
    }
    for key in weights:
        if not key.startswith(prefix):
            raise UserError(f"{source}: keys of its network begin with {prefix!r}, but not all do, such as {key}")
    return {key.removeprefix(prefix): value for key, value in weights.items()}


def _choose_network(weights: dict[str, Tensor], source: str) -> tuple[str, dict[str, Tensor]]:
    """Return the prefix of the network's keys, and the weights without those of other networks.

    Raises:
        UserError: there are several networks, the network is in an unknown wrapper, or only some of its keys have a
            wrapper's name.
    """
    prefixes = _find_prefixes(weights)
    average = _find_average(prefixes)
    if average is not None:
        print_note(f"note: {source}: the moving average {average!r} is used")
        weights = _leave_out_networks(weights, prefixes - {average}, kept=average)
        prefixes = {average}
    if len(prefixes) > 1:
        listed = ", ".join(repr(prefix) for prefix in sorted(prefixes))
        raise UserError(f"{source} holds several networks (their keys begin with {listed}): save the one that is meant")
    if not prefixes:
        # The format is unknown. The message about that is clearer if it lists keys without wrappers.
        return _find_common_wrappers(weights), weights
    prefix = prefixes.pop()
    if not prefix:
        _require_no_wrapper(weights, source)
    unknown = [name for name in prefix.split(".")[:-1] if name not in WRAPPERS]
    if unknown:
        raise UserError(
            f"{source}: the keys of its network begin with {prefix!r}, and {unknown[0]!r} is no wrapper that is known: "
            "save the state_dict() of the network itself"
        )
    return prefix, weights


def _find_average(prefixes: Collection[str]) -> str | None:
    """Return the prefix of the moving average where a file holds one beside other networks, else None."""
    averages = [prefix for prefix in prefixes if "ema" in re.split(r"[._]", prefix)]
    return averages[0] if len(prefixes) > 1 and len(averages) == 1 else None


def _leave_out_networks(weights: Mapping[str, Tensor], prefixes: Collection[str], kept: str) -> dict[str, Tensor]:
    """Return the weights without those of the networks whose keys begin with ``prefixes``.

    kept: the prefix of a network whose weights stay, also where one of ``prefixes`` begins it.
    """
    others = tuple(prefixes)
    return {key: value for key, value in weights.items() if key.startswith(kept) or not key.startswith(others)}


def _require_no_wrapper(weights: Mapping[str, Tensor], source: str) -> None:
    """Check that no key of a network without a prefix begins with the name of a wrapper.

    Raises:
        UserError: a key does.
    """
    for key in weights:
        start = key.partition(".")[0]
        if start in WRAPPERS:
            raise UserError(f"{source}: some keys of its network begin with '{start}.', such as {key}, but not all do")


def _find_tensors(content: Mapping[str, object], source: str) -> dict[str, Tensor]:
    """Return the tensors of a training file by name. They may lie in a container, or deeper, in containers within it.

    Of several containers with known names, the first in CONTAINERS that has tensors is taken, and a note says so.
    Tensors beside it are left out.

    Raises:
        UserError: there are no tensors, or several containers and none has a known name.
    """
    for _ in range(MAX_NESTING):
        container = _choose_container(content, source)
        if container is None:
            break
        content = content[container]
    weights = {key: value for key, value in content.items() if isinstance(value, Tensor) and isinstance(key, str)}
    if not weights:
        found = ", ".join(map(str, list(content)[:MAX_KEYS])) or "none"
        raise UserError(f"{source} holds no weights (its keys: {found})")
    return weights


def _choose_container(content: Mapping[str, object], source: str) -> str | None:
    """Return the key of the entry that holds the network, or None where the tensors lie in ``content`` itself.

    Raises:
        UserError: several entries hold tensors, and none has a known name.
    """
    known = [key for key in CONTAINERS if isinstance(content.get(key), Mapping)]
    filled = [key for key in known if _has_tensors(content[key])]
    if not known:
        return _find_other_container(content, source)
    chosen = (filled or known)[0]
    for key in (*filled, *WRAPPERS):
        if key != chosen and isinstance(content.get(key), Mapping) and _has_tensors(content[key]):
            kind = "moving average" if chosen in AVERAGES else "network"
            print_note(f"note: {source}: the {kind} {chosen!r} is used, not {key!r}")
            break
    return chosen


def _find_other_container(content: Mapping[str, object], source: str) -> str | None:
    """Find the entry of a training file that holds tensors, whatever its name. Return its key, or None.

    A file that also holds tensors directly, and not single numbers alone, is taken for the weights themselves.

    Raises:
        UserError: the file has several such entries.
    """
    if any(isinstance(value, Tensor) and value.ndim for value in content.values()):
        return None
    found = [key for key, value in content.items() if isinstance(value, Mapping) and _has_tensors(value)]
    if len(found) > 1:
        listed = ", ".join(map(repr, found[:MAX_KEYS]))
        raise UserError(f"{source} holds several sets of weights ({listed}): save the one that is meant")
    if not found:
        return None
    print_note(f"note: {source}: the weights under {found[0]!r} are used")
    return found[0]


def _has_tensors(content: Mapping[str, object]) -> bool:
    """Return whether a dictionary holds tensors under names, or in a dictionary that has a name.

    The state of an optimizer lies deeper, under numbers.
    """
    named = [value for key, value in content.items() if isinstance(key, str)]
    inner = [value for value in named if isinstance(value, Mapping)]
    items = [*named, *(item for mapping in inner for item in mapping.values())]
    return any(isinstance(item, Tensor) for item in items)


def _remove_internal_names(key: str) -> str:
    """Return a key without the names in INTERNAL, which may also lie within a network."""
    return ".".join(part for part in key.split(".") if part not in INTERNAL)


def _find_prefixes(weights: Mapping[str, Tensor]) -> set[str]:
    """Find what the keys of each network of a known format begin with, before the format's own keys."""
    markers = [SMP_MARKER, *(form.marker for form in FORMATS.values())]
    found = set()
    for key in weights:
        for marker in markers:
            prefix = key.removesuffix(marker)
            if prefix != key and (not prefix or prefix.endswith(".")):
                found.add(prefix)
    return found


def _find_common_wrappers(weights: Mapping[str, Tensor]) -> str:
    """Return the names of known wrappers with which all keys begin, such as "module.model."."""
    prefix = ""
    while True:
        wrapper = next((name for name in WRAPPERS if all(key.startswith(f"{prefix}{name}.") for key in weights)), None)
        if wrapper is None:
            return prefix
        prefix += f"{wrapper}."


def _is_loss_or_metric(key: str) -> bool:
    """Return whether a tensor belongs to a loss or a metric."""
    return any(LOSS_OR_METRIC.fullmatch(part) for part in key.split("."))


def _is_tensor_of_wrapper(key: str, prefix: str) -> bool:
    """Return whether a tensor lies in a module around the network, such as "mean" beside "model."."""
    parent = key.rpartition(".")[0]
    return not key.startswith(prefix) and (not parent or prefix.startswith(f"{parent}."))
