"""PASCAL VOC 2012 with the augmented labels of SBD ("VOC-Aug"): 10582 training and 1449 validation images.

The folders lie in ``root`` or below it, in ``VOC2012`` or ``VOCdevkit/VOC2012``. There are two layouts:

- The devkit: JPEGImages, SegmentationClass and ImageSets/Segmentation/{train,val}.txt. It has 1464 training images.
- The devkit with SegmentationClassAug. The training images are those with a label in SegmentationClassAug and those in
  the devkit's training list, without the validation images.

A label may be a palette PNG or a grey PNG: both are read as ids.
"""

from pathlib import Path
from typing import NamedTuple

from datasets.base import DatasetSpec, make_voc_colors
from datasets.files import PathPair, find_base_folder, pair_labels, read_list
from datasets.ids import IdMap


class Layout(NamedTuple):
    """The folders of a copy of VOC."""

    images: Path
    lists: Path
    labels: Path  # SegmentationClass
    augmented: Path  # SegmentationClassAug
    augmented_names: set[str]  # names of the labels in ``augmented``; empty where there is no such folder


def find_layout(root: Path) -> Layout:
    """Find the folders of VOC below the root.

    Raises:
        UserError: there is no folder JPEGImages.
    """
    base = find_base_folder(root, "JPEGImages", ("", "VOC2012", "VOCdevkit/VOC2012"))
    augmented = base / "SegmentationClassAug"
    return Layout(
        images=base / "JPEGImages",
        lists=base / "ImageSets/Segmentation",
        labels=base / "SegmentationClass",
        augmented=augmented,
        augmented_names={path.stem for path in augmented.glob("*.png") if not path.name.startswith(".")},
    )


def list_pairs(root: Path, split: str) -> list[PathPair]:
    """List images and labels. Training uses SegmentationClassAug where there is one, as in CIRKD and LAD."""
    layout = find_layout(root)
    names = _read_train_names(layout) if split == "train" else set(read_list(layout.lists / f"{split}.txt"))
    label_folders = [layout.labels]
    # a copy with SegmentationClassAug alone has the validation labels there
    if layout.augmented_names and (split == "train" or not layout.labels.is_dir()):
        label_folders = [layout.augmented, layout.labels]
    label_names = {layout.images / f"{name}.jpg": f"{name}.png" for name in sorted(names)}
    return pair_labels(label_names, lambda image: [folder / label_names[image] for folder in label_folders])


def _read_train_names(layout: Layout) -> set[str]:
    """Return the names of the training images: augmented and listed ones, without those of the validation list."""
    names = set(layout.augmented_names)
    train_list = layout.lists / "train.txt"
    if train_list.is_file() or not layout.augmented_names:  # without a list and without labels, reading says what lacks
        names |= set(read_list(train_list))
    return names - set(read_list(layout.lists / "val.txt"))


VOC = DatasetSpec(
    names=(
        "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
        "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
    ),
    palette=make_voc_colors(21),
    pairs=list_pairs,
    splits={"train": (10582, 1464), "val": (1449,), "test": (1456,)},
    ids=IdMap.from_ids(range(21)),
)  # fmt: skip
