"""The record that describes a data set, and the two Dataset classes that read every data set by such a record."""

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
from datasets.files import PathPair, Sample, make_exists_check, read_files
from datasets.ids import INVALID, IdMap, list_most_frequent
from utils.errors import UserError
from utils.seeding import AUGMENTATION_STREAM, SHUFFLE_STREAM, derive_seed
from utils.types import IGNORE_INDEX, Rgb

Transform = Callable[[np.ndarray, np.ndarray, np.random.Generator], Sample]
MAX_LISTED = 5  # files or ids that an error message names


@dataclass(frozen=True)
class DatasetSpec:
    """Describe a data set: its classes, where its files are, and what the ids in its labels mean.

    Attributes:
        names: class names, in the order of the classes 0..K-1.
        palette: the RGB colour of each class.
        pairs: function ``(root, split) -> [(image, label), ...]``. It returns the sorted paths of the files that should
            be there, whether or not they are.
        splits: name of each split -> the numbers of images it officially has; an empty tuple where none is published.
        ids: what the ids or colours in the official label files mean.
        other_ids: the same for label files of another kind, by the end of their file name.
        read: function ``(image, label) -> arrays`` that reads both files as stored. Either path may be None, and then
            its array is None. A computed data set gets both paths.
        needs_root: False for a data set that is computed, not read from files.
        base_size: long and short side that MMSegmentation resizes images to before its augmentation.
    """

    names: tuple[str, ...]
    palette: tuple[Rgb, ...]
    pairs: Callable[[Path, str], list[PathPair]]
    splits: Mapping[str, tuple[int, ...]]
    ids: IdMap
    other_ids: Mapping[str, IdMap] = field(default_factory=dict)
    read: Callable[[Path | None, Path | None], tuple[np.ndarray | None, np.ndarray | None]] = read_files
    needs_root: bool = True
    base_size: tuple[int, int] = (2048, 512)


def find_missing_files(pairs: list[PathPair]) -> list[Path]:
    """List the images and labels that do not exist."""
    exists = make_exists_check()
    return [path for pair in pairs for path in pair if not exists(path)]


