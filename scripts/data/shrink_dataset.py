"""Make a smaller copy of a data set, for experiments on little hardware.

python scripts/data/shrink_dataset.py --dataset camvid --source data/camvid --data data/camvid_half --factor 2

A pixel of an image becomes the mean of the area that it covers. A pixel of a label takes the nearest value. Lists
(.txt, .yaml, and those that a dataset.yaml names) are copied, so that the copy is read as the original is.
"""

import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from utils.environment import require_packages

require_packages()

import numpy as np
from PIL import Image
from tqdm import tqdm

from datasets import build_dataset, get_dataset_spec
from datasets.base import read_stored_pair
from datasets.files import PathPair
from datasets.folder import FILE
from utils.entry import run_main
from utils.errors import UserError
from utils.files import read_yaml, write
from utils.options import option, parse_flags

LISTS = (".txt", ".lst", ".csv", ".yaml", ".yml")


@dataclass(frozen=True)
class ShrinkConfig:
    """Hold the settings of shrink_dataset.py."""

    dataset: str = option("", "data set")
    source: str = option("", "its root folder")
    data: str = option("", "root folder of the copy to make")
    factor: float = option(2.0, "how many times smaller each side becomes", minimum=1)


def list_all_pairs(name: str, source: str) -> list[PathPair]:
    """Return the image and label files of all splits that can be read. Print what is wrong with the other splits.

    Raises:
        UserError: the data set is unknown, or is not made of files.
    """
    spec = get_dataset_spec(name, source)
    if not spec.needs_root:
        raise UserError(f"--dataset {name} has no files to make smaller")
    pairs: set[PathPair] = set()
    for split in spec.splits:
        try:
            pairs.update(build_dataset(name, source, split).pairs)
        except UserError as error:
            print(f"left out: {split}: {error}")
    return sorted(pairs, key=lambda pair: pair[0])


def shrink(array: np.ndarray, factor: float, resampling: Image.Resampling, path: Path) -> None:
    """Resize a picture to H / factor x W / factor, rounded, and write it in the format of the path's suffix.

    array: an image ``[H, W, 3]``, or a label ``[H, W]``, ``[H, W, 3]`` or ``[H, W, 4]``.
    resampling: NEAREST for a label.

    Raises:
        UserError: the file cannot be written, or its format cannot hold such a picture.
    """
    height, width = array.shape[:2]
    size = (max(1, round(width / factor)), max(1, round(height / factor)))
    kind = Image.registered_extensions().get(path.suffix.lower())
    if kind is None:
        raise UserError(f"{path} would be no picture: scripts/data/prepare.py makes PNG of MATLAB labels")
    picture = Image.fromarray(array).resize(size, resampling)
    # formats ignore the options that they do not have
    options = {"quality": 95, "subsampling": 0}  # JPEG
    if resampling == Image.Resampling.NEAREST:
        options = {"lossless": True}  # WebP, whose compression would change a label
    try:
        write(path, lambda file: picture.save(file, kind, **options), durable=False)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be written: {error}") from error


def main(argv: Sequence[str] | None = None) -> None:
    config = ShrinkConfig(**parse_flags(ShrinkConfig, __doc__, argv))
    for flag in ("dataset", "source", "data"):
        if not getattr(config, flag):
            raise UserError(f"--{flag} is missing")
    source = Path(config.source).expanduser().resolve()
    target = Path(config.data).expanduser().resolve()
    if target.is_relative_to(source) or source.is_relative_to(target):
        raise UserError(f"--data {config.data} and --source {config.source} lie in each other")
    pairs = find_pairs(config, source)
    shrink_pairs(config, pairs, source, target)
    copy_lists(source, target, find_named_lists(config.dataset, source))
    print(f"{config.data}: {len(pairs)} images and labels, {config.factor:g} times smaller")


def find_pairs(config: ShrinkConfig, source: Path) -> list[PathPair]:
    """Return the image and label files to make smaller.

    Raises:
        UserError: the data set has no files, or a file lies outside the data set's folder.
    """
    pairs = list_all_pairs(config.dataset, str(source))
    if not pairs:
        raise UserError(f"--source {config.source} has no images of {config.dataset}")
    outside = [path for pair in pairs for path in pair if path and not path.is_relative_to(source)]
    if outside:
        raise UserError(f"{outside[0]} lies outside --source {config.source}: where its copy belongs is not known")
    return pairs


def shrink_pairs(config: ShrinkConfig, pairs: Sequence[PathPair], source: Path, target: Path) -> None:
    """Write smaller pictures of all pairs below ``target``, each where it lies below ``source``.

    Raises:
        UserError: a file cannot be read or written, or an image and its label differ in size.
    """
    spec = get_dataset_spec(config.dataset, str(source))
    for image_path, label_path in tqdm(pairs, "pictures", disable=None):
        image, label = read_stored_pair(spec, image_path, label_path)
        shrink(image, config.factor, Image.Resampling.BOX, target / image_path.relative_to(source))
        if label_path is not None:
            shrink(label, config.factor, Image.Resampling.NEAREST, target / label_path.relative_to(source))


def find_named_lists(dataset: str, source: Path) -> set[Path]:
    """Return the lists that a dataset.yaml names. Their names may have any suffix, or none."""
    if dataset != "folder":
        return set()
    splits = read_yaml(source / FILE)["splits"]
    return {source / entry["list"] for entry in splits.values() if "list" in entry}


def copy_lists(source: Path, target: Path, named: Collection[Path]) -> None:
    """Copy the lists of a data set as they are, each to where it lies below ``source``.

    named: the lists that dataset.yaml names.

    Raises:
        UserError: a copy cannot be written.
    """
    for path in source.rglob("*"):
        if (path.suffix.lower() in LISTS or path in named) and path.is_file():
            write(target / path.relative_to(source), lambda file, path=path: file.write(path.read_bytes()))


if __name__ == "__main__":
    run_main(main)
