"""Unpack official archives, and convert MATLAB labels."""

import os
import re
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

from datasets.matlab import read_mat_field
from utils.errors import UserError
from utils.files import write


class Archive(NamedTuple):
    """Describe an official archive, and where its members belong in a data set."""

    name: str
    url: str
    pattern: str  # regular expression of the members to unpack; folders before it do not matter
    target: str = r"\1"  # their path below the data set's root, with the groups of the pattern
    optional: bool = False  # the data set can be used without it


def extract(file: Path, root: Path, archive: Archive) -> None:
    """Unpack the members of ``file`` that ``archive`` describes into ``root``. Files of the same size stay as they are.

    The members are unpacked into a temporary folder in ``root`` first. Members that lead out of that folder are
    refused, and so are links. Of a tar file, Python's own filter refuses devices, too.

    Raises:
        UserError: the archive is damaged, is refused, or has no such member; or a file cannot be written.
    """
    pattern = re.compile(rf"(?:.*/)?{archive.pattern}")
    root.mkdir(parents=True, exist_ok=True)
    with explain_damage(file), tempfile.TemporaryDirectory(prefix=".unpacked-", dir=root) as folder:
        found = unpack(file, Path(folder), pattern)
        if not found:
            raise UserError(f"{file} holds no file named like {archive.pattern}")
        for name, source in found.items():
            if ".." in name.split("/"):
                raise UserError(f"{file} is not unpacked: {name} leads out of the folder")
            if source.is_symlink():
                raise UserError(f"{file} is not unpacked: {name} is a link")
        for name, source in found.items():
            target = root / pattern.fullmatch(name).expand(archive.target)
            is_there = target.is_file() and target.stat().st_size == source.stat().st_size
            if not is_there:
                target.parent.mkdir(parents=True, exist_ok=True)
                os.replace(source, target)


def unpack(archive: Path, folder: Path, pattern: re.Pattern[str]) -> dict[str, Path]:
    """Unpack the members of a zip or a (compressed) tar file whose names match. Return name -> unpacked file."""
    if zipfile.is_zipfile(archive):
        return _unpack_zip(archive, folder, pattern)
    return _unpack_tar(archive, folder, pattern)


def _unpack_zip(archive: Path, folder: Path, pattern: re.Pattern[str]) -> dict[str, Path]:
    """Unpack the matching members of a zip file, as ``unpack`` does."""
    found = {}
    with zipfile.ZipFile(archive) as file:
        names = [name for name in file.namelist() if pattern.fullmatch(name) and not name.endswith("/")]
        for name in tqdm(names, archive.name, disable=None):
            found[name] = Path(file.extract(name, folder))
    return found


def _unpack_tar(archive: Path, folder: Path, pattern: re.Pattern[str]) -> dict[str, Path]:
    """Unpack the matching members of a tar file, as ``unpack`` does."""
    found = {}
    with tarfile.open(archive) as file:
        for member in tqdm(file, archive.name, disable=None):
            if pattern.fullmatch(member.name) and not member.isdir():
                file.extract(member, folder, filter="data")
                found[member.name] = folder / member.name.lstrip("/")
    return found


@contextmanager
def explain_damage(archive: Path) -> Iterator[None]:
    """Turn the errors that Python raises for an archive inside a block into UserErrors that name the archive."""
    try:
        yield
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, ValueError) as error:
        raise UserError(f"{archive} is damaged or refused: {' '.join(str(error).split())}") from error
    except (OSError, RuntimeError) as error:
        raise UserError(f"{archive} cannot be unpacked: {' '.join(str(error).split())}") from error


def convert_mat(files: Sequence[Path], folder: Path, fields: Sequence[str]) -> None:
    """Convert MATLAB labels to grey PNG files with the same ids, ``folder/<stem>.png``. PNG files that exist stay.

    fields: the path to the label in the file, such as ("GTcls", "Segmentation").

    Raises:
        UserError: a file is damaged, its label is not a map ``[H, W]`` of ids 0..255, or a PNG cannot be written.
    """
    for path in tqdm(files, f"{folder.name}: PNG", disable=None):
        if path.name.startswith("."):  # macOS writes such a file beside each other file
            continue
        target = folder / f"{path.stem}.png"
        if target.is_file():
            continue
        ids = read_mat_field(path, *fields)
        if ids.ndim != 2 or ids.min() < 0 or ids.max() > 255:
            raise UserError(f"{path}: {'.'.join(fields)} is no map of ids 0..255")
        picture = Image.fromarray(ids.astype(np.uint8))
        write(target, lambda file, picture=picture: picture.save(file, "PNG"), durable=False)
