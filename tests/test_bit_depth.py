"""Pictures with more than 8 bits per channel are refused, because they could be read as nearly black."""

import struct
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from datasets.files import read_label
from models.prediction import read_rgb
from utils.errors import UserError
from utils.pictures import ORIENTATION, read_image, read_size

TWELVE_BITS = np.random.default_rng(0).integers(0, 4096, (8, 10, 3)).astype(np.uint16)  # as many bits as cameras have
BYTES = (TWELVE_BITS >> 4).astype(np.uint8)
OPAQUE = np.full((8, 10, 1), 65535, np.uint16)


def make_opencv_writer(values: np.ndarray) -> Callable[[Path], object]:
    return lambda path: cv2.imwrite(str(path), values)


def make_ppm_writer(maximum: int) -> Callable[[Path], object]:
    pixels = f"P6 10 8 {maximum}\n".encode() + TWELVE_BITS.astype(">u2").tobytes()
    return lambda path: path.write_bytes(pixels)


def write_sgi(path: Path) -> None:
    header = struct.pack(">HBBHHHHII", 474, 0, 2, 3, 10, 8, 3, 0, 65535)
    planes = TWELVE_BITS[::-1].transpose(2, 0, 1).astype(">u2")
    path.write_bytes(header.ljust(512, b"\0") + planes.tobytes())


