"""Safe extraction of official archives, conversion of MATLAB labels."""

import re
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

from datasets.matlab import mat_field
from utils.errors import UserError
from utils.files import write

MAX_FILES, MAX_HEADER = 500_000, 1 << 20
MAX_RATIO, SLACK = 30, 100_000_000  # unpacked bytes: at most 30 times the archive and 100 MB; pictures hardly compress


class Archive(NamedTuple):
    """An official archive. The members that match ``pattern`` (after any leading folders) become ``target``."""

    name: str
    url: str
    pattern: str
    target: str = r"\1"
    optional: bool = False


class Member(NamedTuple):
    name: str
    size: int
    trouble: str  # why it must not be unpacked, or nothing
    folder: bool
    open: Callable[[], IO[bytes] | None]


def extract(archive: Path, root: Path, place: tuple[str, str]) -> None:
    """Unpack the members that match into ``root``; those that are there with the same size are left alone.

    The whole table of contents is looked at before the first byte is written.

    Raises UserError: damaged, or with members that lead outside, links, devices, too many files or too many bytes.
    """
    pattern, replacement = re.compile(rf"(?:.*/)?{place[0]}"), place[1]
    targets: dict[str, Path] = {}
    count = total = 0
    for member in tqdm(read(archive), f"{archive.name}: contents", disable=None):
        count, total = count + 1, total + member.size
        if member.trouble:
            raise UserError(f"{archive} is not unpacked: {member.name} {member.trouble}")
        if count > MAX_FILES or total > MAX_RATIO * archive.stat().st_size + SLACK:
            much = f"{count} files, {total / 1e9:.1f} GB so far"
            raise UserError(f"{archive} is not unpacked: it holds too much ({much})")
        matched = pattern.fullmatch(member.name)
        if matched and not member.folder:
            if member.name in targets:
                raise UserError(f"{archive} is not unpacked: it holds {member.name} twice")
            targets[member.name] = root / matched.expand(replacement)
    writers: dict[Path, str] = {}
    for name, target in targets.items():
        if writers.setdefault(target, name) != name:
            raise UserError(f"{archive} is not unpacked: {name} and {writers[target]} would be one file")
    if not targets:
        raise UserError(f"{archive} holds no file named like {place[0]}")
    if total > shutil.disk_usage(next(path for path in (root, *root.absolute().parents) if path.exists())).free:
        raise UserError(f"{archive} needs up to {total / 1e9:.1f} GB in {root}: there is less")
    wanted = (member for member in read(archive) if member.name in targets and not member.folder)
    for member in tqdm(wanted, archive.name, len(targets), disable=None):
        target = targets[member.name]
        if not (target.is_file() and target.stat().st_size == member.size):
            write(target, partial(_copy, archive, member), durable=False)


def _copy(archive: Path, member: Member, file: IO[bytes]) -> None:
    with guard(archive), member.open() as source:
        shutil.copyfileobj(source, file)


@contextmanager
def guard(archive: Path) -> Iterator[None]:
    """Damage of an archive as a UserError."""
    try:
        yield
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, ValueError) as error:
        raise UserError(f"{archive} is damaged: {' '.join(str(error).split())}") from error
    except (OSError, RuntimeError) as error:
        raise UserError(f"{archive} cannot be unpacked: {' '.join(str(error).split())}") from error


class Header(tarfile.TarInfo):
    """A tar's header, refused where tarfile reads without bound: long names, pax records, maps of sparse files."""

    @classmethod
    def frombuf(cls, buf: bytes, encoding: str, errors: str) -> "Header":
        header = super().frombuf(buf, encoding, errors)
        if header.size > MAX_HEADER and not header.isreg():
            raise tarfile.ReadError(f"a header of {header.size} bytes")
        return header

    def _sparse(self, *_: object) -> None:
        raise tarfile.ReadError("a sparse file")

    _proc_sparse = _proc_gnusparse_00 = _proc_gnusparse_01 = _proc_gnusparse_10 = _sparse


def read(archive: Path) -> Iterator[Member]:
    """The members of a zip or a (compressed) tar, in order."""
    with guard(archive):
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as file:
                for info in file.infolist():
                    kind = stat.S_IFMT(info.external_attr >> 16)
                    trouble = _trouble(info.filename, info.is_dir() or kind in (0, stat.S_IFREG))
                    yield Member(info.filename, info.file_size, trouble, info.is_dir(), partial(file.open, info))
        else:
            with tarfile.open(archive, tarinfo=Header) as file:
                for info in file:
                    trouble = _trouble(info.name, info.isreg() or info.isdir())
                    yield Member(info.name, info.size, trouble, info.isdir(), partial(file.extractfile, info))


def _trouble(name: str, regular: bool) -> str:
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or (path.parts and path.parts[0].endswith(":")):
        return "leads out of the folder"
    return "" if regular else "is a link or a device"


def convert_mat(files: Sequence[Path], folder: Path, fields: Sequence[str]) -> None:
    """MATLAB labels as grey PNG with the same ids, ``folder/<stem>.png``; those that are there are left alone.

    Raises UserError: a damaged file, or ids above 255.
    """
    for path in tqdm(files, f"{folder.name}: PNG", disable=None):
        target = folder / f"{path.stem}.png"
        if target.is_file():
            continue
        ids = mat_field(path, *fields)
        if ids.ndim != 2 or ids.min() < 0 or ids.max() > 255:
            raise UserError(f"{path}: {'.'.join(fields)} is no map of ids 0..255")
        picture = Image.fromarray(ids.astype(np.uint8))
        write(target, lambda file, picture=picture: picture.save(file, "PNG"), durable=False)
