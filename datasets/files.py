"""Images, labels and lists from files: exact, or refused with the file's name."""

import io
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from datasets.jpeg import JPEG, decode_jpeg
from datasets.matlab import mat_field
from utils.errors import UserError
from utils.files import read_bytes

Pair = tuple[Path, Path]
Arrays = tuple[np.ndarray, np.ndarray]

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
IMAGE_MODES = ("RGB", "L", "P", "1", "CMYK", "RGBA", "LA", "PA")  # 8 bits a channel, with one meaning as RGB
COLOR_MODES = ("RGB", "RGBA", "L", "P", "1", "LA", "PA")  # of labels
LABEL_MODES = ("L", "P", "1", "I", "I;16", "I;16B", "I;16L", "I;16N")
RESCALED = re.compile(r"L;[24]|[L1];.*I")  # raw modes whose numbers PIL multiplies or inverts, as grey levels


def read_files(
    image_path: Path | None, label_path: Path | None, indexed: bool = True, colored: bool = False
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """RGB uint8 ``[H, W, 3]`` and label as ``read_label`` gives it; None where there is no such file.

    Raises UserError: a file is missing, damaged, or of a kind that has no exact meaning here.
    """
    label = None if label_path is None else read_label(label_path, indexed, colored)
    size = None if label is None else label.shape[:2]
    return None if image_path is None else read_image(image_path, size), label


def read_image(path: Path, size: tuple[int, int] | None = None, behind: str = "") -> np.ndarray:
    """RGB uint8 ``[H, W, 3]``, turned as its EXIF orientation says; kept as stored where only that has ``size``.

    behind: the colour that shows through transparent pixels; without one they are refused.

    JPEG goes through OpenCV, which is faster than PIL and gives the same pixels, once it is known to be whole: OpenCV
    fills up what a truncated file lacks. Everything else goes through PIL.
    Raises UserError: see ``read_files``.
    """
    image = _decode(path, True, behind)
    turned = size is not None and image.shape[:2] != size == image.shape[1::-1]
    stored = _decode(path, False, behind) if turned else image
    return stored if stored.shape[:2] == size else image


def _decode(path: Path, upright: bool, behind: str) -> np.ndarray:
    data = _content(path)
    if not data.startswith(JPEG):
        return _open(path, data, lambda file: _rgb(path, ImageOps.exif_transpose(file) if upright else file, behind))
    return decode_jpeg(path, data, upright)


def _rgb(path: Path, file: Image.Image, behind: str) -> np.ndarray:
    if file.mode not in IMAGE_MODES:
        raise UserError(f"{path} has pixels of mode {file.mode}: save it as 8-bit RGB, which fixes what is black")
    if file.has_transparency_data:
        file = file.convert("RGBA")
        if behind:
            file = Image.alpha_composite(Image.new("RGBA", file.size, behind), file)
        elif file.getchannel("A").getextrema()[0] < 255:
            raise UserError(f"{path} has transparent pixels: save it without alpha, which fixes their colour")
    return np.array(file.convert("RGB"))


def read_label(path: Path, indexed: bool = True, colored: bool = False) -> np.ndarray:
    """Label ids ``[H, W]`` as stored. Never through OpenCV, which turns a palette into grey levels.

    indexed: grey and palette files hold ids. colored: other pictures are RGBA uint8 ``[H, W, 4]``, else refused.
    Raises UserError: see ``read_files``.
    """
    if path.suffix == ".mat" and indexed:
        return mat_field(path, "S").astype(np.int64)
    return _open(path, _content(path), lambda file: _label(path, file, indexed, colored))


def _label(path: Path, file: Image.Image, indexed: bool, colored: bool) -> np.ndarray:
    if file.format == "JPEG":
        raise UserError(f"{path}: a label must be stored without loss, such as PNG: JPEG blends classes")
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
    """Whether the numbers that are read are not the file's: grey of 2 or 4 bits, inverted, or of another maximum."""
    raw, *more = file.tile[0].args if isinstance(file.tile[0].args, tuple) else (file.tile[0].args,)
    return bool(RESCALED.match(str(raw))) or (file.tile[0].codec_name.startswith("ppm") and more != [255])


def _content(path: Path, kind: str = "file") -> bytes:
    try:
        return read_bytes(path)
    except FileNotFoundError:
        raise UserError(f"{kind} not found: {path}") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error


def _open(path: Path, data: bytes, convert: Callable[[Image.Image], np.ndarray]) -> np.ndarray:
    try:
        with Image.open(io.BytesIO(data)) as file:
            if (count := getattr(file, "n_frames", 1)) > 1 and file.format != "MPO":
                raise UserError(f"{path} holds {count} pictures: save the one that is meant alone")
            return convert(file)
    except UnidentifiedImageError:
        raise UserError(f"{path} cannot be read: it is no picture of a known format") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error


def read_list(path: Path) -> list[str]:
    """The lines of a list file; byte-order mark, CRLF, blank lines and outer blanks do not matter.

    Raises:
        UserError: no such file, no text, a name listed twice, or one that leads out of the data set.
    """
    try:
        lines = _content(path, "list file").decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no text file: {error}") from error
    seen: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        name = line.strip()
        if not name:
            continue
        if name in seen:
            raise UserError(f"{path} lists {name} twice, in lines {seen[name]} and {number}")
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise UserError(f"{path}, line {number}: {name} leads out of the data set")
        seen[name] = number
    return list(seen)


def locate(root: Path, marker: str, places: Sequence[str] = ("",), hint: str = "") -> Path:
    """The first of ``places`` below ``root`` that has the folder ``marker``.

    Raises:
        UserError: none has; the message says what there is instead.
    """
    for place in places:
        if (root / place / marker).is_dir():
            return root / place
    found = ", ".join(sorted(path.name for path in root.iterdir())[:8]) or "nothing"
    looked = " or ".join(str(Path(place, marker)) for place in places)
    raise UserError(f"{root} holds no folder {looked}; found there: {found}{hint and '. ' + hint}")


def images_in(folder: Path, suffixes: Iterable[str] = IMAGE_SUFFIXES) -> list[Path]:
    """Image files of a folder, sorted by name. Raises UserError: no such folder."""
    if not folder.is_dir():
        raise UserError(f"folder not found: {folder}")
    wanted = set(suffixes)
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in wanted and not p.name.startswith("."))


def match(
    images: Iterable[Path], candidates: Callable[[Path], Sequence[Path]], advice: str = "remove one of them"
) -> list[Pair]:
    """Each image with the first of its candidate labels that exists; with the first of all where none does.

    Raises UserError: two images have the same label.
    """
    exists, pairs = FileListing(), {}
    for image in images:
        labels = candidates(image)
        label = next((c for c in labels if c in exists), labels[0])
        if label in pairs:
            raise UserError(f"{pairs[label]} and {image.name} would have one label, {label}: {advice}")
        pairs[label] = image
    return [(image, label) for label, image in pairs.items()]


class FileListing:
    """``path in listing``: one look at each folder instead of one at each file."""

    def __init__(self) -> None:
        self._names: dict[Path, set[str]] = {}

    def __contains__(self, path: Path) -> bool:
        folder = path.parent
        if folder not in self._names:
            self._names[folder] = {p.name for p in folder.iterdir()} if folder.is_dir() else set()
        return path.name in self._names[folder]