def make_tiff_writer(
    pixels: np.ndarray, bits: int, sample_format: int = 1, planar: bool = False, extra: tuple[int, ...] = ()
) -> Callable[[Path], object]:
    """Return a function that writes an uncompressed TIFF. ``extra``: TIFF codes of the channels after RGB."""
    height, width, channels = pixels.shape
    data = (np.ascontiguousarray(pixels.transpose(2, 0, 1)) if planar else pixels).tobytes()
    strips = channels if planar else 1
    photometric = 2 if extra else {1: 1, 3: 2, 4: 5}[channels]  # grey, RGB, CMYK
    lists = {258: [bits] * channels, 339: [sample_format] * channels, 279: [len(data) // strips] * strips}
    if extra:
        lists[338] = list(extra)
    lists[273] = [1000 + k * len(data) // strips for k in range(strips)]
    single = {256: width, 257: height, 259: 1, 262: photometric, 277: channels, 278: height, 284: 1 + planar}
    tags = b""
    behind = b""  # values that do not fit into their tag
    for tag, values in sorted((lists | {tag: [value] for tag, value in single.items()}).items()):
        content = struct.pack(f"<{len(values)}I", *values)
        if len(content) > 4:
            tags += struct.pack("<HHII", tag, 4, len(values), 500 + len(behind))
            behind += content
        else:
            tags += struct.pack("<HHI", tag, 4, len(values)) + content
    head = b"II*\0" + struct.pack("<IH", 8, len(lists) + len(single)) + tags + bytes(4)
    content = head.ljust(500, b"\0") + behind
    return lambda path: path.write_bytes(content.ljust(1000, b"\0") + data)


def write_twelve_bit_jpeg(path: Path) -> None:
    """Write a JPEG whose header says 12 bits. The decoder looks at the header first."""
    Image.fromarray((TWELVE_BITS >> 4).astype(np.uint8)).save(path, "JPEG")
    data = bytearray(path.read_bytes())
    data[data.index(b"\xff\xc0") + 4] = 12
    path.write_bytes(data)


def pack_color_map(factor: int) -> bytes:
    """Return a TIFF colour map in which grey level k has the value ``k * factor`` in each of three channels."""
    return struct.pack("<768H", *[k * factor for _ in range(3) for k in range(256)])


def write_narrow_color_map(path: Path) -> None:
    """Write a TIFF whose colour map has 8-bit values, although TIFF colour maps have 16-bit values."""
    file = Image.fromarray((TWELVE_BITS[..., 0] % 256).astype(np.uint8))
    file.putpalette([k for k in range(256) for _ in range(3)])
    file.save(path, "TIFF")
    data = path.read_bytes()
    for factor in (256, 257):  # PIL may write grey level k as either
        data = data.replace(pack_color_map(factor), pack_color_map(1))
    path.write_bytes(data)


DEEP = {
    "rgb.png": (make_opencv_writer(TWELVE_BITS), "16 bits a channel"),
    "rgba.png": (make_opencv_writer(np.dstack([TWELVE_BITS, OPAQUE])), "16 bits a channel"),
    "grey.png": (make_opencv_writer(TWELVE_BITS[..., 0]), "16 bits a channel"),
    "packed.tif": (make_opencv_writer(TWELVE_BITS), "16 bits a channel"),
    "plain.tif": (make_tiff_writer(TWELVE_BITS, 16), "16 bits a channel"),
    "planes.tif": (make_tiff_writer(TWELVE_BITS, 16, planar=True), "16 bits a channel"),
    "cmyk.tif": (make_tiff_writer(np.dstack([TWELVE_BITS, OPAQUE]), 16), "16 bits a channel"),
    "signed.tif": (make_tiff_writer(TWELVE_BITS[..., :1].astype(np.int8), 8, 2), "signed or floating-point channels"),
    "float.tif": (make_tiff_writer(TWELVE_BITS[..., :1].astype(np.float32), 32, 3), "32 bits a channel"),
    "infrared.tif": (
        make_tiff_writer(BYTES[..., [0, 1, 2, 0]], 8, extra=(0,)),
        "4 channels, which are not all colours or alpha",
    ),
    "bands.tif": (make_tiff_writer(BYTES[..., [0, 1, 2, 0, 1]], 8, extra=(0, 0)), "5 channels, which are not all"),
    "float_rgb.tif": (
        make_tiff_writer(TWELVE_BITS.astype(np.float32), 32, 3),
        "no picture of a known format, or of float",
    ),
    "twelve.ppm": (make_ppm_writer(4095), "channels up to 4095"),
    "sixteen.ppm": (make_ppm_writer(65535), "channels up to 65535"),
    "rgb.sgi": (write_sgi, "16 bits a channel"),
    "rgb.jp2": (make_opencv_writer(np.tile(TWELVE_BITS, (8, 8, 1))), "16 bits a channel"),
    "twelve.jpg": (write_twelve_bit_jpeg, "a JPEG of 12 bits a channel"),
    "palette.tif": (write_narrow_color_map, "a colour map of 8-bit numbers"),
}


@pytest.mark.parametrize("name", DEEP)
def test_deep_pictures_are_refused(name, tmp_path):
    write, problem = DEEP[name]
    path = tmp_path / name
    write(path)
    for read in (read_image, lambda path: read_image(path, behind="white"), lambda path: read_rgb(str(path))):
        with pytest.raises(UserError, match=rf"{name}.*{problem}"):
            read(path)


@pytest.mark.parametrize(
    "name", ["rgb.png", "rgba.png", "plain.tif", "planes.tif", "sixteen.ppm", "rgb.sgi", "rgb.jp2"]
)
def test_deep_pictures_are_refused_as_labels(name, tmp_path):
    path = tmp_path / name
    DEEP[name][0](path)
    for indexed in (False, True):
        with pytest.raises(UserError, match=f"{name} has .*(16 bits|65535)"):
            read_label(path, indexed, colored=True)


def test_an_opened_deep_picture_is_refused(tmp_path):
    DEEP["rgb.png"][0](tmp_path / "rgb.png")
    with Image.open(tmp_path / "rgb.png") as file, pytest.raises(UserError, match="the image has 16 bits a channel"):
        read_rgb(file)


SAVE_OPTIONS = {"a.webp": {"lossless": True}}


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.ppm", "a.jp2", "a.bmp", "a.webp", "a.sgi", "a.tga"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_eight_bit_pictures_are_read_unchanged(name, mode, tmp_path):
    file = Image.fromarray((TWELVE_BITS >> 4).astype(np.uint8)).convert(mode)
    file.save(tmp_path / name, **SAVE_OPTIONS.get(name, {}))
    assert np.array_equal(read_image(tmp_path / name), np.array(file.convert("RGB")))


def test_a_palette_of_16_bit_numbers_is_read(tmp_path):
    file = Image.fromarray((TWELVE_BITS[..., 0] % 256).astype(np.uint8))
    file.putpalette([255 - k for k in range(256) for _ in range(3)])
    file.save(tmp_path / "a.tif")
    assert np.array_equal(read_image(tmp_path / "a.tif"), np.array(file.convert("RGB")))
    assert np.array_equal(read_label(tmp_path / "a.tif"), TWELVE_BITS[..., 0] % 256)


@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_read_size_and_read_image_agree_on_a_rotated_tiff(orientation, tmp_path):
    """PIL itself rotates a TIFF by its EXIF orientation, before the caller sees the size."""
    path = tmp_path / "a.tif"
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    Image.new("RGB", (6, 4)).save(path, exif=exif)
    assert read_size(path) == read_image(path).shape[:2] == ((6, 4) if orientation == 6 else (4, 6))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_rotated_tiff_can_be_read_as_stored(orientation, tmp_path):
    """Labels are always read as stored. Images are read as stored if only then they have the label's size."""
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    ids = np.arange(24, dtype=np.uint8).reshape(4, 6)
    for name, pixels in (("ids.tif", ids), ("colors.tif", np.stack([ids] * 3, 2))):
        Image.fromarray(pixels).save(tmp_path / name, exif=exif)
    assert np.array_equal(read_label(tmp_path / "ids.tif"), ids)
    assert np.array_equal(read_label(tmp_path / "colors.tif", False, colored=True)[..., 0], ids)
    if orientation > 4:
        assert np.array_equal(read_image(tmp_path / "colors.tif", (4, 6))[..., 0], ids)


def test_a_damaged_tiff_table_is_refused_by_name(tmp_path):
    path = tmp_path / "a.tif"
    Image.new("RGB", (6, 4)).save(path)
    data = bytearray(path.read_bytes())
    tags = int.from_bytes(data[4:8], "little")
    count = int.from_bytes(data[tags : tags + 2], "little")
    # say that the next table is at byte 6, where there is none
    data[tags + 2 + 12 * count : tags + 6 + 12 * count] = (6).to_bytes(4, "little")
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"a\.tif cannot be read"):
        read_image(path)
