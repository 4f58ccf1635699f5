"""CamVid, SegNet's 11-class version: ``{train,val,test}/`` and ``{train,val,test}annot/``, 480x360."""

from pathlib import Path

import numpy as np

from datasets.base import DatasetSpec, Pair, pair_by_stem
from utils.errors import lookup
from utils.types import IGNORE_INDEX

UNLABELLED = 11


def pairs(root: Path, split: str) -> list[Pair]:
    folder = lookup({name: name for name in ("train", "val", "test")}, split, "camvid split")
    return pair_by_stem(root / folder, root / f"{folder}annot")


def label_map(ids: np.ndarray) -> np.ndarray:
    return np.where(ids == UNLABELLED, IGNORE_INDEX, ids)


CAMVID = DatasetSpec(
    names=(
        "sky", "building", "pole", "road", "sidewalk", "tree", "sign", "fence", "car", "pedestrian", "bicyclist",
    ),
    palette=(
        (128, 128, 128), (128, 0, 0), (192, 192, 128), (128, 64, 128), (60, 40, 222), (128, 128, 0), (192, 128, 128),
        (64, 64, 128), (64, 0, 128), (64, 64, 0), (0, 128, 192),
    ),
    pairs=pairs,
    label_map=label_map,
)  # fmt: skip
