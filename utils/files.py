"""Read and write files safely: written whole or not at all, regular files only, errors that name the file."""

import codecs
import errno
import hashlib
import os
import stat
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import yaml

from utils.errors import UserError

BLOCK = 1 << 20  # bytes that are read at once
BYTE_ORDER_MARKS = {  # the marks of UTF-32 come first, because they begin with those of UTF-16
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


def write(path: Path, fill: Callable[[IO[bytes]], object], previous: Path | None = None, durable: bool = True) -> None:
    """Write a file by ``fill``. At every moment ``path`` holds either the old file or the whole new one.

    There is one exception: with ``previous``, on a file system without hard links, there is no ``path`` for a moment,
    and only ``previous`` holds the old file.

    The folder is made if it is missing. A link in the place of a file is replaced, not followed.

    fill: function that writes the content to an open file. previous: path under which the old file is kept. durable:
    wait until the content is on the disk, so that a power failure does not leave a file that is cut short.

    Raises:
        UserError: the file cannot be written (folder read-only, disk full, no regular file). The old file is intact.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    outer = sys.exc_info()[1]  # an error that is being handled while this file is written
    try:
        if path.parent == Path("/dev") or (path.exists() and not path.is_file()):
            raise UserError(f"cannot write {path}: it is no regular file")  # replacing a device would harm the system
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.unlink(missing_ok=True)
        with temporary.open("xb") as file:  # x: made here, not a link that somebody else put there
            fill(file)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        if previous is not None and path.is_file():
            _keep_previous(path, previous)
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:
        cause = error
        if isinstance(error, RuntimeError):
            cause = error.__context__  # torch.save raises a RuntimeError when writing has raised an OSError
        if not isinstance(cause, OSError) or cause is outer:
            raise
        raise UserError(f"cannot write {path}: {cause.strerror or cause}") from error
    finally:
        with suppress(OSError):  # there may be no such file, or no folder of this name
            temporary.unlink()


def _keep_previous(path: Path, previous: Path) -> None:
    """Make ``previous`` a second name of ``path``, so that ``path`` exists at every moment."""
    second = previous.with_name(f".{previous.name}.tmp")
    second.unlink(missing_ok=True)
    try:
        os.link(path, second)
    except OSError:  # a file system without hard links
        os.replace(path, previous)
    else:
        os.replace(second, previous)


def write_text(path: Path, text: str) -> None:
    """Write a text as ``write`` does."""
    # file names in the text may hold bytes that are no UTF-8; Python keeps them as surrogates
    write(path, lambda file: file.write(text.encode(errors="surrogateescape")))


def require_writable(folder: Path, what: str) -> None:
    """Make a folder and check that a file can be written there, before hours of work for it begin.

    what: the flag and its value, for the message.

    Raises:
        UserError: the folder cannot be made, or nothing can be written there.
    """
    probe = folder / f".probe-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"{what} cannot be written: {error.strerror}") from error


def require_kind(path: Path, suffix: str, what: str) -> None:
    """Check that a file that will be written does not replace one of another kind, such as a checkpoint.

    suffix: of the kind that is written, such as ".json". what: the flag and its value, for the message.

    Raises:
        UserError: there is a file whose name has another suffix.
    """
    if path.is_file() and path.suffix.lower() != suffix:
        raise UserError(f"{what} exists and is no {suffix} file: give the name of a new one")


def require_apart(outputs: Iterable[tuple[Path, Path]], inputs: Iterable[Path], place: str) -> None:
    """Check that no output would overwrite an input or another output.

    outputs: files to be written, each with what it is made from. place: where they go, for the message, such as
    "--output folder".

    Raises:
        UserError: an output is also an input, which would be lost, or two outputs are one file.
    """
    input_paths = set(map(os.path.realpath, inputs))
    writers: dict[str, Path] = {}
    for path, source in outputs:
        if os.path.realpath(path) in input_paths:
            raise UserError(f"{path} is an input and would be overwritten: choose another {place}")
        real = os.path.join(os.path.realpath(path.parent), path.name)  # a link in the file's place is replaced
        if real in writers:
            raise UserError(f"{writers[real]} and {source} would both be written to {path}: {place} has room for one")
        writers[real] = source


def open_regular(path: Path) -> IO[bytes]:
    """Open a regular file to read. Other files are refused: a device may have no end, and a pipe may block.

    Raises:
        OSError: the file is not a regular one, or cannot be opened.
    """
    file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))  # noqa: SIM115
    if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        return file
    file.close()
    raise OSError(errno.EINVAL, "it is no regular file", str(path))


def read_bytes(path: Path) -> bytes:
    """Return the content of a file. Raise OSError if it cannot be read, or is a pipe, a device or a folder."""
    with open_regular(path) as file:
        return file.read()


def decode_text(data: bytes) -> str:
    """Decode a text file: UTF-8, or UTF-16 or UTF-32 as Windows programs write it.

    UTF-16 without a byte-order mark is recognised by its zero bytes, if more than half of the characters are Western
    European, as in most paths.

    Raises:
        ValueError: the text has another encoding, or holds zero bytes.
    """
    encoding = _find_marked_encoding(data) or "utf-8"
    if encoding == "utf-8" and len(data) % 2 == 0:
        zeros_first = data[::2].count(0)
        zeros_second = data[1::2].count(0)
        if zeros_first == 0 and zeros_second > len(data) / 4:
            encoding = "utf-16-le"
        elif zeros_second == 0 and zeros_first > len(data) / 4:
            encoding = "utf-16-be"
    text = data.decode(encoding)
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise ValueError(f"zero bytes, the first in line {line}: it is damaged, or UTF-16 without a byte-order mark")
    return text


def _find_marked_encoding(data: bytes) -> str | None:
    """Return the encoding that the byte-order mark at the beginning of a text says, or None without a mark."""
    for mark, encoding in BYTE_ORDER_MARKS.items():
        if data.startswith(mark):
            return encoding
    return None


def compute_digest(path: Path, digest: Any = None) -> str:
    """Return the digest of a file's content, in hex.

    digest: a hash object to update; a new SHA-256 by default.

    Raises:
        OSError: the file cannot be read, or is a pipe, a device or a folder.
    """
    digest = digest or hashlib.sha256()
    with open_regular(path) as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


class _Loader(yaml.SafeLoader):
    """Load plain yaml, but refuse a key that is there twice; yaml itself would keep the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        """Read a mapping as yaml does, after a check of its keys."""
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in seen:
                raise yaml.YAMLError(f"line {key.start_mark.line + 1}: the key {key.value!r} is there twice")
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> Any:
    """Return the plain values of a yaml file; nothing in it is run.

    Raises:
        UserError: the file cannot be read, is no plain yaml, has a key twice, or is nested too deep.
    """
    try:
        content = read_bytes(path)
    except OSError as error:
        raise UserError(f"{path} is no plain yaml: {error.strerror}") from error
    return parse_yaml(content, str(path))


def parse_yaml(content: bytes, where: str) -> Any:
    """Return the plain values of yaml text. where: the file that it is from, for messages.

    Raises:
        UserError: the content is no text, no plain yaml, has a key twice, or is nested too deep.
    """
    try:
        return yaml.load(decode_text(content), _Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{where} is no plain yaml: {' '.join(str(error).split())}") from error


def is_list(value: object, kind: type) -> bool:
    """Return whether a value from a file is a list or tuple whose items are all of type ``kind``, and no subclass."""
    return isinstance(value, (list, tuple)) and all(type(item) is kind for item in value)


def is_color(value: object) -> bool:
    """Return whether a value from a file is a colour, a list or tuple [R, G, B] of integers 0..255."""
    return is_list(value, int) and len(value) == 3 and 0 <= min(value) <= max(value) < 256
