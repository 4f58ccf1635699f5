"""Pictures from files: exact, or refused with the file's name."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from utils.errors import UserError
from utils.files import read_bytes
from utils.jpeg import JPEG, decode_jpeg

MODES = ("RGB", "L", "P", "1", "CMYK", "RGBA", "LA", "PA")  # 8 bits a channel, with one meaning as RGB


def read_image(path: Path, size: tuple[int, int] | None = None, behind: str = "") -> np.ndarray:
    """RGB uint8 ``[H, W, 3]``, turned as its EXIF orientation says; kept as stored where only that has ``size``.

    behind: the colour that shows through transparent pixels; without one they are refused.

    JPEG goes through OpenCV, which is faster than PIL and gives the same pixels.
    Raises UserError: the file is missing, damaged, or of a kind that has no exact meaning here.
    """
    image = _decode(path, True, behind)
    turned = size is not None and image.shape[:2] != size == image.shape[1::-1]
    return _decode(path, False, behind) if turned else image


def _decode(path: Path, upright: bool, behind: str) -> np.ndarray:
    data = content_of(path)
    if data.startswith(JPEG):
        return decode_jpeg(path, data, upright)
    return open_picture(path, data, lambda file: rgb(path, ImageOps.exif_transpose(file) if upright else file, behind))


def rgb(name: str | Path, file: Image.Image, behind: str) -> np.ndarray:
    """RGB uint8 ``[H, W, 3]``; behind: see ``read_image``. Raises UserError: pixels without one meaning as RGB."""
    if file.mode not in MODES:
        raise UserError(f"{name} has pixels of mode {file.mode}: make it 8-bit RGB, which fixes what is black")
    if file.has_transparency_data:
        file = file.convert("RGBA")
        if behind:
            file = Image.alpha_composite(Image.new("RGBA", file.size, behind), file)
        elif file.getchannel("A").getextrema()[0] < 255:
            raise UserError(f"{name} has transparent pixels: save it without alpha, which fixes their colour")
    return np.array(file.convert("RGB"))


def content_of(path: Path, kind: str = "file") -> bytes:
    """Raises UserError: no such file, or it cannot be read."""
    try:
        return read_bytes(path)
    except FileNotFoundError:
        raise UserError(f"{kind} not found: {path}") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error


def open_picture(path: Path, data: bytes, convert: Callable[[Image.Image], np.ndarray]) -> np.ndarray:
    """``convert`` of what PIL finds in the data. Raises UserError: no picture, several, or a damaged one."""
    try:
        with Image.open(io.BytesIO(data)) as file:
            if (count := getattr(file, "n_frames", 1)) > 1:
                raise UserError(f"{path} holds {count} pictures: save the one that is meant alone")
            return convert(file)
    except UnidentifiedImageError:
        raise UserError(f"{path} cannot be read: it is no picture of a known format") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
