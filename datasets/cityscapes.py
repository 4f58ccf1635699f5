"""Cityscapes, fine labels: 2975 training, 500 validation and 1525 test images, 2048x1024.

``leftImg8bit/<split>/<city>/*_leftImg8bit.png`` and ``gtFine/<split>/<city>/*_gtFine_labelIds.png`` as the archives
have them. ``*_labelTrainIds.png`` (cityscapesScripts) are read where there is no labelIds file. The official test
labels hold ignored ids only.
"""

from pathlib import Path

from datasets.base import DatasetSpec, hex_colors
from datasets.files import Pair, locate, match
from datasets.ids import IdMap

TRAINED_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
HINT = "It takes leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip, unpacked in one folder"


def pairs(root: Path, split: str) -> list[Pair]:
    base = locate(root, f"leftImg8bit/{split}", ("", "cityscapes"), HINT)
    images = sorted((base / "leftImg8bit" / split).glob("[!.]*/[!.]*_leftImg8bit.png"))

    def labels(image: Path) -> list[Path]:
        stem = base / "gtFine" / split / image.parent.name / image.stem.removesuffix("_leftImg8bit")
        return [stem.with_name(f"{stem.name}_gtFine_{kind}.png") for kind in ("labelIds", "labelTrainIds")]

    return match(images, labels)


CITYSCAPES = DatasetSpec(
    names=(
        "road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign", "vegetation",
        "terrain", "sky", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle",
    ),
    palette=hex_colors(
        "804080 f423e8 464646 66669c be9999 999999 faaa1e dcdc00 6b8e23 98fb98 4682b4 dc143c ff0000 00008e 000046 "
        "003c64 005064 0000e6 770b20"
    ),
    pairs=pairs,
    splits={"train": (2975,), "val": (500,), "test": (1525,)},
    # 34 ids, 0..33; 255 is where the official tools leave id -1
    ids=IdMap.of(TRAINED_IDS, ignored=(*(k for k in range(34) if k not in TRAINED_IDS), 255)),
    other_ids={"_labelTrainIds.png": IdMap.of(range(19))},
    base_size=(2048, 1024),
)  # fmt: skip
