"""Find pictures whose channels have more than 8 bits, which PIL would narrow to 8 without a warning."""

import re

from PIL import Image

# PIL's raw modes of 16-bit channels. "BGR;16" is a whole pixel of 16 bits, whose channels have 5 or 6.
DEEP_RAW_MODE = re.compile(r"^(?!BGR;16)[A-Z]+;16")
JPEG2000_SIZE = b"\xff\x4f\xff\x51"  # the markers a codestream begins with
JPEG2000_DEPTH = 42  # bytes from there to the first component's depth minus one, whose highest bit is the sign
# numbers of TIFF's tags
TIFF_BITS = 258
TIFF_CHANNELS = 277
TIFF_COLOR_MAP = 320
TIFF_EXTRA_CHANNELS = 338
TIFF_SAMPLE_FORMAT = 339
TIFF_ALPHA = (1, 2)  # of the extra channels; PIL drops others, such as near infrared
TIFF_UNSIGNED = (1, 4)  # unsigned numbers, and "undefined", which is read as such
DDS_FLOAT = 6  # number of the block compression that holds floats


def describe_deep_channels(file: Image.Image, data: bytes = b"") -> str:
    """Return what the file holds that 8-bit channels cannot, such as "16 bits a channel"; an empty string if nothing.

    file: as PIL opened it, before its pixels are loaded. data: the file's content; JPEG 2000 needs it.
    """
    if hasattr(file, "tag_v2"):
        return _describe_tiff(file)
    for tile in getattr(file, "tile", ()):
        arguments = tile.args if isinstance(tile.args, tuple) else (tile.args,)
        raw_mode = str(arguments[0]) if arguments else ""
        if DEEP_RAW_MODE.match(raw_mode) or tile.codec_name == "SGI16":
            return "16 bits a channel"
        if tile.codec_name == "sgi_rle" and arguments[-1] == 2:  # bytes a channel
            return "16 bits a channel"
        if tile.codec_name.startswith("ppm") and arguments[-1] > 255:
            return f"channels up to {arguments[-1]}"
        if tile.codec_name == "bcn" and arguments[0] == DDS_FLOAT:
            return "floating-point channels"
    start = data.find(JPEG2000_SIZE) if file.format == "JPEG2000" else -1
    if start >= 0:
        bits = (data[start + JPEG2000_DEPTH] & 0x7F) + 1
        if bits > 8:
            return f"{bits} bits a channel"
    return ""


def _describe_tiff(file: Image.Image) -> str:
    """Return what an 8-bit reader would lose of a TIFF file's channels, or ""."""
    tags = file.tag_v2
    bits = max(_as_tuple(tags.get(TIFF_BITS, 1)))
    if bits > 8:
        return f"{bits} bits a channel"
    if any(kind not in TIFF_UNSIGNED for kind in _as_tuple(tags.get(TIFF_SAMPLE_FORMAT, 1))):
        return "signed or floating-point channels"
    extra = _as_tuple(tags.get(TIFF_EXTRA_CHANNELS, ()))
    if any(kind not in TIFF_ALPHA for kind in extra):
        return f"{tags.get(TIFF_CHANNELS, 1)} channels, which are not all colours or alpha"
    return ""


def has_narrow_color_map(file: Image.Image) -> bool:
    """Return whether a TIFF's colour map holds 8-bit numbers, not TIFF's 16-bit ones: all colours would be black."""
    tags = getattr(file, "tag_v2", {})
    return file.mode == "P" and 0 < max(_as_tuple(tags.get(TIFF_COLOR_MAP, 0))) < 256


def _as_tuple(value: object) -> tuple[int, ...]:
    """Return a TIFF tag's value as a tuple. PIL gives a single number as it is."""
    return value if isinstance(value, tuple) else (value,)
