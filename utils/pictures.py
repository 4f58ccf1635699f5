"""Read pictures from files exactly, or refuse them with the file's name."""

import io
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from utils.bit_depth import describe_deep_channels, has_narrow_color_map
from utils.errors import UserError
from utils.files import open_regular, read_bytes
from utils.jpeg import JPEG, decode_jpeg

MODES = ("RGB", "L", "P", "1", "CMYK", "RGBA", "LA", "PA")  # 8 bits a channel, with one meaning as RGB
ORIENTATION = 0x0112  # EXIF tag: 1 is upright, 2 to 4 keep the sides, 5 to 8 swap them
SWAPPING = range(5, 9)  # orientations that swap height and width
# EXIF orientation -> what undoes the turn that it asks for
UNDOING = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
# what PIL raises for damaged files; the kinds from TypeError on come from broken tables of TIFF and EXIF, from AVIF and
# from JPEG 2000
DAMAGED = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    Image.DecompressionBombError,
    TypeError,
    LookupError,
    OverflowError,
    RuntimeError,
    struct.error,
)
ADVICE = "make it 8-bit RGB, which fixes what is black and what is white"


def read_image(path: Path, size: tuple[int, int] | None = None, behind: str = "") -> np.ndarray:
    """Read RGB uint8 ``[H, W, 3]``, and turn it as its EXIF orientation says.

    size: height and width of the label. If only the picture as stored has this size, it is not turned. behind: the
    colour that shows through transparent pixels; without one they are refused.

    JPEG goes through OpenCV, which is faster than PIL and gives the same pixels.

    Raises:
        UserError: the file is missing, damaged, or of a kind that has no exact meaning here.
    """
    image = _decode(path, upright=True, behind=behind)
    if size is None or image.shape[:2] == size:
        return image
    height, width = image.shape[:2]
    if (width, height) == size:
        return _decode(path, upright=False, behind=behind)
    return image


def _decode(path: Path, upright: bool, behind: str) -> np.ndarray:
    """Decode a picture to RGB uint8 ``[H, W, 3]``. upright, behind: as in ``convert_to_rgb``."""
    data = read_content(path)
    if data.startswith(JPEG):
        return decode_jpeg(path, data, upright)
    with open_picture(path, data) as file:
        return convert_to_rgb(path, file, behind, upright, data)


def convert_to_rgb(
    name: str | Path, file: Image.Image, behind: str, upright: bool = True, data: bytes = b""
) -> np.ndarray:
    """Convert a picture to RGB uint8 ``[H, W, 3]``.

    name: the file, for messages. behind: the colour behind transparent pixels; "" refuses a picture that has some.
    upright: turn the picture as its EXIF orientation says. data: the file's content, which JPEG 2000 needs.

    Raises:
        UserError: its pixels have no one meaning as 8-bit RGB.
    """
    require_eight_bits(name, file, data)
    if file.mode not in MODES:
        raise UserError(f"{name} has pixels of mode {file.mode}: {ADVICE}")
    if has_narrow_color_map(file):
        raise UserError(f"{name} has a colour map of 8-bit numbers, which TIFF reads as black: save it as 8-bit RGB")
    file = ImageOps.exif_transpose(file) if upright else load_as_stored(file)
    if file.has_transparency_data:
        file = file.convert("RGBA")
        if behind:
            file = Image.alpha_composite(Image.new("RGBA", file.size, behind), file)
        elif file.getchannel("A").getextrema()[0] < 255:
            raise UserError(f"{name} has transparent pixels: save it without alpha, which fixes their colour")
    return np.array(file.convert("RGB"))


def load_as_stored(file: Image.Image) -> Image.Image:
    """Return a picture without the turn that its EXIF orientation asks for. PIL turns TIFF pictures by itself."""
    orientation = file.getexif().get(ORIENTATION, 1)
    if file.format != "TIFF" or orientation not in UNDOING:
        return file
    file.load()
    return file.transpose(UNDOING[orientation])


def require_eight_bits(name: str | Path, file: Image.Image, data: bytes = b"") -> None:
    """Check that PIL can read a picture without narrowing its channels to 8 bits.

    Raises:
        UserError: a channel has more than 8 bits. PIL would turn 12-bit numbers in 16 bits into black, for example.
    """
    deep = describe_deep_channels(file, data)
    if deep:
        raise UserError(f"{name} has {deep}: {ADVICE}")


def read_orientation(path: Path) -> int:
    """Read the EXIF orientation, 1 to 8, from a picture's header; 1 where it has none.

    Raises:
        UserError: the file cannot be read.
    """
    return _read_header(path).orientation


def read_size(path: Path) -> tuple[int, int]:
    """Read height and width of a picture from its header, after the turn that EXIF asks for.

    Raises:
        UserError: the file cannot be read.
    """
    header = _read_header(path)
    if header.orientation in SWAPPING and not header.is_turned:
        return header.width, header.height
    return header.height, header.width


class PictureHeader(NamedTuple):
    """Hold what a picture's header says, with the sides as PIL opens it."""

    width: int
    height: int
    orientation: int  # of EXIF, 1 to 8; 1 where it has none
    is_turned: bool  # the sides are those after the turn: PIL turns TIFF pictures itself


def _read_header(path: Path) -> PictureHeader:
    """Read the header of a picture.

    Raises:
        UserError: the file cannot be read.
    """
    try:
        with open_regular(path) as source, Image.open(source) as file:
            orientation = file.getexif().get(ORIENTATION, 1)
            return PictureHeader(file.width, file.height, orientation, is_turned=file.format == "TIFF")
    except DAMAGED as error:
        raise UserError(f"{path} cannot be read: {error}") from error


def read_content(path: Path, kind: str = "file") -> bytes:
    """Return the content of a file. kind: what the file is, for the message if it is missing.

    Raises:
        UserError: no such file, or it cannot be read.
    """
    try:
        return read_bytes(path)
    except FileNotFoundError:
        raise UserError(f"{kind} not found: {path}") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error


@contextmanager
def open_picture(path: Path, data: bytes) -> Iterator[Image.Image]:
    """Open the picture that a file's content holds. Damage that is found inside the block is reported as well.

    path: the file, for messages.

    Raises:
        UserError: the content is no picture, holds several, or is damaged.
    """
    try:
        with Image.open(io.BytesIO(data)) as file:
            count = getattr(file, "n_frames", 1)
            if count > 1:
                raise UserError(f"{path} holds {count} pictures: save the one that is meant alone")
            yield file
    except UnidentifiedImageError:
        raise UserError(f"{path} cannot be read: it is no picture of a known format, or of float pixels") from None
    except DAMAGED as error:
        raise UserError(f"{path} cannot be read: {error}") from error
