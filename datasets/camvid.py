"""CamVid, SegNet's 11-class version: ``{train,val,test}/`` and ``{train,val,test}annot/``, 480x360."""

from pathlib import Path

from datasets.base import DatasetSpec, hex_colors
from datasets.files import Pair, images_in, locate, match
from datasets.ids import IdMap

UNLABELLED = 11


def pairs(root: Path, split: str) -> list[Pair]:
    base = locate(root, split, ("", "CamVid", "camvid"))
    return match(images_in(base / split), lambda image: [base / f"{split}annot" / f"{image.stem}.png"])


CAMVID = DatasetSpec(
    names=(
        "sky", "building", "pole", "road", "sidewalk", "tree", "sign", "fence", "car", "pedestrian", "bicyclist",
    ),
    palette=hex_colors("808080 800000 c0c080 804080 3c28de 808000 c08080 404080 400080 404000 0080c0"),
    pairs=pairs,
    splits={"train": (367,), "val": (101,), "test": (233,)},
    ids=IdMap.of(range(11), ignored=(UNLABELLED, 255)),
)  # fmt: skip
