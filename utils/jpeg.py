"""Decode JPEG pictures. Damaged files are refused by name, because OpenCV would fill up what is lost."""

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

JPEG = b"\xff\xd8\xff"  # begins every JPEG file
SCAN_MARKER = b"\xff\xda"  # begins the compressed picture
END_MARKER = b"\xff\xd9"
# second bytes of the markers of frame headers, which say the bits of a channel; 0xC4, 0xC8 and 0xCC mark other segments
FRAME_HEADERS = {bytes([0xC0 + k]) for k in (0, 1, 2, 3, 5, 6, 7, 9, 10, 11, 13, 14, 15)}
COMPLAINT = re.compile("Corrupt JPEG data|Premature end of JPEG")  # libjpeg's messages on damage
HARMLESS = re.compile(r"\b\d{1,2} extraneous bytes before marker")
STDERR_LOCK = threading.Lock()  # all threads of a process share one stderr


def decode_jpeg(path: Path, data: bytes, upright: bool) -> np.ndarray:
    """Decode a JPEG picture to RGB uint8 ``[H, W, 3]``. With ``upright`` it is turned as its EXIF orientation says.

    Raises:
        UserError: the data are truncated or damaged, or a channel does not have 8 bits.
    """
    scan, bits = _find_scan(data)
    if bits not in (0, 8):
        raise UserError(f"{path} is a JPEG of {bits} bits a channel: make it 8-bit RGB, which fixes what is white")
    # in the compressed picture each 0xff is followed by 0, so that the end marker cannot occur before the end
    if data.find(END_MARKER, scan) < 0:
        raise UserError(f"{path} cannot be read: truncated JPEG, the end marker is missing")
    orientation = 0 if upright else cv2.IMREAD_IGNORE_ORIENTATION
    try:
        with collect_complaints() as complaints:
            pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR | orientation)
    except cv2.error as error:
        raise UserError(f"{path} cannot be read: {error.err}") from error
    if pixels is None or complaints:
        reason = f" ({complaints[0]})" if complaints else ""
        raise UserError(f"{path} cannot be read: damaged JPEG{reason}; restore it, or save it anew")
    return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)


def _find_scan(data: bytes) -> tuple[int, int]:
    """Return the position of the compressed picture, and how many bits a channel has: 0 if no frame header says it.

    Segments come before the compressed picture. One of them may hold a thumbnail, which has an end marker of its own.
    """
    position = 2
    bits = 0
    while position < len(data) and not data.startswith(SCAN_MARKER, position):
        kind = data[position + 1 : position + 2]
        is_segment = data[position] == 0xFF and kind not in (b"\xff", b"\0")
        if is_segment and kind in FRAME_HEADERS:
            bits = int.from_bytes(data[position + 4 : position + 5], "big")
        if is_segment:
            position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
        else:
            position += 1  # a byte that fills the space between segments
    return position, bits


@contextmanager
def collect_complaints() -> Iterator[list[str]]:
    """Collect libjpeg's messages about damaged data while a block runs. The list is filled when the block ends.

    libjpeg prints them to stderr without the file's name, and OpenCV goes on. Other lines on stderr are passed on. A
    message about a few superfluous bytes before a marker is left out: they harm no pixel, and published data have them.
    """
    collected: list[str] = []
    if sys.stderr is None:  # a service may run without it
        yield collected
        return
    with STDERR_LOCK:
        sys.stderr.flush()
        kept = os.dup(2)
        sink = os.memfd_create("stderr")
        os.dup2(sink, 2)
        try:
            yield collected
        finally:
            os.dup2(kept, 2)
            if os.fstat(sink).st_size:
                for line in os.pread(sink, 1 << 16, 0).decode(errors="replace").splitlines():
                    if not COMPLAINT.search(line):
                        print(line, file=sys.stderr)
                    elif not HARMLESS.search(line):
                        collected.append(line)
            os.close(kept)
            os.close(sink)
