"""What the preparation scripts share: safe extraction of official archives, conversion of MATLAB labels."""

import re
import shutil
import stat
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from datasets.matlab import mat_field
from utils.errors import UserError, run_main
from utils.files import write
from utils.options import option, parse_flags

MAX_FILES = 500_000
MAX_RATIO, SLACK = 30, 100_000_000  # unpacked bytes: at most 30 times the archive and 100 MB; pictures hardly compress


@dataclass(frozen=True)
class Archive:
    """An official archive. ``place``: pattern of the members to keep (after any leading folders) -> their new path."""

    name: str
    url: str
    place: tuple[str, str]
    optional: bool = False


@dataclass(frozen=True)
class PrepareConfig:
    archives: tuple[str, ...] = option((), "the archives, or folders that hold them")
    data: str = option("", "root folder of the data set to make")


class Member(NamedTuple):
    name: str
    size: int
    trouble: str  # why it must not be unpacked, or nothing
    folder: bool
    open: Callable[[], IO[bytes] | None]


def prepare(description: str, archives: Sequence[Archive], finish: Callable[[Path], None] = lambda root: None) -> None:
    """The main function of a preparation script: unpack what is not there yet, then ``finish`` the layout."""

    def main() -> None:
        sources = "\n".join(f"  {a.name}{' (optional)' if a.optional else ''}: {a.url}" for a in archives)
        config = PrepareConfig(**parse_flags(PrepareConfig, f"{description}\n\nArchives:\n{sources}"))
        if not config.data:
            raise UserError("--data ROOT is missing: the folder to make")
        found = find(archives, [Path(path).expanduser() for path in config.archives])
        missing = [a for a in archives if a.name not in found and not a.optional]
        if missing:
            wanted = "; ".join(f"{a.name} from {a.url}" for a in missing)
            raise UserError(f"--archives lacks {wanted}")
        root = Path(config.data).expanduser()
        for archive in archives:
            if archive.name in found:
                extract(found[archive.name], root, archive.place)
        finish(root)
        print(f"{root} is ready: scripts/data/check_data.py reads all of it")

    run_main(main)


def find(archives: Sequence[Archive], places: Sequence[Path]) -> dict[str, Path]:
    """Archives by name among files and folders.

    Raises:
        UserError: a place that does not exist.
    """
    for place in places:
        if not place.exists():
            raise UserError(f"--archives {place}: no such file or folder")
    files = {path.name: path for place in places for path in ([place] if place.is_file() else place.iterdir())}
    return {a.name: files[a.name] for a in archives if a.name in files}


def extract(archive: Path, root: Path, place: tuple[str, str]) -> None:
    """Unpack the members that match into ``root``; those that are there with the same size are left alone.

    The whole table of contents is looked at before the first byte is written.

    Raises:
        UserError: damaged, or with members that lead outside, links, devices, too many files or too many bytes.
    """
    pattern, replacement = re.compile(rf"(?:.*/)?{place[0]}"), place[1]
    targets: dict[str, Path] = {}
    places: dict[Path, str] = {}
    count = total = 0
    for member in tqdm(read(archive), f"{archive.name}: contents", disable=None):
        count, total = count + 1, total + member.size
        if member.trouble:
            raise UserError(f"{archive} is not unpacked: {member.name} {member.trouble}")
        if count > MAX_FILES or total > MAX_RATIO * archive.stat().st_size + SLACK:
            raise UserError(
                f"{archive} is not unpacked: it holds too much ({count} files, {total / 1e9:.1f} GB so far)"
            )
        matched = pattern.fullmatch(member.name)
        if matched and not member.folder:
            if member.name in targets:
                raise UserError(f"{archive} is not unpacked: it holds {member.name} twice")
            target = root / matched.expand(replacement)
            if target in places:
                raise UserError(f"{archive} is not unpacked: {member.name} and {places[target]} would be one file")
            targets[member.name], places[target] = target, member.name
    if not targets:
        raise UserError(f"{archive} holds no file named like {place[0]}")
    folder = root
    while not folder.exists():
        folder = folder.parent
    if total > shutil.disk_usage(folder).free:
        raise UserError(f"{archive} needs up to {total / 1e9:.1f} GB in {root}: there is less")
    progress = tqdm(total=len(targets), desc=archive.name, disable=None)
    for member in read(archive):
        target = targets.get(member.name)
        if target is None or member.folder:
            continue
        progress.update()
        if not (target.is_file() and target.stat().st_size == member.size):
            write(target, partial(_copy, archive, member), durable=False)
    progress.close()


def _copy(archive: Path, member: Member, file: IO[bytes]) -> None:
    with guard(archive), member.open() as source:
        shutil.copyfileobj(source, file)


class guard:
    """Damage of an archive as a UserError."""

    def __init__(self, archive: Path) -> None:
        self.archive = archive

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError)):
            raise UserError(f"{self.archive} is damaged: {error}") from error
        if isinstance(error, (OSError, RuntimeError)):
            raise UserError(f"{self.archive} cannot be unpacked: {error}") from error


def read(archive: Path) -> Iterator[Member]:
    """The members of a zip or a (compressed) tar, in order."""
    with guard(archive):
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as file:
                for info in file.infolist():
                    mode = info.external_attr >> 16
                    regular = info.is_dir() or not stat.S_IFMT(mode) or stat.S_ISREG(mode)
                    trouble = _trouble(info.filename, regular)
                    yield Member(
                        info.filename, info.file_size, trouble, info.is_dir(), lambda info=info: file.open(info)
                    )
        else:
            with tarfile.open(archive) as file:
                for info in file:
                    trouble = _trouble(info.name, info.isreg() or info.isdir())
                    yield Member(info.name, info.size, trouble, info.isdir(), lambda info=info: file.extractfile(info))


def _trouble(name: str, regular: bool) -> str:
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or (path.parts and path.parts[0].endswith(":")):
        return "leads out of the folder"
    return "" if regular else "is a link or a device"


def convert_mat(files: Sequence[Path], folder: Path, fields: Sequence[str]) -> None:
    """MATLAB labels as grey PNG with the same ids, ``folder/<stem>.png``; those that are there are left alone.

    Raises:
        UserError: a damaged file, or ids above 255.
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