class SegmentationDataset(Dataset):
    """Read the samples of one split: ``dataset[i] -> (image uint8 [3, H, W] RGB, label uint8 [H, W], i)``.

    Images and labels keep their own size. A split named "test" may have no label files at all. Its labels are then
    filled with the ignore index.
    """

    def __init__(self, spec: DatasetSpec, root: Path, split: str, cache_gb: float = 0.0) -> None:
        """Find the files of the split.

        cache_gb: memory for decoded samples; 0 means no cache.

        Raises:
            UserError: there are no images, files are missing, the decoded samples need more than ``cache_gb`` or than
                the free shared memory, or a cache is asked for where images are computed.
        """
        self.spec = spec
        pairs = spec.pairs(root, split)
        if not pairs:
            raise UserError(f"{root} has no images for split {split!r}")
        missing = find_missing_files(pairs) if spec.needs_root else []
        self.pairs: list[tuple[Path, Path | None]] = pairs
        if split == "test" and missing == [label for _, label in pairs]:
            self.pairs = [(image, None) for image, _ in pairs]
        elif missing:
            raise UserError(f"split {split!r} of {root}: {_describe_missing(missing, pairs)}")
        if cache_gb and not spec.needs_root:
            raise UserError("--cache-gb: this data set draws its images, so there are no files to cache; leave it out")
        self.cache = SampleCache(pairs, cache_gb) if cache_gb else None

    def __len__(self) -> int:
        return len(self.pairs)

    @cached_property
    def names(self) -> list[str]:
        """Return a unique name for each sample, for files that are made from it.

        The name is the image's file name without suffix. Where that is not unique, the image's folders come before it.
        Where that is not unique either, the suffix stays.
        """
        stems = [image.stem for image, _ in self.pairs]
        if len(set(stems)) == len(stems):
            return stems
        common = os.path.commonpath([image.parent for image, _ in self.pairs])
        paths = [image.relative_to(common) for image, _ in self.pairs]
        names = [path.with_suffix("").as_posix() for path in paths]
        if len(set(names)) == len(names):
            return names
        return [path.as_posix() for path in paths]

    def read(self, index: int) -> Sample:
        """Read a sample: image uint8 ``[H, W, 3]`` and label uint8 ``[H, W]``. Do not write to these arrays.

        Raises:
            UserError: a file cannot be read, image and label differ in size, or the label has an id that is no class.
                The message names the file.
        """
        if self.cache is None:
            return read_sample(self.spec, *self.pairs[index])
        sample = self.cache.get(index)
        if sample is None:
            sample = read_sample(self.spec, *self.pairs[index])
            self.cache.put(index, *sample)
        return sample

    def read_label(self, index: int) -> np.ndarray:
        """Read a label without its image: uint8 ``[H, W]``.

        Raises:
            UserError: the label cannot be read, or has an id that is no class.
        """
        image_path, label_path = self.pairs[index]
        # A missing label takes its size from the image, and a computed label is drawn together with its image.
        if label_path is None or not self.spec.needs_root:
            return read_sample(self.spec, image_path, label_path)[1]
        _, ids = self.spec.read(None, label_path)
        return convert_label(self.spec, ids, label_path)

    def count_label_pixels(self, workers: int) -> np.ndarray:
        """Count the pixels of each class in all labels: int64 ``[K]``. Ignored pixels are not counted.

        workers: number of threads that read files; at least one is used.

        Raises:
            UserError: a label cannot be read, or has an id that is no class.
        """
        classes = len(self.spec.names)

        def count(index: int) -> np.ndarray:
            return np.bincount(self.read_label(index).ravel(), minlength=IGNORE_INDEX + 1)[:classes]

        with ThreadPoolExecutor(max(workers, 1)) as threads:
            return sum(threads.map(count, range(len(self))), np.zeros(classes, np.int64))

    def load_sample(self, index: int) -> tuple[Tensor, Tensor]:
        """Return an image, uint8 ``[3, H, W]``, and its label, uint8 ``[H, W]``, as tensors of their own.

        Raises:
            UserError: a file cannot be read, image and label differ in size, or the label has an id that is no class.
        """
        return _copy_to_tensors(*self.read(index))

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, int] | UserError:
        """Return a sample, or the error that says why it cannot be read.

        The error is returned because the DataLoader would wrap a raised one in the worker's traceback.
        """
        try:
            image, label = self.load_sample(index)
        except UserError as error:
            return error
        return image, label, index


def _describe_missing(missing: list[Path], pairs: list[PathPair]) -> str:
    """Say how many pairs are incomplete, and name the first missing files."""
    listed = ", ".join(map(str, missing[:MAX_LISTED]))
    if len(missing) > MAX_LISTED:
        listed += ", ..."
    absent = set(missing)
    incomplete = sum(not absent.isdisjoint(pair) for pair in pairs)
    return f"{incomplete} of {len(pairs)} image and label pairs are incomplete; first missing: {listed}"


def read_sample(spec: DatasetSpec, image_path: Path, label_path: Path | None) -> Sample:
    """Read an image, RGB uint8 ``[H, W, 3]``, and its label as classes, uint8 ``[H, W]``: 0..K-1 or IGNORE_INDEX.

    If ``label_path`` is None, every pixel of the label is IGNORE_INDEX.

    Raises:
        UserError: a file is missing or cannot be read, image and label differ in size, or the label holds an id or
            colour that is neither a class nor ignored.
    """
    image, ids = read_stored_pair(spec, image_path, label_path)
    if ids is None:
        return image, np.full(image.shape[:2], IGNORE_INDEX, np.uint8)
    return image, convert_label(spec, ids, label_path)


def read_stored_pair(
    spec: DatasetSpec, image_path: Path, label_path: Path | None
) -> tuple[np.ndarray, np.ndarray | None]:
    """Read an image, RGB uint8 ``[H, W, 3]``, and the ids or colours of its label as stored, None without a label.

    Raises:
        UserError: a file is missing or cannot be read, or image and label differ in size.
    """
    image, ids = spec.read(image_path, label_path)
    if ids is not None and image.shape[:2] != ids.shape[:2]:
        height, width = image.shape[:2]
        label_height, label_width = ids.shape[:2]
        raise UserError(
            f"image and label differ in size: {image_path} is {width}x{height}, {label_path} is "
            f"{label_width}x{label_height}"
        )
    return image, ids


