"""Read label files and list files exactly or refuse them by name, and find the images and labels of a data set."""

import os
import re
import string
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from datasets.lossless import require_lossless
from datasets.matlab import read_mat_field
from utils.errors import UserError
from utils.files import decode_text
from utils.pictures import load_as_stored, open_picture, read_content, read_image, require_eight_bits

PathPair = tuple[Path, Path]  # the paths of an image and its label
Sample = tuple[np.ndarray, np.ndarray]  # an image and its label

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".tif", ".tiff", ".webp")
# PIL's modes of the labels that hold colours, and of those that hold ids
COLOR_MODES = ("RGB", "RGBA", "L", "P", "1", "LA", "PA")
ID_MODES = ("L", "P", "1", "I", "I;16", "I;16B", "I;16L", "I;16N")
RESCALED_MODES = re.compile(r"L;[24]|[L1];.*I")  # PIL's raw modes whose stored numbers it multiplies or inverts
# what joined files and old editors leave in a list: byte-order marks, spaces of no width, DOS's end of a file
INVISIBLE = "\ufeff\u200b\x1a" + string.whitespace
MAX_FOUND = 8  # names of files that an error message lists where a folder is missing


def read_files(
    image_path: Path | None, label_path: Path | None, indexed: bool = True, colored: bool = False
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Read an image, RGB uint8 ``[H, W, 3]``, and its label as ``read_label`` does. No path gives None.

    Raises:
        UserError: a file is missing, damaged, or of a kind that cannot be read exactly.
    """
    label = None
    label_size = None
    if label_path is not None:
        label = read_label(label_path, indexed, colored)
        label_size = label.shape[:2]
    image = None
    if image_path is not None:
        image = read_image(image_path, label_size)
    return image, label


def read_label(path: Path, indexed: bool = True, colored: bool = False) -> np.ndarray:
    """Read a label as stored: ids ``[H, W]``, or RGBA colours uint8 ``[H, W, 4]``.

    indexed: read grey and palette pictures as ids. colored: read other pictures as colours; otherwise they are refused.

    Raises:
        UserError: the file is missing, damaged, or of a kind that cannot be read exactly.
    """
    if path.suffix == ".mat" and indexed:
        return read_mat_field(path, "S").astype(np.int64)
    data = read_content(path)
    with open_picture(path, data) as file:  # not through OpenCV, which turns a palette into grey levels
        return _convert_picture(path, file, data, indexed, colored)


def _convert_picture(path: Path, file: Image.Image, data: bytes, indexed: bool, colored: bool) -> np.ndarray:
    """Return the ids or colours of a label picture. The arguments are those of ``read_label``.

    Raises:
        UserError: the picture cannot be read exactly.
    """
    require_lossless(path, file, data)
    if file.mode in COLOR_MODES:
        require_eight_bits(path, file, data)
    if indexed and file.mode in ID_MODES:
        if file.tile and _is_rescaled(file):
            raise UserError(f"{path} holds grey levels that are not 8-bit numbers as stored: save the ids as 8-bit PNG")
        ids = np.asarray(load_as_stored(file))
        return ids.astype(np.uint8) if ids.dtype == bool else ids
    if colored and file.mode in COLOR_MODES:
        return np.asarray(load_as_stored(file).convert("RGBA"))
    if colored:
        raise UserError(f"{path}: a label of colours must be an 8-bit picture, found mode {file.mode}")
    hint = "; colours: see datasets/folder.py" if file.mode in COLOR_MODES else ""
    raise UserError(f"{path}: a label must hold class ids (grey or palette), found mode {file.mode}{hint}")


def _is_rescaled(file: Image.Image) -> bool:
    """Return whether PIL changes the stored numbers.

    It does so for grey of 2 or 4 bits, for inverted grey, and where a PPM file's maximum is not 255.
    """
    tile = file.tile[0]
    arguments = tile.args if isinstance(tile.args, tuple) else (tile.args,)
    raw_mode = str(arguments[0])
    if RESCALED_MODES.match(raw_mode):
        return True
    return tile.codec_name.startswith("ppm") and arguments[1:] != (255,)


def read_list(path: Path) -> list[str]:
    """Read the names in a list file, one a line. Encoding, line ends, blank lines and outer blanks do not matter.

    Windows' backslashes are read as slashes.

    Raises:
        UserError: the file is missing or no text, lists a name twice, or lists a name outside the data set.
    """
    try:
        lines = decode_text(read_content(path, "list file")).splitlines()
    except ValueError as error:
        raise UserError(f"{path} is no text file: {error}; save it as UTF-8") from error
    line_numbers: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        name = clean_name(line)
        if not name:
            continue
        if name in line_numbers:
            raise UserError(f"{path} lists {name} twice, in lines {line_numbers[name]} and {number}")
        if Path(name).is_absolute() or ".." in Path(name).parts or not Path(name).name:
            raise UserError(f"{path}, line {number}: {name} names no file of the data set")
        line_numbers[name] = number
    return list(line_numbers)


def clean_name(line: str) -> str:
    """Return the name in a line of a list, without what editors leave around it, and with slashes."""
    return line.strip(INVISIBLE).strip().replace("\\", "/")


def find_base_folder(root: Path, marker: str, places: Sequence[str] = ("",), hint: str = "") -> Path:
    """Find the first of ``places`` below ``root`` that contains the folder ``marker``.

    hint: a sentence for the error message that says which archives to unpack.

    Raises:
        UserError: no place contains the folder. The message lists what is in ``root`` instead.
    """
    for place in places:
        if (root / place / marker).is_dir():
            return root / place
    found = ", ".join(sorted(path.name for path in root.iterdir())[:MAX_FOUND]) or "nothing"
    expected = " or ".join(str(Path(place, marker)) for place in places)
    message = f"{root} holds no folder {expected}; found there: {found}"
    raise UserError(f"{message}. {hint}" if hint else message)


def list_images(folder: Path, suffixes: Iterable[str] = IMAGE_SUFFIXES) -> list[Path]:
    """List the image files of a folder, sorted by name. Hidden files are left out.

    Raises:
        UserError: the folder does not exist.
    """
    if not folder.is_dir():
        raise UserError(f"folder not found: {folder}")
    wanted = set(suffixes)
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in wanted and not p.name.startswith("."))


def walk_images(root: Path) -> Iterator[tuple[Path, list[str]]]:
    """Yield each folder below the root that holds images, with the sorted names of its images.

    Hidden files and folders are left out. Links to folders are followed, but no folder is visited twice.

    Raises:
        UserError: a folder cannot be read.
    """

    def refuse(error: OSError) -> None:
        raise UserError(f"{error.filename} cannot be read: {error.strerror}") from error

    visited: set[Path] = set()
    for folder, subfolders, names in os.walk(root, onerror=refuse, followlinks=True):
        place = Path(folder).resolve()
        if place in visited:
            subfolders.clear()  # os.walk goes into the folders that are left in this list
            continue
        visited.add(place)
        shown = [name for name in subfolders if not name.startswith(".")]
        # links come last, so that a folder within the root is visited under its own name
        subfolders[:] = sorted(shown, key=lambda name: (Path(folder, name).is_symlink(), name))
        images = [
            name for name in sorted(names) if Path(name).suffix.lower() in IMAGE_SUFFIXES and not name.startswith(".")
        ]
        if images:
            yield Path(folder), images


def pair_labels(
    images: Iterable[Path], candidates: Callable[[Path], Sequence[Path]], advice: str = "remove one of them"
) -> list[PathPair]:
    """Pair each image with the first of its candidate labels that exists, or with the first of all if none exists.

    candidates: function that returns the possible label paths of an image. advice: what to do about two images with one
    label, for the error message.

    Raises:
        UserError: two images have the same label.
    """
    exists = make_exists_check()
    image_of_label: dict[Path, Path] = {}
    for image in images:
        labels = candidates(image)
        label = next((path for path in labels if exists(path)), labels[0])
        if label in image_of_label:
            raise UserError(f"{image_of_label[label]} and {image.name} would have one label, {label}: {advice}")
        image_of_label[label] = image
    return [(image, label) for label, image in image_of_label.items()]


def make_exists_check() -> Callable[[Path], bool]:
    """Make a function that returns whether a file exists. It lists each folder once, which is faster than asking often.

    Files that appear later are not noticed.
    """

    @cache
    def list_names(folder: Path) -> set[str]:
        return {path.name for path in folder.iterdir()} if folder.is_dir() else set()

    return lambda path: path.name in list_names(path.parent)
