"""JPEG pictures: whole and undamaged, or refused with the file's name."""

import os
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np

from utils.errors import UserError

JPEG, JPEG_SCAN, JPEG_END = b"\xff\xd8\xff", b"\xff\xda", b"\xff\xd9"
FRAME_HEADERS = {bytes([0xC0 + k]) for k in (0, 1, 2, 3, 5, 6, 7, 9, 10, 11, 13, 14, 15)}
COMPLAINT = re.compile("Corrupt JPEG data|Premature end of JPEG")
HARMLESS = re.compile(r"\b\d{1,2} extraneous bytes before marker")
STDERR = threading.Lock()  # of a process, one place to write to


def decode_jpeg(path: Path, data: bytes, upright: bool) -> np.ndarray:
    """Decode a JPEG picture to RGB uint8 ``[H, W, 3]``. upright: turn it as its EXIF orientation says.

    Raises:
        UserError: truncated, or the decoder finds the data damaged. OpenCV would fill up what is lost.
    """
    scan, bits = _scan(data)
    if bits not in (0, 8):
        raise UserError(f"{path} is a JPEG of {bits} bits a channel: make it 8-bit RGB, which fixes what is white")
    # no 0xff of the compressed picture is followed by anything but 0, so its end marker cannot occur before its end
    if data.find(JPEG_END, scan) < 0:
        raise UserError(f"{path} cannot be read: truncated JPEG, the end marker is missing")
    orientation = 0 if upright else cv2.IMREAD_IGNORE_ORIENTATION
    try:
        with complaints() as heard:
            pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR | orientation)
    except cv2.error as error:
        raise UserError(f"{path} cannot be read: {error.err}") from error
    if pixels is None or heard:
        raise UserError(
            f"{path} cannot be read: damaged JPEG{f' ({heard[0]})' if heard else ''}; restore it, or save it anew"
        )
    return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)


def _scan(data: bytes) -> tuple[int, int]:
    """Find where the compressed picture begins, and how many bits a channel its header says; 0 if it has no header.

    It begins behind segments, of which one may hold a thumbnail with an end marker of its own.
    """
    at, bits = 2, 0
    while at < len(data) and not data.startswith(JPEG_SCAN, at):
        marker = data[at] == 0xFF and data[at + 1 : at + 2] not in (b"\xff", b"\0")
        if marker and data[at + 1 : at + 2] in FRAME_HEADERS:
            bits = int.from_bytes(data[at + 4 : at + 5], "big")
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big") if marker else 1  # between them, bytes that fill up
    return at, bits


@contextmanager
def complaints() -> Iterator[list[str]]:
    """Collect what libjpeg says of damaged data meanwhile. OpenCV has it printed, without the file's name, and goes on.

    A few superfluous bytes before a marker, which harm no pixel and occur in published data sets, are not listed. What
    else is written to stderr meanwhile is passed on.
    """
    heard: list[str] = []
    if sys.stderr is None:  # of a service, say: there is nothing to listen to
        yield heard
        return
    with STDERR:
        sys.stderr.flush()
        kept, sink = os.dup(2), os.memfd_create("stderr")
        os.dup2(sink, 2)
        try:
            yield heard
        finally:
            os.dup2(kept, 2)
            if os.fstat(sink).st_size:
                for line in os.pread(sink, 1 << 16, 0).decode(errors="replace").splitlines():
                    if not COMPLAINT.search(line):
                        print(line, file=sys.stderr)
                    elif not HARMLESS.search(line):
                        heard.append(line)
            os.close(kept)
            os.close(sink)
