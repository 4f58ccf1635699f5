"""Cityscapes, fine labels: 2975 training, 500 validation and 1525 test images, 2048x1024.

The files lie as in the official archives: images in ``leftImg8bit/<split>/<city>/*_leftImg8bit.png``, labels in
``gtFine/<split>/<city>/*_gtFine_labelIds.png``. Where an image has no labelIds file, the ``*_labelTrainIds.png`` that
cityscapesScripts makes is read. The official test labels hold only ignored ids.
"""

from pathlib import Path

from datasets.base import DatasetSpec, parse_hex_colors
from datasets.files import PathPair, find_base_folder, pair_labels
from datasets.ids import IdMap

TRAINED_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
HINT = "Unpack leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip in one folder"


def list_pairs(root: Path, split: str) -> list[PathPair]:
    """List the images of a split and their labels."""
    base = find_base_folder(root, f"leftImg8bit/{split}", ("", "cityscapes"), HINT)
    images = sorted((base / "leftImg8bit" / split).glob("[!.]*/[!.]*_leftImg8bit.png"))

    def list_label_candidates(image: Path) -> list[Path]:
        folder = base / "gtFine" / split / image.parent.name
        name = image.stem.removesuffix("_leftImg8bit")
        return [folder / f"{name}_gtFine_labelIds.png", folder / f"{name}_gtFine_labelTrainIds.png"]

    return pair_labels(images, list_label_candidates)


CITYSCAPES = DatasetSpec(
    names=(
        "road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign", "vegetation",
        "terrain", "sky", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle",
    ),
    palette=parse_hex_colors(
        "804080 f423e8 464646 66669c be9999 999999 faaa1e dcdc00 6b8e23 98fb98 4682b4 dc143c ff0000 00008e 000046 "
        "003c64 005064 0000e6 770b20"
    ),
    pairs=list_pairs,
    splits={"train": (2975,), "val": (500,), "test": (1525,)},
    # the files hold ids 0..33; the official tools write id -1, the licence plate, as 255
    ids=IdMap.from_ids(TRAINED_IDS, ignored=(*(k for k in range(34) if k not in TRAINED_IDS), 255)),
    other_ids={"_labelTrainIds.png": IdMap.from_ids(range(19))},
    base_size=(2048, 1024),
)  # fmt: skip
