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
    """An official archive. The members that match ``pattern`` (after any leading folders) become ``target``."""

    name: str
    url: str
    pattern: str
    target: str = r"\1"
    optional: bool = False


def extract(file: Path, root: Path, archive: Archive) -> None:
    """Unpack what ``archive`` says of a file into ``root``. What is there with the same size is left alone.

    The members are unpacked into a temporary folder in ``root`` first. What leads out of that folder is refused,
    and so are devices and links to elsewhere in a tar file, by Python's own filter.

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
            if not (target.is_file() and target.stat().st_size == source.stat().st_size):
                target.parent.mkdir(parents=True, exist_ok=True)
                os.replace(source, target)


def unpack(archive: Path, folder: Path, pattern: re.Pattern[str]) -> dict[str, Path]:
    """Unpack the files of a zip or a (compressed) tar whose names match. Return where each is, by name."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as file:
            names = [name for name in file.namelist() if pattern.fullmatch(name) and not name.endswith("/")]
            return {name: Path(file.extract(name, folder)) for name in tqdm(names, archive.name, disable=None)}
    found = {}
    with tarfile.open(archive) as file:
        for member in tqdm(file, archive.name, disable=None):
            if pattern.fullmatch(member.name) and not member.isdir():
                file.extract(member, folder, filter="data")
                found[member.name] = folder / member.name.lstrip("/")
    return found


@contextmanager
def explain_damage(archive: Path) -> Iterator[None]:
    """Turn the damage of an archive into a UserError."""
    try:
        yield
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, ValueError) as error:
        raise UserError(f"{archive} is damaged or refused: {' '.join(str(error).split())}") from error
    except (OSError, RuntimeError) as error:
        raise UserError(f"{archive} cannot be unpacked: {' '.join(str(error).split())}") from error


def convert_mat(files: Sequence[Path], folder: Path, fields: Sequence[str]) -> None:
    """Convert MATLAB labels to grey PNG files with the same ids, ``folder/<stem>.png``. Keep those that are there.

    Raises:
        UserError: a damaged file, or ids above 255.
    """
    for path in tqdm(files, f"{folder.name}: PNG", disable=None):
        target = folder / f"{path.stem}.png"
        if target.is_file():
            continue
        ids = read_mat_field(path, *fields)
        if ids.ndim != 2 or ids.min() < 0 or ids.max() > 255:
            raise UserError(f"{path}: {'.'.join(fields)} is no map of ids 0..255")
        picture = Image.fromarray(ids.astype(np.uint8))
        write(target, lambda file, picture=picture: picture.save(file, "PNG"), durable=False)