def convert_label(spec: DatasetSpec, ids: np.ndarray, path: Path) -> np.ndarray:
    """Convert the content of a label file to classes: uint8 ``[H, W]`` of 0..K-1 or IGNORE_INDEX.

    ids: ids ``[H, W]`` or RGBA colours ``[H, W, 4]``, as stored in the file ``path``.

    Raises:
        UserError: the label holds ids or colours that are neither a class nor ignored. The message counts their pixels.
    """
    label = _choose_id_map(spec, path)(ids)
    outside = label == INVALID
    if outside.any():
        kind = "ids" if ids.ndim == 2 else "colours"
        found = list_most_frequent(ids[outside], MAX_LISTED)
        raise UserError(f"{path} holds {kind} that are no class: {found}; {len(spec.names)} classes")
    return label


def _choose_id_map(spec: DatasetSpec, path: Path) -> IdMap:
    """Return the id map of a label file: the one for its kind of file name, else the data set's usual one."""
    for name_end, id_map in spec.other_ids.items():
        if path.name.endswith(name_end):
            return id_map
    return spec.ids


class TrainStream(Dataset):
    """Give an endless sequence of augmented samples: ``stream[position] -> (image, label)``.

    The sample depends on (seed, position) alone. The data set is shuffled again for each epoch. A batch may span two
    epochs, so that every image is seen equally often.
    """

    def __init__(self, dataset: SegmentationDataset, transform: Transform, seed: int) -> None:
        self.dataset = dataset
        self.transform = transform
        self.seed = seed

    def get_index(self, position: int) -> int:
        """Return the index in the data set of the sample at a position of the stream."""
        epoch, position_in_epoch = divmod(position, len(self.dataset))
        return int(_shuffle_indices(len(self.dataset), self.seed, epoch)[position_in_epoch])

    def get_image_path(self, position: int) -> Path:
        """Return the image file of the sample at a position of the stream."""
        return self.dataset.pairs[self.get_index(position)][0]

    def __getitem__(self, position: int) -> tuple[Tensor, Tensor] | UserError:
        """Return image uint8 ``[3, h, w]`` and label uint8 ``[h, w]`` of crop size, or the error that says why not.

        The error is returned because the DataLoader would wrap a raised one in the worker's traceback.
        """
        try:
            image, label = self.dataset.read(self.get_index(position))
        except UserError as error:
            return error
        rng = np.random.default_rng(derive_seed(self.seed, AUGMENTATION_STREAM, position))
        return _copy_to_tensors(*self.transform(image, label, rng))


@lru_cache(maxsize=2)
def _shuffle_indices(count: int, seed: int, epoch: int) -> np.ndarray:
    """Return the numbers 0..count-1 in the random order of an epoch."""
    return np.random.default_rng(derive_seed(seed, SHUFFLE_STREAM, epoch)).permutation(count)


def _copy_to_tensors(image: np.ndarray, label: np.ndarray) -> tuple[Tensor, Tensor]:
    """Copy an image ``[H, W, 3]`` to a tensor ``[3, H, W]`` and a label to a tensor ``[H, W]``, both uint8."""
    planes = np.stack(cv2.split(image))  # twice as fast as a transposed copy
    return torch.from_numpy(planes), torch.from_numpy(label.copy())


def make_voc_colors(count: int) -> tuple[Rgb, ...]:
    """Make the first ``count`` colours of VOC's colour map. Data sets without published colours use them, too."""
    return tuple((_compute_voc_level(k, 0), _compute_voc_level(k, 1), _compute_voc_level(k, 2)) for k in range(count))


def _compute_voc_level(index: int, channel: int) -> int:
    """Compute one channel, 0..255, of a colour of VOC's map: bit 3 j + channel of the index becomes bit 7 - j."""
    level = 0
    for j in range(3):
        bit = (index >> (3 * j + channel)) & 1
        level |= bit << (7 - j)
    return level


def parse_hex_colors(text: str) -> tuple[Rgb, ...]:
    """Parse colours such as ``"ff0000 00ff00"`` into RGB triples."""
    return tuple(tuple(bytes.fromhex(color)) for color in text.split())


def parse_names(text: str) -> tuple[str, ...]:
    """Parse names separated by commas, such as ``"sky, tree"``. The text may have any number of lines."""
    return tuple(name.strip() for name in text.split(","))
