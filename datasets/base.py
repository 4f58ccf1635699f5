"""A data set is a DatasetSpec; the two Dataset classes here read all of them."""

import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from datasets.cache import SampleCache
from datasets.files import Arrays, Pair, listing, read_files
from datasets.ids import INVALID, IdMap, most_frequent
from utils.errors import UserError
from utils.seeding import derive_seed
from utils.types import IGNORE_INDEX, Rgb

Transform = Callable[[np.ndarray, np.ndarray, np.random.Generator], Arrays]
SHOWN = 5  # files or ids that an error lists by name


@dataclass(frozen=True)
class DatasetSpec:
    """Class names and colours, where the files are, and what their label ids mean.

    pairs: ``(root, split) -> [(image, label), ...]``, sorted, of files that should be there.
    splits: name -> the official numbers of images (none: not stated).
    ids: label ids or colours of the official files; other_ids: of derived label files, told by the end of their name.
    read: ``(image, label) -> arrays`` as stored, either of them None, for data that are not files of ids.
    base_size: long and short side that MMSegmentation resizes to before its augmentation.
    """

    names: tuple[str, ...]
    palette: tuple[Rgb, ...]
    pairs: Callable[[Path, str], list[Pair]]
    splits: Mapping[str, tuple[int, ...]]
    ids: IdMap
    other_ids: Mapping[str, IdMap] = field(default_factory=dict)
    read: Callable[[Path | None, Path | None], tuple[np.ndarray | None, np.ndarray | None]] = read_files
    needs_root: bool = True
    base_size: tuple[int, int] = (2048, 512)


def missing_files(pairs: list[Pair]) -> list[Path]:
    """Files of the pairs that are not there."""
    exists = listing()
    return [path for pair in pairs for path in pair if not exists(path)]


class SegmentationDataset(Dataset):
    """``dataset[i] -> (image uint8 [3, H, W] RGB, label uint8 [H, W], i)`` at native size.

    A split "test" of which no label file is there is read with labels that are all ignored.
    """

    def __init__(self, spec: DatasetSpec, root: Path, split: str, cache_gb: float = 0.0) -> None:
        """Raises UserError: no images, missing files, or a cache that does not fit into ``cache_gb``."""
        self.spec = spec
        pairs = spec.pairs(root, split)
        if not pairs:
            raise UserError(f"{root} has no images for split {split!r}")
        missing = missing_files(pairs) if spec.needs_root else []
        if split == "test" and missing == [label for _, label in pairs]:
            self.pairs: list[tuple[Path, Path | None]] = [(image, None) for image, _ in pairs]
        elif missing:
            names = ", ".join(map(str, missing[:SHOWN])) + (", ..." if len(missing) > SHOWN else "")
            absent = set(missing)
            broken = sum(not absent.isdisjoint(pair) for pair in pairs)
            count = f"{broken} of {len(pairs)} image and label pairs are incomplete"
            raise UserError(f"split {split!r} of {root}: {count}; first missing: {names}")
        else:
            self.pairs = pairs
        if cache_gb and not spec.needs_root:
            raise UserError("--cache-gb: this data set draws its images, there is nothing to read")
        self.cache = SampleCache(pairs, cache_gb) if cache_gb else None

    def __len__(self) -> int:
        return len(self.pairs)

    @cached_property
    def names(self) -> list[str]:
        """What files made from the images are called: their stems, below their folders where stems are not unique."""
        stems = [image.stem for image, _ in self.pairs]
        if len(set(stems)) == len(stems):
            return stems
        common = os.path.commonpath([image.parent for image, _ in self.pairs])
        return [image.relative_to(common).with_suffix("").as_posix() for image, _ in self.pairs]

    def read(self, index: int) -> Arrays:
        """Image uint8 ``[H, W, 3]`` and label uint8 ``[H, W]``, not to be written to.

        Raises UserError: unreadable, of different sizes, or a label id that is no class; the message names the file.
        """
        sample = self.cache and self.cache.get(index)
        if not sample:
            sample = read_sample(self.spec, *self.pairs[index])
            if self.cache:
                self.cache.put(index, *sample)
        return sample

    def read_label(self, index: int) -> np.ndarray:
        """Read a label alone, uint8 ``[H, W]``. Raises UserError: see ``read``."""
        image_path, label_path = self.pairs[index]
        if label_path is None or not self.spec.needs_root:  # nothing to read, or drawn with its image
            return read_sample(self.spec, image_path, label_path)[1]
        _, ids = self.spec.read(None, label_path)
        return label_classes(self.spec, ids, label_path)

    def count_label_pixels(self, workers: int) -> np.ndarray:
        """Count the pixels of each class in all labels, int64 ``[K]``. Ignored pixels are left out.

        The files are read by ``workers`` threads, at least one.

        Raises UserError: see ``read``.
        """
        classes = len(self.spec.names)

        def count(index: int) -> np.ndarray:
            return np.bincount(self.read_label(index).ravel(), minlength=IGNORE_INDEX + 1)[:classes]

        with ThreadPoolExecutor(max(workers, 1)) as threads:
            return sum(threads.map(count, range(len(self))), np.zeros(classes, np.int64))

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, int] | UserError:
        """An unreadable sample is returned as its error, so that it crosses process borders unwrapped."""
        try:
            return *_tensors(*self.read(index)), index
        except UserError as error:
            return error


