"""Segment image files: a coloured PNG for each, whose palette indices are the classes.

    python scripts/deploy/predict.py street.jpg photos/ --pretrained runs/student/best.pth --output predictions
    python scripts/deploy/predict.py photos/ --pretrained camvid_fpn --resize 480 360 --blend

Images of any size, files or folders with all folders in them, which the output has, too; transparent pixels are white,
as on a page. Pictures have the image's size, with --resize too: a network is best at about the size it was trained at.
--scales, --flip, --window and --amp are those of eval.py. Colours and class names come from the checkpoint; one without
gets VOC's colours. An image that cannot be read is named and skipped; the exit status is then 1.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from utils.environment import require_packages

require_packages()

import numpy as np
import torch
from matplotlib.colors import to_hex

from datasets.base import make_voc_colors
from datasets.files import IMAGE_SUFFIXES, walk_images
from engine.protocol import ViewSettings
from engine.runtime import start_runtime
from models.checkpoints.card import Card
from models.checkpoints.loading import from_checkpoint
from models.prediction import Predictor
from utils.colors import blend_classes, make_palette_picture, save_png
from utils.entry import run_main
from utils.errors import UserError, explain_error, explain_out_of_memory
from utils.files import require_apart
from utils.options import option, parse_flags
from utils.pictures import read_image
from utils.types import Rgb


@dataclass(frozen=True)
class PredictConfig(ViewSettings):
    """Hold the settings of predict.py."""

    images: tuple[str, ...] = option((), "image files and folders", positional=True)
    pretrained: str = option("", "checkpoint of an image-only network")
    model: str = option("", "package.module:function, where the checkpoint holds a network of your own")
    output: str = option("predictions", "folder for NAME.png (and NAME_blend.png)")
    blend: bool = option(False, "also write the colours over the image")
    amp: str = option("none", "autocast", choices=("none", "bf16", "fp16"))
    device: str = option("auto", "where to run", choices=("auto", "cpu", "cuda"))


def get_class_appearance(card: Card) -> tuple[list[str], list[Rgb]]:
    """Return names and colours of the classes; made up where the checkpoint does not know them."""
    count = card.num_classes
    named = len(card.class_names) == count
    colored = len(card.palette) == count
    names = list(card.class_names) if named else [f"class {k}" for k in range(count)]
    return names, [tuple(color) for color in card.palette] if colored else list(make_voc_colors(count))


def find_images(given: Sequence[str], output: Path) -> dict[Path, Path]:
    """Find the images to segment: files as they are given, and all in folders, sorted.

    output: the folder that predictions go to; what lies there is no image. Returns each image with the place of its
    prediction below that folder, without a suffix.

    Raises:
        UserError: nothing given, or a folder without images.
    """
    if not given:
        raise UserError("no images given: predict.py IMAGE.. --pretrained FILE")
    found: dict[Path, Path] = {}
    for path in (Path(text).expanduser() for text in given):
        if not path.is_dir():
            found[path] = Path(path.stem)
            continue
        inside = [
            folder / name
            for folder, names in walk_images(path)
            if folder == path or not folder.resolve().is_relative_to(output.resolve())
            for name in names
        ]
        if not inside:
            raise UserError(f"{path} holds no images ({' '.join(IMAGE_SUFFIXES)})")
        found |= {image: image.relative_to(path).with_suffix("") for image in inside}
    return found


def plan_outputs(images: Mapping[Path, Path], config: PredictConfig) -> dict[Path, list[Path]]:
    """Return the files to write for each image: NAME.png, and NAME_blend.png if asked for.

    images: of ``find_images``.

    Raises:
        UserError: two images would be written to one file, or one over an input.
    """
    folder = Path(config.output).expanduser()
    suffixes = ("", "_blend") if config.blend else ("",)
    files = {
        image: [folder / place.with_name(f"{place.name}{suffix}.png") for suffix in suffixes]
        for image, place in images.items()
    }
    require_apart(((path, image) for image, paths in files.items() for path in paths), images, "--output folder")
    return files


def segment(path: Path, image: np.ndarray, predictor: Predictor, device: torch.device) -> np.ndarray:
    """Return the class of every pixel of an image RGB uint8 ``[H, W, 3]``, uint8 ``[H, W]``.

    path: of the image, for messages.

    Raises:
        UserError: the image does not fit in memory.
    """
    size = "x".join(map(str, image.shape[:2]))
    with explain_out_of_memory(f"{path}: out of memory for an image of {size}: --window H W, or --resize LONG SHORT"):
        pixels = torch.from_numpy(image.transpose(2, 0, 1).copy())[None].to(device)
        return predictor.predict_classes(pixels)[0].to(torch.uint8).cpu().numpy()


def try_to_segment(path: Path, predictor: Predictor, device: torch.device) -> tuple[np.ndarray, np.ndarray] | None:
    """Return an image RGB uint8 ``[H, W, 3]`` and its classes uint8 ``[H, W]``.

    If it cannot be read or segmented, say why on stderr and return None, so that the other images are not lost.
    """
    try:
        image = read_image(path, behind="white")
        return image, segment(path, image, predictor, device)
    except Exception as error:
        reason = explain_error(error)
        if reason is None:
            raise
        named = reason if str(path) in str(reason) else f"{path}: {reason}"
        print(f"skipped: {named}", file=sys.stderr)
        return None


def make_legend(names: Sequence[str], palette: Sequence[Rgb], pixels: np.ndarray) -> str:
    """Write one line a class, the most frequent first, with its share of all predicted pixels."""
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
    images = find_images(config.images, Path(config.output).expanduser())
    files = plan_outputs(images, config)
    loaded = from_checkpoint(config.pretrained, model=config.model)
    if loaded.card.reads_label:
        raise UserError(f"--pretrained {config.pretrained} is a label-assisted teacher: it needs labels; use a student")
    names, palette = get_class_appearance(loaded.card)
    pixels = np.zeros(len(names), np.int64)
    failed = 0
    with start_runtime(config) as runtime:
        model = runtime.to_device(loaded.model)
        predictor = Predictor(model, loaded.convention, **config.get_view_options(), precision=runtime.precision)
        for path in images:
            image_and_classes = try_to_segment(path, predictor, runtime.device)
            if image_and_classes is None:
                failed += 1
                continue
            image, classes = image_and_classes
            pixels += np.bincount(classes.ravel(), minlength=len(names))
            plain, *blends = files[path]
            save_png(make_palette_picture(classes, palette), plain)
            for file in blends:
                save_png(blend_classes(image, classes, palette), file)
            print(f"{path} -> {', '.join(map(str, files[path]))}")
    if failed < len(images):
        print(make_legend(names, palette, pixels))
        if size := loaded.card.crop_size:
            print("trained on crops of {}x{} (height x width): --resize brings images to a like scale".format(*size))
    if failed:
        print(f"error: {failed} of {len(images)} images were skipped", file=sys.stderr)
        raise SystemExit(1)


if __name__ == "__main__":
    run_main(main)
