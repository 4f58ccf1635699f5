"""Data sets by name. To add one, write a file with a DatasetSpec and add a line to DATASETS."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from datasets.ade20k import ADE20K
from datasets.base import DatasetSpec, SegmentationDataset, TrainStream
from datasets.camvid import CAMVID
from datasets.cityscapes import CITYSCAPES
from datasets.coco_stuff import COCO_STUFF_10K, COCO_STUFF_164K, COCO_STUFF_164K_182
from datasets.folder import make_folder_spec
from datasets.network_classes import Classes, require_classes
from datasets.toy import TOY
from datasets.transforms import AUGMENTATIONS, SCALE_RANGE, list_scales
from datasets.voc import VOC
from utils.errors import UserError, lookup, require_known
from utils.types import Rgb

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


def get_dataset_spec(name: str, root: str = "", classes: int | None = None) -> DatasetSpec:
    """Return the spec of a data set. ``classes`` chooses the variant with that many classes.

    Raises:
        UserError: the name is unknown, the root is missing or has wrong content, or no variant has ``classes`` classes.
    """
    entry = lookup(DATASETS, _choose_variant(name, classes), "data set")
    spec = entry if isinstance(entry, DatasetSpec) else entry(_find_root(name, root))
    if classes is not None and classes != len(spec.names):
        raise UserError(f"{name} has {len(spec.names)} classes, not {classes}")
    return spec


dataset_spec = get_dataset_spec  # its former name, which scripts outside use


def build_dataset(
    name: str, root: str, split: str, classes: int | None = None, cache_gb: float = 0.0
) -> SegmentationDataset:
    """Build the data set of one split, with images at their native size.

    It serves for evaluation and as the source of a training stream.

    Raises:
        UserError: the data set or split is unknown, no root is given, files are missing below it, or the samples do
            not fit into ``cache_gb``.
    """
    spec = get_dataset_spec(name, root, classes)
    require_known(split, spec.splits, f"split of {name}")
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
        UserError: the data set or its files are not there, the augmentation is unknown, the scales are no range of
            tenths, or the training samples do not fit into ``cache_gb``.
    """
    spec = get_dataset_spec(name, root, classes)
    augment = lookup(AUGMENTATIONS, augmentation, "augmentation")
    list_scales(*scale_range)  # to refuse a bad range here, not in a loader worker
    transform = partial(
        augment, crop_size=crop_size, pad_color=pad_color, base_size=spec.base_size, scale_range=scale_range
    )
    train = TrainStream(build_dataset(name, root, "train", classes, cache_gb), transform, seed)
    val = build_dataset(name, root, "val", classes)
    return Data(spec, train, val)


def build_dataset_for_network(
    network: Classes, dataset: str, data: str, split: str, source: str, allow_other_names: bool = True
) -> tuple[str, SegmentationDataset]:
    """Build the data set on which a network is evaluated. Return its name, too, which tells the variant.

    dataset, data: name and root, from the flags or else from the network's checkpoint. source: where the network comes
    from, for messages. allow_other_names: as in ``require_classes``.

    Raises:
        UserError: no data set is named, its classes are not the network's, or its files are not there.
    """
    if not dataset:
        raise UserError(f"{source} does not say its data set: give --dataset and --data")
    name = _choose_variant(dataset, network.num_classes)
    require_classes(network, get_dataset_spec(name, data), name, source, allow_other_names)
    return name, build_dataset(name, data, split)


def choose_evenly(count: int, limit: int) -> list[int]:
    """Choose at most ``limit`` of ``count`` samples, evenly spaced from the first to the last. Return their indices."""
    return np.linspace(0, count - 1, min(count, limit)).round().astype(int).tolist()


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
        where = "" if folder.is_absolute() else f" in {Path.cwd()}"
        raise UserError(f"--data {folder}: no such folder{where}")
    return folder
