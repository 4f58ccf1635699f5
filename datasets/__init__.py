"""Data sets by name. To add one, write a file with a DatasetSpec and add a line to DATASETS."""

import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple, Protocol

from datasets.ade20k import ADE20K
from datasets.base import DatasetSpec, SegmentationDataset, TrainStream
from datasets.camvid import CAMVID
from datasets.cityscapes import CITYSCAPES
from datasets.coco_stuff import COCO_STUFF_10K, COCO_STUFF_164K, COCO_STUFF_164K_182
from datasets.folder import make_folder_spec
from datasets.toy import TOY
from datasets.transforms import AUGMENTATIONS, SCALE_RANGE, list_scales
from datasets.voc import VOC
from utils.errors import UserError, lookup, print_note
from utils.types import Rgb

MAX_NAMES_LISTED = 20  # class names that a message lists
# Name of a data set -> its spec, or a function that makes the spec from a file in the data set's root folder.
DATASETS: dict[str, DatasetSpec | Callable[[Path], DatasetSpec]] = {
    "toy": TOY,
    "camvid": CAMVID,
    "voc": VOC,
    "cityscapes": CITYSCAPES,
    "ade20k": ADE20K,
    "coco_stuff_10k": COCO_STUFF_10K,
    "coco_stuff_164k": COCO_STUFF_164K,
    "coco_stuff_164k_182": COCO_STUFF_164K_182,
    "folder": make_folder_spec,
}


def dataset_spec(name: str, root: str = "", classes: int | None = None) -> DatasetSpec:
    """Return the spec of a data set. ``classes`` chooses the variant with that many classes.

    Raises:
        UserError: the name is unknown, the root is missing or has wrong content, or no variant has ``classes`` classes.
    """
    entry = lookup(DATASETS, _choose_variant(name, classes), "data set")
    spec = entry if isinstance(entry, DatasetSpec) else entry(_find_root(name, root))
    if classes is not None and classes != len(spec.names):
        raise UserError(f"{name} has {len(spec.names)} classes, not {classes}")
    return spec


def build_dataset(
    name: str, root: str, split: str, classes: int | None = None, cache_gb: float = 0.0
) -> SegmentationDataset:
    """Build the data set of one split, with images at their native size.

    It serves for evaluation and as the source of a training stream.

    Raises:
        UserError: the data set or split is unknown, no root is given, or files are missing below it.
    """
    spec = dataset_spec(name, root, classes)
    lookup(spec.splits, split, f"split of {name}")
    folder = _find_root(name, root) if spec.needs_root else Path()
    return SegmentationDataset(spec, folder, split, cache_gb)


class Data(NamedTuple):
    """The data of a training."""

    spec: DatasetSpec
    train: TrainStream  # endless and augmented
    val: SegmentationDataset


def build_train_and_val(
    name: str,
    root: str = "",
    classes: int | None = None,
    augmentation: str = "cirkd",
    crop_size: tuple[int, int] = (512, 512),
    scale_range: tuple[float, float] = SCALE_RANGE,
    pad_color: Rgb = (0, 0, 0),
    seed: int = 0,
    cache_gb: float = 0.0,
) -> Data:
    """Build the augmented training stream of a data set, and its validation images.

    augmentation: a key of AUGMENTATIONS. crop_size: height and width. scale_range: smallest and largest random scale.
    pad_color: RGB colour of a crop beyond the image. cache_gb: memory for decoded training samples.

    Raises:
        UserError: as ``build_dataset``; the augmentation is unknown; or the scales are no range of tenths.
    """
    spec = dataset_spec(name, root, classes)
    augment = lookup(AUGMENTATIONS, augmentation, "augmentation")
    list_scales(*scale_range)  # to refuse a bad range here, not in a loader worker
    transform = partial(
        augment, crop_size=crop_size, pad_color=pad_color, base_size=spec.base_size, scale_range=scale_range
    )
    train = TrainStream(build_dataset(name, root, "train", classes, cache_gb), transform, seed)
    val = build_dataset(name, root, "val", classes)
    return Data(spec, train, val)


class Classes(Protocol):
    """The classes of a network, as in the card of its checkpoint. The names are empty where the file lacks them."""

    num_classes: int
    class_names: Sequence[str]


