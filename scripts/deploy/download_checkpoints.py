"""List, fetch and verify the published checkpoints of checkpoints/manifest.yaml.

    python scripts/deploy/download_checkpoints.py                       # the list
    python scripts/deploy/download_checkpoints.py 'lad_*'               # names or patterns to fetch
    python scripts/deploy/download_checkpoints.py --verify              # what is on disk

A file appears under its name only when it is whole and its hash is right. An interrupted download is kept as .part and
continued the next time. Proxies are those of the environment (https_proxy).
"""

import fnmatch
import os
import sys
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from http.client import HTTPException
from itertools import chain
from pathlib import Path
from urllib.parse import urlsplit

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from utils.environment import require_packages

require_packages()

from tqdm import tqdm

from scripts.deploy.manifest import Entry, problem, read_manifest
from utils.errors import UserError, nearest, run_main
from utils.files import BLOCK
from utils.options import option, parse_flags

TIMEOUT = 30  # seconds without an answer
ROW = "{:52} {:16} {:>6}  {:34} {}"  # of the list


@dataclass(frozen=True)
class DownloadConfig:
    fetch: tuple[str, ...] = option((), "names or patterns to download", positional=True)
    verify: bool = option(False, "compare the files on disk with the manifest")
    folder: str = option(str(ROOT / "checkpoints"), "where the files are")
    manifest: str = option(str(ROOT / "checkpoints" / "manifest.yaml"), "list of files")


class SafeRedirects(urllib.request.HTTPRedirectHandler):
    """A redirect may change the host, never from https to something else."""

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        if urlsplit(newurl).scheme not in ("https", req.type):
            raise urllib.error.URLError(f"redirected from {req.type} to {newurl}")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def fetch(entry: Entry, folder: Path) -> Path:
    """Download one file, or find it there; the result is whole and verified.

    Raises UserError: unreachable, refused, interrupted (the part is kept), or other bytes than the manifest's.
    """
    path, part = folder / entry.file, folder / f"{entry.file}.part"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if path.exists():
            if wrong := problem(entry, path):
                raise UserError(f"{path} is not the published file ({wrong}): delete it and fetch again")
            return path
        if not entry.url:
            raise UserError(f"{path} is missing: it comes with the project (git checkout -- checkpoints)")
        if not entry.hash or part.is_symlink():
            part.unlink(missing_ok=True)  # nothing would tell whether two halves belong together, or where it leads
        _download(entry, part)
        if wrong := problem(entry, part):
            part.unlink()
            raise UserError(f"{entry.url} is not the published file ({wrong}); nothing was kept")
        os.replace(part, path)
    except urllib.error.HTTPError as error:
        raise UserError(f"{entry.url}: the server answers {error.code} {error.reason}") from error
    except urllib.error.URLError as error:
        proxy = urllib.request.getproxies().get(urlsplit(entry.url).scheme)
        through = f" through the proxy {proxy}" if proxy else "; behind a proxy, set https_proxy"
        raise UserError(f"{entry.url} cannot be reached{through} ({error.reason})") from error
    except (HTTPException, TimeoutError, ConnectionError) as error:
        raise UserError(f"{entry.url}: interrupted ({error}); run again to continue from {part}") from error
    except OSError as error:
        raise UserError(f"{error.filename or folder} cannot be written: {error.strerror}") from error
    return path


def _download(entry: Entry, part: Path) -> None:
    """Append what is missing to ``part``."""
    start = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(entry.url, headers={"User-Agent": "label-assisted-distillation"})
    if start:
        request.add_header("Range", f"bytes={start}-")
    try:
        response = urllib.request.build_opener(SafeRedirects).open(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if start and error.code == 416:  # nothing behind the part: it is whole
            return
        raise
    with response:
        if response.headers.get_content_type() == "text/html":
            raise UserError(f"{entry.url} answers with a web page instead of a file: download it by hand")
        if response.status != 206:  # the server sends everything again
            start = 0
        length = response.headers.get("Content-Length")
        total = start + int(length) if length and length.isdecimal() else None
        if total is None and not (entry.hash or entry.size or response.chunked):
            raise UserError(f"{entry.url}: neither server nor manifest says how long it is: download it by hand")
        progress = tqdm(total=total, initial=start, unit="B", unit_scale=True, desc=entry.name, leave=False)
        with part.open("ab" if start else "wb") as file, progress:
            while block := response.read(BLOCK):
                file.write(block)
                progress.update(len(block))
    if total is not None and (size := part.stat().st_size) < total:
        raise UserError(f"{entry.url}: interrupted after {size} of {total} bytes; run again to continue from {part}")


def verify(entries: list[Entry], folder: Path) -> None:
    """Raises UserError when a file on disk is not what the manifest says."""
    found = {entry: problem(entry, folder / entry.file) for entry in entries if (folder / entry.file).exists()}
    for entry, wrong in found.items():
        print(f"{entry.file}: {f'WRONG, {wrong}' if wrong else 'ok' if entry.hash else 'no published hash'}")
    print(f"{len(found)} of {len(entries)} files are in {folder}")
    if any(found.values()):
        raise UserError(f"{sum(map(bool, found.values()))} files in {folder} are not the published ones")


def main(argv: Sequence[str] | None = None) -> None:
    config = DownloadConfig(**parse_flags(DownloadConfig, __doc__, argv))
    entries, folder = read_manifest(Path(config.manifest)), Path(config.folder).expanduser()
    by_name = {entry.name: entry for entry in entries}
    matching = {pattern: fnmatch.filter(by_name, pattern) for pattern in config.fetch}
    for pattern, names in matching.items():
        if not names:
            near = nearest(pattern, by_name)
            raise UserError(f"--fetch {pattern}: no such checkpoint{near} (run without a name: a list)")
    for entry in (by_name[name] for name in dict.fromkeys(chain.from_iterable(matching.values()))):
        path = fetch(entry, folder)
        checked = "verified" if entry.hash else "no published hash to compare"
        command = f"eval.py --pretrained {path} --dataset {entry.dataset} --data ROOT"
        print(f"{path} ({checked}): {command}  # {entry.protocol}", flush=True)
    if config.verify:
        verify(entries, folder)
    if not (config.fetch or config.verify):
        print(ROW.format("name", "data set", "mIoU %", "protocol, as published", "").rstrip())
        for entry in entries:
            miou = "-" if entry.miou is None else f"{entry.miou:.2f}"
            state = "on disk" if (folder / entry.file).exists() else ""
            print(ROW.format(entry.name, entry.dataset, miou, entry.protocol, state).rstrip())


if __name__ == "__main__":
    run_main(main)
