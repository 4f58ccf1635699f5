"""Data sets by name. A new one is a file with a DatasetSpec and a line in DATASETS."""

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
from datasets.folder import folder_spec
from datasets.toy import TOY
from datasets.transforms import AUGMENTATIONS, SCALE_RANGE, scales_between
from datasets.voc import VOC
from utils.errors import UserError, lookup, print_note
from utils.types import Rgb

NAMES_SHOWN = 20  # class names that a message lists
# A data set that describes itself by files in its root is a function of the root.
DATASETS: dict[str, DatasetSpec | Callable[[Path], DatasetSpec]] = {
    "toy": TOY,
    "camvid": CAMVID,
    "voc": VOC,
    "cityscapes": CITYSCAPES,
    "ade20k": ADE20K,
    "coco_stuff_10k": COCO_STUFF_10K,
    "coco_stuff_164k": COCO_STUFF_164K,
    "coco_stuff_164k_182": COCO_STUFF_164K_182,
    "folder": folder_spec,
}


def dataset_spec(name: str, root: str = "", classes: int | None = None) -> DatasetSpec:
    """The record of a data set; with ``classes``, of its variant of so many.

    Raises UserError: unknown name, a root that is missing or not as it should be, or no variant of so many classes.
    """
    entry = lookup(DATASETS, _of_classes(name, classes), "data set")
    spec = entry if isinstance(entry, DatasetSpec) else entry(_folder(name, root))
    if classes not in (None, len(spec.names)):
        raise UserError(f"{name} has {len(spec.names)} classes, not {classes}")
    return spec


def build_dataset(
    name: str, root: str, split: str, classes: int | None = None, cache_gb: float = 0.0
) -> SegmentationDataset:
    """Images at native size, for evaluation and as the source of a training stream.

    Raises UserError: unknown data set or split, no root, or files missing below it.
    """
    spec = dataset_spec(name, root, classes)
    lookup(spec.splits, split, f"split of {name}")
    return SegmentationDataset(spec, _folder(name, root) if spec.needs_root else Path(), split, cache_gb)


class Data(NamedTuple):
    spec: DatasetSpec
    train: TrainStream  # endless, augmented
    val: SegmentationDataset


def train_and_val(
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
    """The data set's record, its endless augmented training sequence, and its validation images.

    crop_size: height and width. scale_range: smallest and largest random scale. pad_color: RGB of what a crop has
    beyond the image. cache_gb: for decoded images.
    """
    spec = dataset_spec(name, root, classes)
    augment = lookup(AUGMENTATIONS, augmentation, "augmentation")
    scales_between(*scale_range)  # a bad range is an error now, not in a loader worker
    transform = partial(
        augment, crop_size=crop_size, pad_color=pad_color, base_size=spec.base_size, scale_range=scale_range
    )
    train = TrainStream(build_dataset(name, root, "train", classes, cache_gb), transform, seed)
    return Data(spec, train, build_dataset(name, root, "val", classes))


class Classes(Protocol):
    """Those of a network, as its checkpoint's card has them; the names may be unknown."""

    num_classes: int
    class_names: Sequence[str]


def require_classes(
    network: Classes, spec: DatasetSpec, name: str, source: str, allow_other_names: bool = True
) -> None:
    """Compare the classes of a network with those of a data set. Warn of names that only one of the two has.

    name: of the data set. source: where the network comes from. allow_other_names: warn also where no name agrees.

    Raises UserError: the network has more or fewer classes, the same in another order, other ones, or one logit whose
    meaning its file does not say.
    """
    if network.num_classes != len(spec.names):
        raise UserError(f"{source} has {network.num_classes} classes, {name} {len(spec.names)}")
    if getattr(network, "training", {}).get("single_logit") and not network.class_names:
        asked = f"{source} has one logit and no class names: where it is above 0 must be {spec.names[1]!r} of {name}"
        if not allow_other_names:
            raise UserError(f"{asked}, elsewhere {spec.names[0]!r}; --other-class-names says that it is so")
        print_note(f"warning: {asked}, elsewhere {spec.names[0]!r}")
    theirs = [_plain_name(text) for text in network.class_names]
    ours = [_plain_name(text) for text in spec.names]
    for k, (their, our) in enumerate(zip(theirs, ours, strict=False)):
        if their != our and their in ours and our in theirs:
            order = f"its class {k} is {network.class_names[k]!r}, that of {name} is {spec.names[k]!r}"
            raise UserError(f"{source} has the classes in another order: {order}")
    differing = [
        f"{k}: {network.class_names[k]!r}, here {spec.names[k]!r}"
        for k, (their, our) in enumerate(zip(theirs, ours, strict=False))
        if their != our
    ]
    if not differing:
        return
    listed = "; ".join(differing[:NAMES_SHOWN])
    if len(differing) > NAMES_SHOWN:
        listed += f" and {len(differing) - NAMES_SHOWN} more"
    if not allow_other_names and not set(theirs) & set(ours):
        raise UserError(
            f"{source} knows no class of {name} by name ({listed}): it was trained for something else; "
            "--other-class-names takes it where they mean the same"
        )
    print_note(f"warning: {source} has other class names than {name} ({listed})")


def _plain_name(text: str) -> str:
    """Return a class name without what spellings differ in: capitals, blanks and marks."""
    return re.sub(r"[\W_]+", "", text).lower() or text


def for_network(
    network: Classes, dataset: str, data: str, split: str, source: str, allow_other_names: bool = True
) -> tuple[str, SegmentationDataset]:
    """Return the name and the images of the data set that a network is to be scored on.

    dataset, data: of the flags, or of the network's checkpoint ``source``. allow_other_names: of ``require_classes``.

    Raises UserError: no data set is named, or it has other classes; as ``build_dataset``.
    """
    if not dataset:
        raise UserError(f"{source} does not say its data set: give --dataset and --data")
    name = _of_classes(dataset, network.num_classes)
    require_classes(network, dataset_spec(name, data), name, source, allow_other_names)
    return name, build_dataset(name, data, split)


def _of_classes(name: str, classes: int | None) -> str:
    """``NAME_<classes>`` where there is such a data set, else the name as it is."""
    return f"{name}_{classes}" if f"{name}_{classes}" in DATASETS else name


def _folder(name: str, root: str) -> Path:
    if not root:
        raise UserError(f"--data is missing: the root folder of {name}")
    folder = Path(root).expanduser()
    if not folder.is_dir():
        raise UserError(f"--data {folder}: no such folder")
    return folder
