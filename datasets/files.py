"""Labels and lists from files, exact or refused with the file's name; which files are images and labels."""

import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from datasets.matlab import mat_field
from utils.errors import UserError
from utils.files import decode_text
from utils.pictures import content_of, open_picture, read_image, require_eight_bits

Pair = tuple[Path, Path]
Arrays = tuple[np.ndarray, np.ndarray]

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
COLOR_MODES = ("RGB", "RGBA", "L", "P", "1", "LA", "PA")  # of labels
LABEL_MODES = ("L", "P", "1", "I", "I;16", "I;16B", "I;16L", "I;16N")
RESCALED = re.compile(r"L;[24]|[L1];.*I")  # raw modes whose numbers PIL multiplies or inverts, as grey levels


def read_files(
    image_path: Path | None, label_path: Path | None, indexed: bool = True, colored: bool = False
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Read an image, RGB uint8 ``[H, W, 3]``, and a label as ``read_label`` does; None where no path is given.

    Raises UserError: a file is missing, damaged, or of a kind that has no exact meaning here.
    """
    label = None if label_path is None else read_label(label_path, indexed, colored)
    size = None if label is None else label.shape[:2]
    return None if image_path is None else read_image(image_path, size), label


def read_label(path: Path, indexed: bool = True, colored: bool = False) -> np.ndarray:
    """Read label ids ``[H, W]`` as stored. Never through OpenCV, which turns a palette into grey levels.

    indexed: grey and palette files hold ids. colored: other pictures are RGBA uint8 ``[H, W, 4]``, else refused.
    Raises UserError: see ``read_files``.
    """
    if path.suffix == ".mat" and indexed:
        return mat_field(path, "S").astype(np.int64)
    data = content_of(path)
    return open_picture(path, data, lambda file: _label(path, file, data, indexed, colored))


def _label(path: Path, file: Image.Image, data: bytes, indexed: bool, colored: bool) -> np.ndarray:
    if file.format == "JPEG":
        raise UserError(f"{path}: a label must be stored without loss, such as PNG: JPEG blends classes")
    if file.mode in COLOR_MODES:  # 8 bits a channel
        require_eight_bits(path, file, data)
    if indexed and file.mode in LABEL_MODES:
        if file.tile and _rescaled(file):
            raise UserError(f"{path} holds grey levels that are not 8-bit numbers as stored: save the ids as 8-bit PNG")
        ids = np.asarray(file)
        return ids.astype(np.uint8) if ids.dtype == bool else ids
    if colored and file.mode in COLOR_MODES:
        return np.asarray(file.convert("RGBA"))
    if colored:
        raise UserError(f"{path}: a label of colours must be an 8-bit picture, found mode {file.mode}")
    hint = "; colours: see datasets/folder.py" if file.mode in COLOR_MODES else ""
    raise UserError(f"{path}: a label must hold class ids (grey or palette), found mode {file.mode}{hint}")


def _rescaled(file: Image.Image) -> bool:
    """Say whether PIL changes the file's numbers: grey of 2 or 4 bits, inverted, or of another maximum."""
    raw, *more = file.tile[0].args if isinstance(file.tile[0].args, tuple) else (file.tile[0].args,)
    return bool(RESCALED.match(str(raw))) or (file.tile[0].codec_name.startswith("ppm") and more != [255])


def read_list(path: Path) -> list[str]:
    """Read the lines of a list file; encoding, CRLF, blank lines and outer blanks do not matter.

    Raises UserError: no such file, no text, a name listed twice, or one of no file in the data set.
    """
    try:
        lines = decode_text(content_of(path, "list file")).splitlines()
    except ValueError as error:
        raise UserError(f"{path} is no text file: {error}; save it as UTF-8") from error
    seen: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        name = line.strip()
        if not name:
            continue
        if name in seen:
            raise UserError(f"{path} lists {name} twice, in lines {seen[name]} and {number}")
        if Path(name).is_absolute() or ".." in Path(name).parts or not Path(name).name:
            raise UserError(f"{path}, line {number}: {name} names no file of the data set")
        seen[name] = number
    return list(seen)


def locate(root: Path, marker: str, places: Sequence[str] = ("",), hint: str = "") -> Path:
    """Find the first of ``places`` below ``root`` that has the folder ``marker``.

    Raises UserError: none has; the message says what there is instead.
    """
    for place in places:
        if (root / place / marker).is_dir():
            return root / place
    found = ", ".join(sorted(path.name for path in root.iterdir())[:8]) or "nothing"
    looked = " or ".join(str(Path(place, marker)) for place in places)
    raise UserError(f"{root} holds no folder {looked}; found there: {found}{hint and '. ' + hint}")


def images_in(folder: Path, suffixes: Iterable[str] = IMAGE_SUFFIXES) -> list[Path]:
    """List the image files of a folder, sorted by name. Raises UserError: no such folder."""
    if not folder.is_dir():
        raise UserError(f"folder not found: {folder}")
    wanted = set(suffixes)
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in wanted and not p.name.startswith("."))


def walk_images(root: Path) -> Iterator[tuple[Path, list[str]]]:
    """Yield each folder below the root that holds images, hidden ones left out, with their names, sorted.

    Links to folders are followed, once.
    """
    seen: set[Path] = set()
    for folder, below, names in os.walk(root, followlinks=True):
        seen.add(Path(folder).resolve())
        below[:] = [name for name in sorted(below) if name[0] != "." and Path(folder, name).resolve() not in seen]
        found = [name for name in sorted(names) if Path(name).suffix.lower() in IMAGE_SUFFIXES and name[0] != "."]
        if found:
            yield Path(folder), found


def match(
    images: Iterable[Path], candidates: Callable[[Path], Sequence[Path]], advice: str = "remove one of them"
) -> list[Pair]:
    """Pair each image with the first of its candidate labels that exists; with the first of all where none does.

    Raises UserError: two images have the same label.
    """
    exists, pairs = listing(), {}
    for image in images:
        labels = candidates(image)
        label = next((c for c in labels if exists(c)), labels[0])
        if label in pairs:
            raise UserError(f"{pairs[label]} and {image.name} would have one label, {label}: {advice}")
        pairs[label] = image
    return [(image, label) for label, image in pairs.items()]


def listing() -> Callable[[Path], bool]:
    """Return a function that says whether a file is there, by one look at each folder instead of one at each file."""
    names = cache(lambda folder: {path.name for path in folder.iterdir()} if folder.is_dir() else set())
    return lambda path: path.name in names(path.parent)