def require_classes(
    network: Classes, spec: DatasetSpec, name: str, source: str, allow_other_names: bool = True
) -> None:
    """Check that a network has the classes of a data set. Warn about class names that differ.

    name: name of the data set. source: where the network comes from, for messages. allow_other_names: only warn where
    network and data set have no class name in common.

    Raises:
        UserError: the network has another number of classes, the same classes in another order, or entirely different
            ones; or it has one logit and its file does not say which class that stands for.
    """
    if network.num_classes != len(spec.names):
        raise UserError(f"{source} has {network.num_classes} classes, {name} {len(spec.names)}")
    _check_single_logit(network, spec, name, source, allow_other_names)
    _check_order(network, spec, name, source)
    differences = _list_name_differences(network, spec)
    if not differences:
        return
    listed = "; ".join(differences[:MAX_NAMES_LISTED])
    if len(differences) > MAX_NAMES_LISTED:
        listed += f" and {len(differences) - MAX_NAMES_LISTED} more"
    shared = set(_simplify_names(network.class_names)) & set(_simplify_names(spec.names))
    if not shared and not allow_other_names:
        raise UserError(
            f"{source} and {name} have no class name in common ({listed}): the network was trained for something else; "
            "if its classes mean the same nevertheless, give --other-class-names"
        )
    print_note(f"warning: {source} has other class names than {name} ({listed})")


def _check_single_logit(network: Classes, spec: DatasetSpec, name: str, source: str, allow_other_names: bool) -> None:
    """Warn about or refuse a network of one logit whose file has no class names. The arguments are those above."""
    has_single_logit = getattr(network, "training", {}).get("single_logit")
    if not has_single_logit or network.class_names:
        return
    first, second = spec.names[:2]
    problem = (
        f"{source} has one logit and no class names: pixels where it is above 0 must be {second!r} of {name}, "
        f"the others {first!r}"
    )
    if not allow_other_names:
        raise UserError(f"{problem}; if that is so, give --other-class-names")
    print_note(f"warning: {problem}")


def _check_order(network: Classes, spec: DatasetSpec, name: str, source: str) -> None:
    """Check that network and data set number the classes that they share in the same order.

    A few names that have another number may be two spellings of different classes, as "screen" in ADE20K.

    Raises:
        UserError: two classes have changed places, or most of the shared classes have another number.
    """
    network_names = _simplify_names(network.class_names)
    data_names = _simplify_names(spec.names)
    pairs = list(enumerate(zip(network_names, data_names, strict=False)))
    moved = [k for k, (network_name, data_name) in pairs if network_name != data_name and network_name in data_names]
    agreeing = sum(network_name == data_name for _, (network_name, data_name) in pairs)
    for k in moved:
        if data_names[k] in network_names or len(moved) > agreeing:
            raise UserError(
                f"{source} has the classes in another order: its class {k} is {network.class_names[k]!r}, "
                f"that of {name} is {spec.names[k]!r}"
            )


def _list_name_differences(network: Classes, spec: DatasetSpec) -> list[str]:
    """Describe each class whose name differs between network and data set by more than its spelling."""
    names = zip(_simplify_names(network.class_names), _simplify_names(spec.names), strict=False)
    return [
        f"{k}: {network.class_names[k]!r}, here {spec.names[k]!r}"
        for k, (network_name, data_name) in enumerate(names)
        if network_name != data_name
    ]


def _simplify_names(names: Sequence[str]) -> list[str]:
    """Return class names in lower case and without blanks and marks, in which spellings differ."""
    return [re.sub(r"[\W_]+", "", name).lower() or name for name in names]


def build_dataset_for_network(
    network: Classes, dataset: str, data: str, split: str, source: str, allow_other_names: bool = True
) -> tuple[str, SegmentationDataset]:
    """Build the data set on which a network is evaluated. Return its name, too, which tells the variant.

    dataset, data: name and root, from the flags or else from the network's checkpoint. source: where the network comes
    from, for messages. allow_other_names: as in ``require_classes``.

    Raises:
        UserError: no data set is named, or its classes are not the network's; or as ``build_dataset``.
    """
    if not dataset:
        raise UserError(f"{source} does not say its data set: give --dataset and --data")
    name = _choose_variant(dataset, network.num_classes)
    require_classes(network, dataset_spec(name, data), name, source, allow_other_names)
    return name, build_dataset(name, data, split)


def _choose_variant(name: str, classes: int | None) -> str:
    """Return the name of a data set's variant with so many classes, or the name itself if there is no variant."""
    variant = f"{name}_{classes}"
    return variant if variant in DATASETS else name


def _find_root(name: str, root: str) -> Path:
    """Return the root folder of a data set.

    Raises:
        UserError: no root is given, or it is no folder.
    """
    if not root:
        raise UserError(f"--data is missing: the root folder of {name}")
    folder = Path(root).expanduser()
    if not folder.is_dir():
        raise UserError(f"--data {folder}: no such folder")
    return folder
