"""Data sets by name. A new one is a file with a DatasetSpec and a line in DATASETS."""

from functools import partial
from pathlib import Path

from datasets.base import DatasetSpec, SegmentationDataset, TrainStream
from datasets.camvid import CAMVID
from datasets.toy import TOY
from datasets.transforms import train_transform
from datasets.voc import VOC
from utils.errors import UserError, lookup
from utils.pixels import PixelConvention

DATASETS: dict[str, DatasetSpec] = {"toy": TOY, "camvid": CAMVID, "voc": VOC}


def dataset_spec(name: str) -> DatasetSpec:
    """Raises UserError for an unknown name."""
    return lookup(DATASETS, name, "data set")


def build_dataset(name: str, root: str, split: str) -> SegmentationDataset:
    """Images at native size, for evaluation and as the source of a training stream.

    Raises:
        UserError: unknown data set or split, no root, or files missing below it.
    """
    spec = dataset_spec(name)
    if spec.needs_root and not root:
        raise UserError(f"--data is missing: the root folder of {name}")
    folder = Path(root).expanduser()
    if spec.needs_root and not folder.is_dir():
        raise UserError(f"--data {folder}: no such folder")
    return SegmentationDataset(spec, folder, split)


def train_and_val(
    name: str, root: str, crop_size: tuple[int, int], convention: PixelConvention, seed: int
) -> tuple[DatasetSpec, TrainStream, SegmentationDataset]:
    """The data set's record, its endless augmented training sequence, and its validation images."""
    spec = dataset_spec(name)
    transform = partial(train_transform, crop_size=crop_size, pad_color=convention.pad_color)
    train = TrainStream(build_dataset(name, root, "train"), transform, seed)
    return spec, train, build_dataset(name, root, "val")
