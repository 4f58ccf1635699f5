"""Segment image files: a coloured PNG for each, whose palette indices are the classes.

    python scripts/deploy/predict.py street.jpg photos/ --pretrained runs/student/best.pth --output predictions
    python scripts/deploy/predict.py photos/ --pretrained camvid_fpn --resize 480 360 --blend

Give image files or folders. Folders are searched with all folders in them, and the output has the same folders. Images
may have any size, and transparent pixels become white. Pictures have the image's size, with --resize too: a network is
best at about the size it was trained at. --scales, --flip, --window and --amp are those of eval.py. Colours and class
names come from the checkpoint; one without gets VOC's colours. An image that cannot be read is named and skipped; the
exit status is then 1.
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

from datasets.base import make_voc_colors
from datasets.files import IMAGE_SUFFIXES, walk_images
from engine.protocol import ViewSettings
from engine.runtime import start_runtime
from models.checkpoints.card import Card
from models.checkpoints.loading import from_checkpoint
from models.prediction import Predictor
from utils.colors import blend_classes, format_hex, make_palette_picture, save_png
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
    """Return the names and the colours of the classes.

    Where the checkpoint does not know them, the names are "class 0", "class 1", ..., and the colours are VOC's.
    """
    count = card.num_classes
    names = list(card.class_names)
    if len(names) != count:
        names = [f"class {k}" for k in range(count)]
    palette = [tuple(color) for color in card.palette]
    if len(palette) != count:
        palette = list(make_voc_colors(count))
    return names, palette


def find_images(given: Sequence[str], output: Path) -> dict[Path, Path]:
    """Find the images to segment: the files that are given, and all images in the folders that are given.

    output: the folder that predictions are written to. If it lies in a folder that is given, the pictures in it are
    predictions of an earlier call, and are passed over. Returns each image with the place of its prediction below
    ``output``, without a suffix: photos/a/b.jpg of the folder photos goes to a/b.

    Raises:
        UserError: nothing is given, a name is empty, or a folder holds no images.
    """
    if not given:
        raise UserError("no images given: predict.py IMAGE.. --pretrained FILE")
    found: dict[Path, Path] = {}
    for text in given:
        if not text:
            raise UserError("the name of an image is empty: a variable in the command may not be set")
        path = Path(text).expanduser()
        if not path.is_dir():
            found[path] = Path(path.stem)
            continue
        inside: list[Path] = []
        place = path.resolve()
        target = output.resolve()
        holds_output = target != place and target.is_relative_to(place)
        for folder, names in walk_images(path):
            is_output = holds_output and folder.resolve().is_relative_to(target)
            if not is_output:
                inside += [folder / name for name in names]
        if not inside:
            raise UserError(f"{path} holds no images ({' '.join(IMAGE_SUFFIXES)})")
        for image in inside:
            found[image] = image.relative_to(path).with_suffix("")
    return found


def plan_outputs(images: Mapping[Path, Path], config: PredictConfig) -> dict[Path, list[Path]]:
    """Return the files to write for each image: NAME.png, and NAME_blend.png with ``--blend``.

    images: what ``find_images`` returns.

    Raises:
        UserError: two images would be written to one file, or a file would replace one of the images.
    """
    folder = Path(config.output).expanduser()
    suffixes = ("", "_blend") if config.blend else ("",)
    files: dict[Path, list[Path]] = {}
    outputs: list[tuple[Path, Path]] = []
    for image, place in images.items():
        files[image] = [folder / place.with_name(f"{place.name}{suffix}.png") for suffix in suffixes]
        outputs += [(file, image) for file in files[image]]
    require_apart(outputs, images, "--output folder")
    return files


def segment(path: Path, image: np.ndarray, predictor: Predictor, device: torch.device) -> np.ndarray:
    """Return the class of every pixel, uint8 ``[H, W]``, of an image, RGB uint8 ``[H, W, 3]``.

    path: the image's file, for messages.

    Raises:
        UserError: the image does not fit in memory.
    """
    height, width = image.shape[:2]
    size = f"{height}x{width}"
    with explain_out_of_memory(f"{path}: out of memory for an image of {size}: --window H W, or --resize LONG SHORT"):
        pixels = torch.from_numpy(image.transpose(2, 0, 1).copy())[None].to(device)
        return predictor.predict_classes(pixels)[0].to(torch.uint8).cpu().numpy()


def try_to_segment(path: Path, predictor: Predictor, device: torch.device) -> tuple[np.ndarray, np.ndarray] | None:
    """Return an image, RGB uint8 ``[H, W, 3]``, and its classes, uint8 ``[H, W]``.

    If the image cannot be read or segmented, say why on stderr and return None, so that the other images are still
    segmented. An error of the program is raised as it is.
    """
    try:
        image = read_image(path, behind="white")
        return image, segment(path, image, predictor, device)
    except Exception as error:
        reason = explain_error(error)
        if reason is None:
            raise
        message = str(reason)
        if str(path) not in message:
            message = f"{path}: {message}"
        print(f"skipped: {message}", file=sys.stderr)
        return None


def make_legend(names: Sequence[str], palette: Sequence[Rgb], pixels: np.ndarray) -> str:
    """Return one line a class, the most frequent first: index, name, colour, and share of all predicted pixels.

    pixels: how many pixels each class has, int64 ``[K]``.
    """
    width = max(map(len, names))
    total = max(int(pixels.sum()), 1)
    lines = []
    for k in np.argsort(-pixels, kind="stable"):
        share = 100 * pixels[k] / total
        lines.append(f"{k:>4}  {names[k]:<{width}}  {format_hex(palette[k])}  {share:6.2f} %")
    return "\n".join(lines)


def write_pictures(image: np.ndarray, classes: np.ndarray, palette: Sequence[Rgb], files: Sequence[Path]) -> None:
    """Write the pictures of one image.

    files: those of ``plan_outputs``: the coloured classes, and with ``--blend`` the classes over the image.

    Raises:
        UserError: a file cannot be written.
    """
    plain, *blends = files
    save_png(make_palette_picture(classes, palette), plain)
    for file in blends:
        save_png(blend_classes(image, classes, palette), file)


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
            write_pictures(image, classes, palette, files[path])
            print(f"{path} -> {', '.join(map(str, files[path]))}")
    if failed < len(images):
        print(make_legend(names, palette, pixels))
        if loaded.card.crop_size:
            height, width = loaded.card.crop_size
            print(f"trained on crops of {height}x{width} (height x width): --resize brings images to a like scale")
    if failed:
        print(f"error: {failed} of {len(images)} images were skipped", file=sys.stderr)
        raise SystemExit(1)


if __name__ == "__main__":
    run_main(main)
