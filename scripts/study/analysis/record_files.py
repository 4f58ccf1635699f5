"""Keep the small files of finished runs in one zip file an experiment, and read them from there.

A record file is an ordinary zip: ``unzip -p results/camvid_lite.zip lad-0/metrics.jsonl`` prints a training log. Runs
are appended, and what is there keeps its bytes, so that a version-control system stores only what is new.
"""

import io
import json
import zipfile
import zlib
from collections.abc import Iterable
from fnmatch import fnmatch
from pathlib import Path

from engine.run_folder import SCORE_FILES
from utils.errors import UserError
from utils.files import read_bytes, write

RECORDS = ("config.yaml", "metrics.jsonl", *SCORE_FILES)  # patterns of the files of a run that are kept
LEFT_OUT = (".md", ".png")  # endings of score files that are not kept: robustness.json has what they show
Folder = Path | zipfile.Path  # of a run, on the disk or in a record file
END_MARK = b"PK\x05\x06"  # begins the record that ends a zip file
END_SIZE = 22  # of that record, without a comment
MADE = (1980, 1, 1, 0, 0, 0)  # the date of every member: the same content is to give the same bytes


def open_folder(path: Path) -> Folder:
    """Return a folder of runs, a record file, or a run in one of these: ``results/camvid_lite.zip/lad-0``.

    Raises:
        UserError: the record file is damaged.
    """
    for place in (path, *path.parents):
        if place.suffix == ".zip" and place.is_file():
            _read_members(place, read_bytes(place))  # raises where one is damaged
            whole = zipfile.Path(zipfile.ZipFile(place))
            inside = path.relative_to(place).as_posix()
            return whole if inside == "." else whole / f"{inside}/"
    return path


def list_files(folder: Folder, pattern: str = "*") -> list[Folder]:
    """Return the files and folders of a name directly in a folder, sorted by name."""
    if not folder.is_dir():
        return []
    return sorted((file for file in folder.iterdir() if fnmatch(file.name, pattern)), key=lambda file: file.name)


def list_runs(folder: Folder) -> list[Folder]:
    """Return the run folders directly in a folder, sorted by name."""
    return [run for run in list_files(folder) if (run / "config.yaml").is_file()]


def is_finished(run: Path) -> bool:
    """Return whether a run is done, as far as its folder tells: experiment.py notes it, the scripts alone do not."""
    mark = run / "job.json"
    if not mark.is_file():
        return not (run / "slurm.json").is_file()  # a job of SLURM has no mark before it is done
    try:
        return bool(json.loads(mark.read_text(encoding="utf-8"))["done"])
    except (ValueError, LookupError, TypeError):
        return False


def pack_runs(archive: Path, runs: Iterable[Path]) -> list[str]:
    """Add the records of runs to a record file, in place of older ones of the same name.

    Return the names of the runs whose records are new or have changed. Where there are none, the file keeps its bytes.

    Raises:
        UserError: a folder is no run, two runs have one name, the record file is damaged or cannot be written.
    """
    runs = list(runs)
    names = [run.name for run in runs]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"two runs are called {name}: a record file has room for one of them")
    old = read_bytes(archive) if archive.exists() else b""
    kept = _read_members(archive, old) if old else {}
    new = {run.name: _read_records(run) for run in runs}
    changed = {name for name, files in new.items() if files != _select_run(kept, name)}
    if not changed:
        return []
    if any(_select_run(kept, name) for name in changed):  # what is replaced leaves the file
        kept = {name: content for name, content in kept.items() if name.split("/")[0] not in changed}
        old = _append_members(b"", kept)
    added = {f"{run}/{file}": new[run][file] for run in sorted(changed) for file in sorted(new[run])}
    content = _append_members(old, added)
    write(archive, lambda file: file.write(content))
    return sorted(changed)


def _read_records(run: Path) -> dict[str, bytes]:
    """Return the files of a run that are kept, by name."""
    if not (run / "config.yaml").is_file():
        raise UserError(f"{run} is no run folder: it has no config.yaml")
    records = {}
    for pattern in RECORDS:
        for file in list_files(run, pattern):
            if not file.name.endswith(LEFT_OUT):
                records[file.name] = read_bytes(file)
    return records


def _read_members(archive: Path, content: bytes) -> dict[str, bytes]:
    """Return all files in a record file, by name.

    content: of the file ``archive``.

    Raises:
        UserError: the record file, or a file in it, is damaged.
    """
    if content[-END_SIZE:][: len(END_MARK)] != END_MARK:  # zipfile would find that of an npz file in it
        raise UserError(f"{archive} is no record file: it is no zip file, or cut off")
    members = {}
    name = ""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as file:
            for info in file.infolist():
                name = info.filename
                members[name] = file.read(info)
    except (OSError, EOFError, NotImplementedError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{archive} is damaged: {name}: {error}") from error
    return members


def _select_run(members: dict[str, bytes], run: str) -> dict[str, bytes]:
    """Return the files of one run, by name, out of those of a record file."""
    start = f"{run}/"
    return {name.removeprefix(start): content for name, content in members.items() if name.startswith(start)}


def _append_members(archive: bytes, members: dict[str, bytes]) -> bytes:
    """Return a zip with further members after those it has."""
    buffer = io.BytesIO(archive)
    with zipfile.ZipFile(buffer, "a" if archive else "w") as file:
        for name, content in members.items():
            info = zipfile.ZipInfo(name, MADE)
            info.external_attr = 0o644 << 16
            info.compress_type = zipfile.ZIP_STORED if name.endswith(".npz") else zipfile.ZIP_DEFLATED
            file.writestr(info, content, compresslevel=9)
    return buffer.getvalue()
