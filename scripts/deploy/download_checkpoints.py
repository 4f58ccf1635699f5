"""List, fetch and verify the published checkpoints of checkpoints/manifest.yaml.

    python scripts/deploy/download_checkpoints.py                       # the list
    python scripts/deploy/download_checkpoints.py 'lad_*'               # names or patterns to fetch
    python scripts/deploy/download_checkpoints.py --verify              # what is on disk

A file appears under its name only when its hash is right. Proxies are those of the environment (https_proxy).
"""

import fnmatch
import os
import socket
import sys
import urllib.error
import urllib.request
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from urllib.parse import urlsplit

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from utils.environment import require_packages

require_packages()

from tqdm import tqdm

from scripts.deploy.manifest import Entry, find_problem, read_manifest
from utils.entry import run_main
from utils.errors import UserError, suggest_nearest
from utils.options import option, parse_flags

TIMEOUT = 60  # seconds without a byte after which a download is given up
ROW = "{:52} {:16} {:>6}  {:34} {}"  # of the list


@dataclass(frozen=True)
class DownloadConfig:
    """Hold the settings of download_checkpoints.py."""

    fetch: tuple[str, ...] = option((), "names or patterns to download", positional=True)
    verify: bool = option(False, "compare the files on disk with the manifest")
    folder: str = option(str(ROOT / "checkpoints"), "where the files are")
    manifest: str = option(str(ROOT / "checkpoints" / "manifest.yaml"), "list of files")


def fetch(entry: Entry, folder: Path) -> Path:
    """Download a file into a folder unless it is there. Return its path.

    The download gets the file's name only when its hash is right.

    Raises:
        UserError: the address cannot be reached, the server refuses, the download is interrupted, the file differs from
            the manifest's, or the folder cannot be written to.
    """
    path = folder / entry.file
    part = folder / f"{entry.file}.part"
    if path.exists():
        wrong = find_problem(entry, path)
        if wrong:
            raise UserError(f"{path} is not the published file ({wrong}): delete it and fetch again")
        return path
    if not entry.url:
        raise UserError(f"{path} is missing: it comes with the project (git checkout -- checkpoints)")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        download(entry.url, entry.file, part)
        wrong = find_problem(entry, part)
        if wrong:
            raise UserError(f"{entry.url} is not the published file ({wrong}); nothing was kept: run again")
        os.replace(part, path)
    except (OSError, HTTPException, ValueError) as error:
        raise UserError(describe_failure(error, entry.url, folder)) from error
    finally:
        with suppress(OSError):  # there may be no such folder
            part.unlink()
    return path


def describe_failure(error: Exception, url: str, folder: Path) -> str:
    """Say why a download into a folder failed, and what can be done."""
    if isinstance(error, urllib.error.HTTPError):
        reason = error.reason.partition("\n")[0]  # urllib's text on a circle of redirects has three lines
        return f"{url}: the server answers {error.code} {reason}"
    if isinstance(error, urllib.error.ContentTooShortError):
        return f"{url}: interrupted ({error.reason}): run again"
    if isinstance(error, urllib.error.URLError):
        proxy = urllib.request.getproxies().get(urlsplit(url).scheme)
        through = f" through the proxy {proxy}" if proxy else "; behind a proxy, set https_proxy"
        return f"{url} cannot be reached{through} ({error.reason})"
    if isinstance(error, HTTPException | TimeoutError | ConnectionError):
        return f"{url}: interrupted ({error}): run again"
    if isinstance(error, OSError):
        return f"{error.filename or folder} cannot be written: {error.strerror}"
    return f"{url}: the server sends on to an address that is none ({error})"


def download(url: str, name: str, path: Path) -> None:
    """Download a file to ``path``, and show a progress bar called ``name``.

    Raises:
        OSError: the address cannot be reached, or the file cannot be written.
        ContentTooShortError: the download ended early. This is an OSError.
        TimeoutError: the server sent nothing for TIMEOUT seconds. This is an OSError, too.
        HTTPException: the server does not speak HTTP.
        ValueError: the server redirects to something that is no address.
    """
    socket.setdefaulttimeout(TIMEOUT)  # urlretrieve has no argument for it
    with tqdm(desc=name, unit="B", unit_scale=True, disable=None) as bar:

        def advance(blocks: int, block_size: int, total: int) -> None:
            bar.total = total if total > 0 else None  # not positive where the server does not tell the size
            bar.update(blocks * block_size - bar.n)

        urllib.request.urlretrieve(url, path, advance)


def verify(entries: list[Entry], folder: Path) -> None:
    """Compare the files in a folder with the manifest, and print what each of them is.

    Raises:
        UserError: a file is not what the manifest says.
    """
    found: list[tuple[Entry, str | None]] = []
    for entry in entries:
        path = folder / entry.file
        if path.exists():
            found.append((entry, find_problem(entry, path)))
    for entry, wrong in found:
        if wrong:
            state = f"WRONG, {wrong}"
        elif entry.hash:
            state = "ok"
        else:
            state = "no published hash"
        print(f"{entry.file}: {state}")
    print(f"{len(found)} of {len(entries)} files are in {folder}")
    count = sum(wrong is not None for _, wrong in found)
    if count:
        raise UserError(f"{count} files in {folder} are not the published ones")


def choose_entries(entries: Sequence[Entry], patterns: Sequence[str]) -> list[Entry]:
    """Return the entries whose names match a pattern, each once, in the order of the patterns.

    Raises:
        UserError: a pattern matches no name.
    """
    by_name = {entry.name: entry for entry in entries}
    chosen: dict[str, Entry] = {}
    for pattern in patterns:
        names = fnmatch.filter(by_name, pattern)
        if not names:
            near = suggest_nearest(pattern, by_name)
            raise UserError(f"--fetch {pattern}: no such checkpoint{near} (run without a name: a list)")
        for name in names:
            chosen[name] = by_name[name]
    return list(chosen.values())


def print_list(entries: Sequence[Entry], folder: Path) -> None:
    """Print a table of the published checkpoints, and which of them are in the folder."""
    print(ROW.format("name", "data set", "mIoU %", "protocol, as published", "").rstrip())
    for entry in entries:
        miou = "-" if entry.miou is None else f"{entry.miou:.2f}"
        state = "on disk" if (folder / entry.file).exists() else ""
        print(ROW.format(entry.name, entry.dataset, miou, entry.protocol, state).rstrip())


def main(argv: Sequence[str] | None = None) -> None:
    config = DownloadConfig(**parse_flags(DownloadConfig, __doc__, argv))
    entries = read_manifest(Path(config.manifest).expanduser())
    folder = Path(config.folder).expanduser()
    for entry in choose_entries(entries, config.fetch):
        path = fetch(entry, folder)
        checked = "verified" if entry.hash else "no published hash to compare"
        print(f"{path} ({checked}): {entry.describe_use(path)}", flush=True)
    if config.verify:
        verify(entries, folder)
    if not (config.fetch or config.verify):
        print_list(entries, folder)


if __name__ == "__main__":
    run_main(main)
