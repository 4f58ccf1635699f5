"""Refuse label files of a format that changes pixels when it stores them: new ids arise where regions meet."""

from pathlib import Path

from PIL import Image

from utils.bit_depth import JPEG2000_SIZE
from utils.errors import UserError

# PIL's formats that always lose; MPO is the JPEG of cameras with several pictures
LOSSY_FORMATS = {"JPEG": "JPEG", "MPO": "JPEG", "AVIF": "AVIF"}
LOSSY_CODECS = {"jpeg": "JPEG", "bcn": "block compression"}  # of PIL's tiles, in files of any format
LOSSY_TIFF = {"jpeg": "JPEG", "tiff_jpeg": "JPEG", "webp": "WebP"}  # compressions that a TIFF file may have
JPEG2000_CODING = 0x52  # second byte of the marker of the segment that says how the picture is coded
JPEG2000_TRANSFORM = 13  # bytes from that marker to the kind of wavelets, 0 for those that lose


def require_lossless(path: Path, file: Image.Image, data: bytes) -> None:
    """Check that a label is stored without loss.

    file: as PIL opened it. data: the file's content.

    Raises:
        UserError: the label is stored with loss (JPEG, lossy WebP, lossy JPEG 2000, ...).
    """
    kind = _find_loss(file, data)
    if kind:
        raise UserError(f"{path}: a label must be stored without loss, such as PNG: {kind} blends classes")


def _find_loss(file: Image.Image, data: bytes) -> str:
    """Return the name of the lossy compression of a picture, or "" if there is none."""
    if file.format in LOSSY_FORMATS:
        return LOSSY_FORMATS[file.format]
    if file.format == "TIFF":
        return LOSSY_TIFF.get(file.info.get("compression"), "")
    if file.format == "WEBP":
        return "lossy WebP" if _is_lossy_webp(data) else ""
    if file.format == "JPEG2000":
        return "lossy JPEG 2000" if _is_lossy_jpeg2000(data) else ""
    for tile in getattr(file, "tile", ()):
        if tile.codec_name in LOSSY_CODECS:
            return LOSSY_CODECS[tile.codec_name]
    return ""


def _is_lossy_webp(data: bytes) -> bool:
    """Return whether a chunk of a WebP file holds a lossy picture ("VP8 "); a lossless one is in "VP8L"."""
    start = 12  # after "RIFF", the size and "WEBP"
    while start + 8 <= len(data):
        if data[start : start + 4] == b"VP8 ":
            return True
        size = int.from_bytes(data[start + 4 : start + 8], "little")
        start += 8 + size + size % 2
    return False


def _is_lossy_jpeg2000(data: bytes) -> bool:
    """Return whether a JPEG 2000 file uses the wavelets that lose. With the others a file may be cut short as well."""
    start = data.find(JPEG2000_SIZE) + 2  # the first marker with a length
    while start >= 2 and start + JPEG2000_TRANSFORM < len(data) and data[start] == 0xFF:
        if data[start + 1] == JPEG2000_CODING:
            return data[start + JPEG2000_TRANSFORM] == 0
        start += 2 + int.from_bytes(data[start + 2 : start + 4], "big")
    return False
