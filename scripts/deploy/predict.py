"""Segment image files: a coloured PNG for each, whose palette indices are the classes.

    python scripts/deploy/predict.py street.jpg photos/ --pretrained runs/student/best.pth --output predictions
    python scripts/deploy/predict.py photos/ --pretrained camvid_student --resize 240 180 --blend

Images of any size, files or folders (not their subfolders); transparent pixels are white, as on a page. Pictures have
the image's size, with --resize too: a network is best at about the size it was trained at. Colours and class names
come from the checkpoint; one without gets VOC's colours. An image that cannot be read is named and skipped; the exit
status is then 1.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from utils.environment import require_packages

require_packages()

import numpy as np
import torch
from matplotlib.colors import to_hex

from datasets.base import voc_colors
from datasets.files import IMAGE_SUFFIXES, images_in
from engine.runtime import start_runtime
from models.checkpoints.card import Card
from models.checkpoints.loading import from_checkpoint
from utils.colors import blended, palette_picture, save_png
from utils.errors import UserError, run_main
from utils.files import require_apart
from utils.options import option, parse_flags
from utils.pictures import read_image
from utils.types import Rgb


@dataclass(frozen=True)
class PredictConfig:
    images: tuple[str, ...] = option((), "image files and folders", positional=True)
    pretrained: str = option("", "checkpoint of an image-only network")
    output: str = option("predictions", "folder for NAME.png (and NAME_blend.png)")
    blend: bool = option(False, "also write the colours over the image")
    resize: tuple[int, int] | None = option(
        None, "long and short side that images are resized to fit before they are looked at, as by eval.py", minimum=32
    )
    device: str = option("auto", "where to run", choices=("auto", "cpu", "cuda"))


def appearance(card: Card) -> tuple[list[str], list[Rgb]]:
    """Names and colours of the classes; made up where the checkpoint does not know them."""
    count = card.num_classes
    named, colored = len(card.class_names) == count, len(card.palette) == count
    names = list(card.class_names) if named else [f"class {k}" for k in range(count)]
    return names, [tuple(color) for color in card.palette] if colored else list(voc_colors(count))


def find_images(given: Sequence[str]) -> list[Path]:
    """Files as they are given, folders as their images, sorted.

    Raises UserError: nothing given, or a folder without images.
    """
    if not given:
        raise UserError("no images given: predict.py IMAGE.. --pretrained FILE")
    found = []
    for path in (Path(text).expanduser() for text in given):
        inside = images_in(path) if path.is_dir() else [path]
        if not inside:
            raise UserError(f"{path} holds no images ({' '.join(IMAGE_SUFFIXES)})")
        found += inside
    return found


def outputs(images: Sequence[Path], config: PredictConfig) -> dict[Path, list[Path]]:
    """The files to write for each image: NAME.png, and NAME_blend.png if asked for.

    Raises UserError: two images would be written to one file, or one over an input.
    """
    folder = Path(config.output).expanduser()
    suffixes = ("", "_blend") if config.blend else ("",)
    files = {image: [folder / f"{image.stem}{suffix}.png" for suffix in suffixes] for image in images}
    require_apart(((path, image) for image, paths in files.items() for path in paths), images, "--output folder")
    return files


def legend(names: Sequence[str], palette: Sequence[Rgb], pixels: np.ndarray) -> str:
    """One line a class, the most frequent first, with its share of all predicted pixels."""
    width = max(map(len, names))
    total = max(int(pixels.sum()), 1)
    return "\n".join(
        f"{k:>4}  {names[k]:<{width}}  {to_hex(np.array(palette[k]) / 255)}  {100 * pixels[k] / total:6.2f} %"
        for k in np.argsort(-pixels, kind="stable")
    )


@torch.inference_mode()
def main(argv: Sequence[str] | None = None) -> None:
    config = PredictConfig(**parse_flags(PredictConfig, __doc__, argv))
    if not config.pretrained:
        raise UserError("--pretrained FILE is missing: the checkpoint of the network")
    images = find_images(config.images)
    files = outputs(images, config)
    loaded = from_checkpoint(config.pretrained)
    if loaded.noise is not None:
        raise UserError(f"--pretrained {config.pretrained} is a label-assisted teacher: it needs labels; use a student")
    names, palette = appearance(loaded.card)
    pixels = np.zeros(len(names), np.int64)
    failed = 0
    with start_runtime(config) as runtime:
        runtime.place(loaded.model)
        for path in images:
            try:
                image = read_image(path, behind="white")
            except UserError as error:
                print(f"skipped: {error}", file=sys.stderr)
                failed += 1
                continue
            ids = loaded.predict(image, resize=config.resize)
            pixels += np.bincount(ids.ravel(), minlength=len(names))
            plain, *blends = files[path]
            save_png(palette_picture(ids, palette), plain)
            for file in blends:
                save_png(blended(image, ids, palette), file)
            print(f"{path} -> {', '.join(map(str, files[path]))}")
    if failed < len(images):
        print(legend(names, palette, pixels))
    if failed:
        print(f"error: {failed} of {len(images)} images could not be read", file=sys.stderr)
        raise SystemExit(1)


if __name__ == "__main__":
    run_main(main)
