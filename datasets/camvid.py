"""CamVid in SegNet's version: 11 classes, 480x360 pixels.

The images of a split are in the folder ``train``, ``val`` or ``test``, its labels in ``trainannot`` and so on.
"""

from pathlib import Path

from datasets.base import DatasetSpec, parse_hex_colors
from datasets.files import PathPair, find_base_folder, list_images, pair_labels
from datasets.ids import IdMap

UNLABELLED = 11


def list_pairs(root: Path, split: str) -> list[PathPair]:
    """List the images of a split and their labels."""
    base = find_base_folder(root, split, ("", "CamVid", "camvid"))
    labels = base / f"{split}annot"
    return pair_labels(list_images(base / split), lambda image: [labels / f"{image.stem}.png"])


CAMVID = DatasetSpec(
    names=(
        "sky", "building", "pole", "road", "sidewalk", "tree", "sign", "fence", "car", "pedestrian", "bicyclist",
    ),
    palette=parse_hex_colors("808080 800000 c0c080 804080 3c28de 808000 c08080 404080 400080 404000 0080c0"),
    pairs=list_pairs,
    splits={"train": (367,), "val": (101,), "test": (233,)},
    ids=IdMap.from_ids(range(11), ignored=(UNLABELLED, 255)),
)  # fmt: skip
