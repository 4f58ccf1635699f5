"""PASCAL VOC 2012 with the augmented labels of SBD ("VOC-Aug"): 10582 training and 1449 validation images.

Two layouts are read, at ``root`` itself or below it in ``VOC2012`` or ``VOCdevkit/VOC2012``:

- JPEGImages, SegmentationClass, ImageSets/Segmentation/{train,val}.txt (the devkit): 1464 training images;
- the same with SegmentationClassAug: every label in it, plus the devkit's training list, minus validation.

Labels are read as ids from palette or plain PNG alike, so either kind of file may lie in either folder.
"""

from pathlib import Path

from datasets.base import DatasetSpec, voc_colors
from datasets.files import Pair, locate, match, read_list
from datasets.ids import IdMap


def pairs(root: Path, split: str) -> list[Pair]:
    """train: SegmentationClassAug where there is one, as CIRKD and LAD; val: SegmentationClass."""
    base = locate(root, "JPEGImages", ("", "VOC2012", "VOCdevkit/VOC2012"))
    lists, plain, augmented = base / "ImageSets/Segmentation", base / "SegmentationClass", base / "SegmentationClassAug"
    extra = {path.stem for path in augmented.glob("*.png") if not path.name.startswith(".")}
    if split == "train":
        listed = lists / "train.txt"
        names = extra | set(read_list(listed) if listed.is_file() or not extra else ())
        names -= set(read_list(lists / "val.txt"))
    else:
        names = set(read_list(lists / f"{split}.txt"))
    # a layout with SegmentationClassAug alone has the validation labels among them
    folders = (augmented, plain) if extra and (split == "train" or not plain.is_dir()) else (plain,)
    named = {base / f"JPEGImages/{name}.jpg": f"{name}.png" for name in sorted(names)}
    return match(named, lambda image: [folder / named[image] for folder in folders])


VOC = DatasetSpec(
    names=(
        "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
        "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
    ),
    palette=voc_colors(21),
    pairs=pairs,
    splits={"train": (10582, 1464), "val": (1449,), "test": (1456,)},
    ids=IdMap.of(range(21)),
)  # fmt: skip
