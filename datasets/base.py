"""A data set is a DatasetSpec; the two Dataset classes here read all of them."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import Dataset

from utils.errors import UserError
from utils.seeding import derive_seed
from utils.types import IGNORE_INDEX

Rgb = tuple[int, int, int]
Pair = tuple[Path, Path]
Arrays = tuple[np.ndarray, np.ndarray]
Transform = Callable[[np.ndarray, np.ndarray, np.random.Generator], Arrays]

LABEL_MODES = ("L", "P", "I", "I;16", "1")


def identity(ids: np.ndarray) -> np.ndarray:
    """Files that already hold 0..K-1 and 255."""
    return ids


def read_files(image_path: Path, label_path: Path) -> Arrays:
    """RGB uint8 ``[H, W, 3]`` and raw label ids ``[H, W]``. Labels go through PIL: OpenCV makes a palette grey.

    Raises:
        UserError: a file is missing, damaged, or a label with colours instead of ids.
    """
    return _open(image_path, lambda file: np.array(file.convert("RGB"))), _open(label_path, _label_ids)


def _label_ids(file: Image.Image) -> np.ndarray:
    if file.mode not in LABEL_MODES:
        raise UserError(f"{file.filename}: a label must hold class ids (grey or palette), found mode {file.mode}")
    return np.array(file)


def _open(path: Path, convert: Callable[[Image.Image], np.ndarray]) -> np.ndarray:
    try:
        with Image.open(path) as file:
            return convert(file)
    except FileNotFoundError:
        raise UserError(f"file not found: {path}") from None
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error


@dataclass(frozen=True)
class DatasetSpec:
    """Class names and colours, where the files are, and what their label ids mean.

    pairs: ``(root, split) -> [(image, label), ...]``, sorted. label_map: raw ids -> 0..K-1 or 255; a value outside
    both is an error of the file. read: ``(image, label) -> arrays``, for data that are not files.
    """

    names: tuple[str, ...]
    palette: tuple[Rgb, ...]
    pairs: Callable[[Path, str], list[Pair]]
    label_map: Callable[[np.ndarray], np.ndarray] = identity
    read: Callable[[Path, Path], Arrays] = read_files
    needs_root: bool = True


class SegmentationDataset(Dataset):
    """``dataset[i] -> (image uint8 [3, H, W] RGB, label uint8 [H, W], i)`` at native size."""

    def __init__(self, spec: DatasetSpec, root: Path, split: str) -> None:
        self.spec = spec
        self.pairs = spec.pairs(root, split)
        if not self.pairs:
            raise UserError(f"{root} has no images for split {split!r}")

    def __len__(self) -> int:
        return len(self.pairs)

    def read(self, index: int) -> Arrays:
        """Image uint8 ``[H, W, 3]`` and label uint8 ``[H, W]``.

        Raises:
            UserError: unreadable, of different sizes, or a label id that is no class; the message names the file.
        """
        image_path, label_path = self.pairs[index]
        image, ids = self.spec.read(image_path, label_path)
        if image.shape[:2] != ids.shape:
            (h, w), (lh, lw) = image.shape[:2], ids.shape
            raise UserError(f"image and label differ in size: {image_path} is {w}x{h}, {label_path} is {lw}x{lh}")
        label = self.spec.label_map(ids)
        outside = (label != IGNORE_INDEX) & ((label < 0) | (label >= len(self.spec.names)))
        if outside.any():
            values, counts = np.unique(ids[outside], return_counts=True)
            found = ", ".join(f"{v} ({n} px)" for v, n in zip(values[:5], counts[:5], strict=True))
            raise UserError(f"{label_path} holds ids that are no class: {found}; {len(self.spec.names)} classes")
        return image, label.astype(np.uint8, copy=False)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, int] | UserError:
        """An unreadable sample is returned as its error, so that it crosses process borders unwrapped."""
        try:
            return *_tensors(*self.read(index)), index
        except UserError as error:
            return error


class TrainStream(Dataset):
    """An endless sequence of augmented samples; ``stream[position]`` is a function of (seed, position) alone.

    The data set is shuffled anew for each epoch; a batch may span two epochs, so every image is seen equally often.
    """

    def __init__(self, dataset: SegmentationDataset, transform: Transform, seed: int) -> None:
        self.dataset, self.transform, self.seed = dataset, transform, seed
        self._order = lru_cache(maxsize=2)(self._shuffled)

    def __getstate__(self) -> dict[str, object]:
        return {key: value for key, value in self.__dict__.items() if key != "_order"}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._order = lru_cache(maxsize=2)(self._shuffled)

    def _shuffled(self, epoch: int) -> np.ndarray:
        return np.random.default_rng(derive_seed(self.seed, 3, epoch)).permutation(len(self.dataset))

    def index(self, position: int) -> int:
        epoch, i = divmod(position, len(self.dataset))
        return int(self._order(epoch)[i])

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


def _tensors(image: np.ndarray, label: np.ndarray) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))), torch.from_numpy(
        np.ascontiguousarray(label)
    )


def pair_by_stem(images: Path, labels: Path, image_suffixes: Iterable[str] = (".jpg", ".jpeg", ".png")) -> list[Pair]:
    """Images of a folder with the PNG labels of the same stem, sorted by name.

    Raises:
        UserError: a folder is missing, or an image has no label (the message counts them and names the first).
    """
    for folder in (images, labels):
        if not folder.is_dir():
            raise UserError(f"folder not found: {folder}")
    found = sorted(path for path in images.iterdir() if path.suffix.lower() in set(image_suffixes))
    return check_labels([(path, labels / f"{path.stem}.png") for path in found])


def check_labels(pairs: list[Pair]) -> list[Pair]:
    """The pairs, when every file is there; one look at each folder instead of one at each file.

    Raises:
        UserError: files are missing.
    """
    listed: dict[Path, set[str]] = {}
    for folder in {path.parent for pair in pairs for path in pair}:
        listed[folder] = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    missing = [pair for pair in pairs if any(path.name not in listed[path.parent] for path in pair)]
    if missing:
        image, label = missing[0]
        absent = label if image.name in listed[image.parent] else image
        raise UserError(f"{len(missing)} of {len(pairs)} image and label pairs are incomplete; first missing: {absent}")
    return pairs


def read_list(path: Path) -> list[str]:
    """The lines of a list file; byte-order mark, CRLF, blank lines and outer blanks do not matter.

    Raises:
        UserError: no such file, or no text.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        raise UserError(f"list file not found: {path}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no text file: {error}") from error
    return [line.strip() for line in lines if line.strip()]
