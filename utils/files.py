"""Files read and written so that nothing is lost: whole or not at all, regular ones only, errors with their names."""

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

BLOCK = 1 << 20
BYTE_ORDER_MARKS = {  # UTF-32's before UTF-16's, which it begins with
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


def write(path: Path, fill: Callable[[IO[bytes]], object], previous: Path | None = None, durable: bool = True) -> None:
    """Have ``fill`` write a file so that ``path`` holds either the old one or the whole new one, whatever happens.

    previous: where the old one is kept. durable: it outlives a power failure, too. The folder is made; links in the
    place of any of the files are replaced, never followed.

    Raises:
        UserError: the file cannot be written (folder read-only, disk full); the old one is intact.
    """
    temporary, outer = path.with_name(f".{path.name}.tmp"), sys.exc_info()[1]
    try:
        if path.parent == Path("/dev") or (path.exists() and not path.is_file()):
            raise UserError(f"cannot write {path}: it is no regular file")  # to replace it would harm the system
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.unlink(missing_ok=True)
        with temporary.open("xb") as file:  # x: made here, not a link that somebody else put there
            fill(file)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        if previous is not None and path.is_file():
            _keep(path, previous)
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:
        cause = error if isinstance(error, OSError) else error.__context__  # torch.save hides it behind its own
        if not isinstance(cause, OSError) or cause is outer:
            raise
        raise UserError(f"cannot write {path}: {cause.strerror or cause}") from error
    finally:
        with suppress(OSError):  # there is none, or its folder is not what was thought
            temporary.unlink()


def _keep(path: Path, previous: Path) -> None:
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
    write(path, lambda file: file.write(text.encode(errors="surrogateescape")))  # of names of files


def require_apart(outputs: Iterable[tuple[Path, Path]], inputs: Iterable[Path], flag: str) -> None:
    """Check that no output would overwrite an input or another output.

    outputs: files to be written, each with what it is made from. flag: says where they go.

    Raises:
        UserError: one of them is an input and would be lost, or two of them are one file.
    """
    known, writers = set(map(os.path.realpath, inputs)), {}
    for path, source in outputs:
        if os.path.realpath(path) in known:
            raise UserError(f"{path} is an input and would be overwritten: choose another {flag}")
        if path in writers:
            raise UserError(f"{writers[path]} and {source} would both be written to {path}: {flag} has room for one")
        writers[path] = source


def open_regular(path: Path) -> IO[bytes]:
    """Open a regular file to read. A device has no end, and a pipe would be waited for.

    Raises OSError: it is none, or cannot be opened.
    """
    file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))  # noqa: SIM115
    if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        return file
    file.close()
    raise OSError(errno.EINVAL, "it is no regular file", str(path))


def read_bytes(path: Path) -> bytes:
    """Return the content of a regular file; see ``open_regular``."""
    with open_regular(path) as file:
        return file.read()


def decode_text(data: bytes) -> str:
    """Decode a text file: UTF-8, or UTF-16 or UTF-32 as Windows programs write it.

    UTF-16 without a byte-order mark is known by its zero bytes, where all characters are of Western European languages.

    Raises:
        ValueError: it is none of these, or holds zero bytes; the message says so.
    """
    encoding = next((encoding for mark, encoding in BYTE_ORDER_MARKS.items() if data.startswith(mark)), "utf-8")
    if encoding == "utf-8" and data and len(data) % 2 == 0:
        if not any(data[1::2]):
            encoding = "utf-16-le"
        elif not any(data[::2]):
            encoding = "utf-16-be"
    text = data.decode(encoding)
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise ValueError(f"zero bytes, the first in line {line}: it is damaged, or UTF-16 without a byte-order mark")
    return text


def digest_of(path: Path, digest: Any = None) -> str:
    """Return the digest of a file's content, in hex. digest: to continue; a new SHA-256 by default."""
    digest = digest or hashlib.sha256()
    with open_regular(path) as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


class _Loader(yaml.SafeLoader):
    """Refuse a key that is there twice; yaml would keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        """Read a mapping as yaml does, after a look at its keys."""
        seen: set[str] = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise yaml.YAMLError(f"line {key.start_mark.line + 1}: the key {key.value!r} is there twice")
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> Any:
    """Return the plain values of a yaml file; nothing in it is run.

    Raises:
        UserError: the file is unreadable, or is no plain yaml (see ``parse_yaml``).
    """
    try:
        content = read_bytes(path)
    except OSError as error:
        raise UserError(f"{path} is no plain yaml: {error.strerror}") from error
    return parse_yaml(content, str(path))


def parse_yaml(content: bytes, where: str) -> Any:
    """Return the plain values of yaml text.

    Raises:
        UserError: it is no text, no plain yaml, has a key twice, or is nested too deep.
    """
    try:
        return yaml.load(decode_text(content), _Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{where} is no plain yaml: {' '.join(str(error).split())}") from error


def is_list(value: object, kind: type) -> bool:
    """Whether a value of a file is a list of that kind."""
    return isinstance(value, (list, tuple)) and all(type(item) is kind for item in value)


def is_color(value: object) -> bool:
    """Whether a value of a file is [R, G, B]."""
    return is_list(value, int) and len(value) == 3 and 0 <= min(value) <= max(value) < 256