def read_sample(spec: DatasetSpec, image_path: Path, label_path: Path | None) -> Arrays:
    """See ``SegmentationDataset.read``."""
    image, ids = spec.read(image_path, label_path)
    if ids is None:
        return image, np.full(image.shape[:2], IGNORE_INDEX, np.uint8)
    if image.shape[:2] != ids.shape[:2]:
        (h, w), sides = image.shape[:2], "x".join(map(str, ids.shape[1::-1]))
        raise UserError(f"image and label differ in size: {image_path} is {w}x{h}, {label_path} is {sides}")
    return image, label_classes(spec, ids, label_path)


def label_classes(spec: DatasetSpec, ids: np.ndarray, path: Path) -> np.ndarray:
    """The ids ``[H, W]`` or colours ``[H, W, 4]`` of a label file as classes 0..K-1 or IGNORE_INDEX, uint8.

    Raises UserError: some are neither; the message counts them.
    """
    label = next((m for end, m in spec.other_ids.items() if path.name.endswith(end)), spec.ids)(ids)
    outside = label == INVALID
    if outside.any():
        kind = "ids" if ids.ndim == 2 else "colours"
        found = most_frequent(ids[outside], SHOWN)
        raise UserError(f"{path} holds {kind} that are no class: {found}; {len(spec.names)} classes")
    return label


class TrainStream(Dataset):
    """An endless sequence of augmented samples; ``stream[position]`` is a function of (seed, position) alone.

    The data set is shuffled anew for each epoch; a batch may span two epochs, so every image is seen equally often.
    """

    def __init__(self, dataset: SegmentationDataset, transform: Transform, seed: int) -> None:
        self.dataset, self.transform, self.seed = dataset, transform, seed

    def index(self, position: int) -> int:
        epoch, i = divmod(position, len(self.dataset))
        return int(_shuffled(len(self.dataset), self.seed, epoch)[i])

    def source(self, position: int) -> Path:
        """The image file behind a position."""
        return self.dataset.pairs[self.index(position)][0]

    def __getitem__(self, position: int) -> tuple[Tensor, Tensor] | UserError:
        try:
            image, label = self.dataset.read(self.index(position))
        except UserError as error:
            return error
        rng = np.random.default_rng(derive_seed(self.seed, 4, position))
        return _tensors(*self.transform(image, label, rng))


@lru_cache(maxsize=2)
def _shuffled(count: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng(derive_seed(seed, 3, epoch)).permutation(count)


def _tensors(image: np.ndarray, label: np.ndarray) -> tuple[Tensor, Tensor]:
    """Planes uint8 ``[3, H, W]`` and label ``[H, W]``, both with memory of their own."""
    planes = np.stack(cv2.split(image))  # twice as fast as a transposed copy
    return torch.from_numpy(planes), torch.from_numpy(label.copy())


def voc_colors(count: int) -> tuple[Rgb, ...]:
    """VOC's colour map, for data sets without one: bit 3j + c of the index is bit 7 - j of channel c."""
    return tuple(
        tuple(sum(((k >> (3 * j + channel)) & 1) << (7 - j) for j in range(3)) for channel in range(3))
        for k in range(count)
    )


def hex_colors(text: str) -> tuple[Rgb, ...]:
    """``"ff0000 00ff00"`` -> RGB triples."""
    return tuple((*bytes.fromhex(color),) for color in text.split())


def comma_names(text: str) -> tuple[str, ...]:
    """``"sky, tree"`` over any number of lines -> names."""
    return tuple(name.strip() for name in text.split(","))
