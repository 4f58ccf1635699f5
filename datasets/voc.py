"""PASCAL VOC 2012 with the augmented labels of SBD ("VOC-Aug"): 10582 training and 1449 validation images.

Two layouts are read, at ``root`` itself or below it in ``VOC2012`` or ``VOCdevkit/VOC2012``:

- JPEGImages, SegmentationClass, ImageSets/Segmentation/{train,val}.txt (the devkit): 1464 training images;
- the same with SegmentationClassAug: every label in it, plus the devkit's training list, minus validation.

Labels are read as ids from palette or plain PNG alike, so either kind of file may lie in either folder.
"""

from pathlib import Path

from datasets.base import DatasetSpec, Pair, check_labels, read_list
from utils.errors import UserError, lookup


def pairs(root: Path, split: str) -> list[Pair]:
    """train: SegmentationClassAug where there is one, as CIRKD and LAD; val: SegmentationClass."""
    lookup({"train": 1, "val": 1}, split, "voc split")
    places = [root / sub for sub in ("", "VOC2012", "VOCdevkit/VOC2012")]
    base = next((place for place in places if (place / "JPEGImages").is_dir()), None)
    if base is None:
        raise UserError(f"{root} holds no JPEGImages folder (nor VOC2012/ or VOCdevkit/VOC2012/ below it)")
    lists, plain, augmented = base / "ImageSets/Segmentation", base / "SegmentationClass", base / "SegmentationClassAug"
    val = read_list(lists / "val.txt")
    if split == "val":
        # a layout with raw-index labels alone has the validation labels among them
        folder = plain if plain.is_dir() else augmented
        return check_labels([(base / f"JPEGImages/{name}.jpg", folder / f"{name}.png") for name in sorted(val)])
    extra = {path.stem for path in augmented.glob("*.png")} if augmented.is_dir() else set()
    listed = lists / "train.txt"
    names = (extra | set(read_list(listed) if listed.is_file() or not extra else ())) - set(val)
    return check_labels(
        [
            (base / f"JPEGImages/{name}.jpg", (augmented if name in extra else plain) / f"{name}.png")
            for name in sorted(names)
        ]
    )


def _palette(size: int) -> tuple[tuple[int, int, int], ...]:
    """The VOC colour map: bit 3j + c of the index is bit 7 - j of channel c."""
    return tuple(
        tuple(sum(((k >> (3 * j + channel)) & 1) << (7 - j) for j in range(3)) for channel in range(3))
        for k in range(size)
    )


VOC = DatasetSpec(
    names=(
        "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
        "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
    ),
    palette=_palette(21),
    pairs=pairs,
)  # fmt: skip
