"""Make a smaller copy of a data set, for experiments on little hardware.

python scripts/data/shrink_dataset.py --dataset camvid --source data/camvid --data data/camvid_half --factor 2

Images are averaged over the area of each new pixel, of labels the nearest pixel is kept. Lists (.txt, .yaml) are
copied, so that the copy is read as the original is.
"""

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
from PIL import Image
from tqdm import tqdm

from datasets import build_dataset, dataset_spec
from datasets.files import Pair
from utils.errors import UserError, run_main
from utils.options import option, parse_flags

LISTS = (".txt", ".yaml", ".yml")


@dataclass(frozen=True)
class ShrinkConfig:
    dataset: str = option("", "data set")
    source: str = option("", "its root folder")
    data: str = option("", "root folder of the copy to make")
    factor: float = option(2.0, "how many times smaller each side becomes", minimum=1)


def every_pair(name: str, source: str) -> list[Pair]:
    """Image and label files of all splits that are there; of the others it prints what is wrong.

    Raises:
        UserError: unknown data set, one that is not made of files, or no split there.
    """
    spec = dataset_spec(name, source)
    if not spec.needs_root:
        raise UserError(f"--dataset {name} has no files to make smaller")
    pairs, troubles = [], []
    for split in spec.splits:
        try:
            pairs += build_dataset(name, source, split).pairs
        except UserError as error:
            troubles.append(f"{split}: {error}")
    if not pairs:
        raise UserError("; ".join(troubles))
    for trouble in troubles:
        print(f"left out: {trouble}")
    return pairs


def shrink(array: np.ndarray, factor: float, resampling: Image.Resampling) -> Image.Image:
    """``[H, W]``, ``[H, W, 3]`` or ``[H, W, 4]`` -> a picture of H / factor x W / factor, rounded."""
    size = [max(1, round(side / factor)) for side in array.shape[1::-1]]
    return Image.fromarray(array).resize(size, resampling)


def save(picture: Image.Image, path: Path) -> None:
    """Complete or not at all. Raises UserError when the file cannot be written or has no such format."""
    partial = path.with_name(f".partial-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(partial, quality=95, subsampling=0)  # of JPEG
        partial.replace(path)
    except (OSError, ValueError) as error:
        partial.unlink(missing_ok=True)
        raise UserError(f"{path} cannot be written: {error}") from error


def main() -> None:
    config = ShrinkConfig(**parse_flags(ShrinkConfig, __doc__))
    for flag in ("dataset", "source", "data"):
        if not getattr(config, flag):
            raise UserError(f"--{flag} is missing")
    source, target = Path(config.source).expanduser().resolve(), Path(config.data).expanduser().resolve()
    if target.is_relative_to(source) or source.is_relative_to(target):
        raise UserError(f"--data {config.data} and --source {config.source} lie in each other")
    spec = dataset_spec(config.dataset, str(source))
    pairs = sorted(set(every_pair(config.dataset, str(source))), key=lambda pair: pair[0])
    outside = [path for pair in pairs for path in pair if path and not path.is_relative_to(source)]
    if outside:
        raise UserError(f"{outside[0]} lies outside --source {config.source}: where its copy belongs is not known")
    lists = [path for path in source.rglob("*") if path.suffix in LISTS and path.is_file()]
    for image, label in tqdm(pairs, "pictures", disable=None):
        image_ids = spec.read(image, label)
        for path, array, resampling in zip(
            (image, label), image_ids, (Image.Resampling.BOX, Image.Resampling.NEAREST), strict=True
        ):
            if path is not None:
                save(shrink(array, config.factor, resampling), target / path.relative_to(source))
    for path in lists:
        copy = target / path.relative_to(source)
        try:
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
        except OSError as error:
            raise UserError(f"{copy} cannot be written: {error.strerror or error}") from error
    print(f"{config.data}: {len(pairs)} images and labels, {config.factor:g} times smaller")


if __name__ == "__main__":
    run_main(main)
