"""The list of published checkpoints, checkpoints/manifest.yaml, and whether a file is one of them."""

import hashlib
import re
import shlex
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from utils.errors import UserError, require_known
from utils.files import compute_digest, read_yaml

TEST_SERVER = "test server"
# how files of weights begin
ZIP = b"PK\x03\x04"  # a file of torch.save
PICKLE = b"\x80"  # a file of torch.save before PyTorch 1.6
SAFETENSORS_LENGTH = 8  # safetensors begins with the length of its JSON in this many bytes


class Entry(NamedTuple):
    """Describe one published checkpoint.

    A checkpoint without a ``url`` comes with the project; ``command`` is the command that trained it. ``hash`` is
    "kind:hex" (see HASHES), or None where the publisher gives none. ``resize``, ``window``, ``stride`` and
    ``absent_as_zero`` are the flags of eval.py that the score was measured with.
    """

    name: str
    url: str
    arch: str
    backbone: str
    dataset: str
    miou: int | float | None  # percent, as published
    protocol: str
    hash: str | None = None
    size: int | None = None  # bytes
    command: str = ""
    resize: list | None = None  # long and short side
    window: list | None = None  # height and width
    stride: list | None = None
    absent_as_zero: bool = False

    @property
    def file(self) -> str:
        """Return the name of the file: for a published one, the last part of the address."""
        if not self.url:
            return f"{self.name}.safetensors"
        return unquote(urlsplit(self.url).path.rsplit("/", 1)[-1])

    def describe_use(self, path: Path) -> str:
        """Return the command that measures the network as its authors did, or for a backbone the flag that takes it.

        A score of a test server cannot be measured: the command then measures the network on the validation images.

        path: where the file lies.
        """
        if self.arch == "backbone":
            return f"--pretrained-base {shlex.quote(str(path))}"
        words = ["python", "eval.py", "--pretrained", str(path), "--dataset", self.dataset, "--data", "ROOT"]
        for name in ("resize", "window", "stride"):
            numbers = getattr(self, name)
            if numbers:
                words += [f"--{name}", *map(str, numbers)]
        if self.absent_as_zero:
            words.append("--absent-as-zero")
        protocol = self.protocol
        if protocol == TEST_SERVER:
            protocol = "val; the published score is of the test server"
        return f"{shlex.join(words)}  # {protocol}"


def compute_git_blob_id(path: Path) -> str:
    """Return the id that git gives a file: SHA-1 of "blob <size>\\0" and the content."""
    return compute_digest(path, hashlib.sha1(f"blob {path.stat().st_size}\0".encode()))


HASHES: dict[str, Callable[[Path], str]] = {"sha256": compute_digest, "git-blob": compute_git_blob_id}


def read_manifest(path: Path) -> list[Entry]:
    """Read the list of published checkpoints.

    Raises:
        UserError: the file does not exist or is no yaml, an entry is incomplete, has a value of another type or an
            unsafe address, or a name or file is there twice.
    """
    try:
        entries = [Entry(**item) for item in read_yaml(path)]
        for entry in entries:
            check_types(entry)
        names = [entry.name for entry in entries]
        files = [entry.file for entry in entries]
    except (TypeError, ValueError) as error:
        raise UserError(f"manifest {path}: {' '.join(str(error).split())}") from error
    check_unique(names, "name", path)
    check_unique(files, "file", path)
    for entry in entries:
        check_address(entry, path)
        check_hash(entry, path)
    return entries


def check_types(entry: Entry) -> None:
    """Check that every value of an entry has the type that ``Entry`` declares.

    Raises:
        TypeError: a value has another type.
    """
    for key, kind in Entry.__annotations__.items():
        value = getattr(entry, key)
        if not isinstance(value, kind):
            raise TypeError(f"{entry.name}: {key}: {value!r}")


def check_unique(values: list[str], key: str, path: Path) -> None:
    """Check that no value is in the manifest ``path`` twice. key: what the values are, for the message.

    Raises:
        UserError: a value is there twice.
    """
    for value, count in Counter(values).items():
        if count > 1:
            raise UserError(f"manifest {path}: the {key} {value!r} is there twice")


def check_address(entry: Entry, path: Path) -> None:
    """Check that the address of an entry, if it has one, is one of http, and that its file has a plain name.

    path: the manifest, for messages.

    Raises:
        UserError: the address is not one of http, or the file has no plain name.
    """
    is_web = not entry.url or urlsplit(entry.url).scheme in ("http", "https")
    if not is_web or not re.fullmatch(r"\w[\w.+-]*", entry.file):
        raise UserError(f"manifest {path}: {entry.name} has no http address of a plain file name: {entry.url}")


def check_hash(entry: Entry, path: Path) -> None:
    """Check that the hash of an entry, if it has one, is of a known kind. path: the manifest, for messages.

    Raises:
        UserError: the kind is unknown, or the hash is not 8 to 64 hexadecimal digits.
    """
    if entry.hash is None:
        return
    kind, _, digits = entry.hash.partition(":")
    require_known(kind, HASHES, f"hash of {entry.name}")
    if not re.fullmatch(r"[0-9a-f]{8,64}", digits):
        raise UserError(f"manifest {path}: {entry.name}: {entry.hash!r} has not the 8 digits a hash needs")


def looks_like_weights(path: Path) -> bool:
    """Return whether a file begins like one of torch.save or safetensors, and not like an error page of a server."""
    with path.open("rb") as file:
        start = file.read(SAFETENSORS_LENGTH + 1)
    return start.startswith((ZIP, PICKLE)) or start[SAFETENSORS_LENGTH:] == b"{"


def find_problem(entry: Entry, path: Path) -> str | None:
    """Return what is wrong with a file on disk, or None.

    A hash in the manifest may be the first digits of the whole hash. Without a hash, the file must look like weights.
    """
    if entry.size is not None and path.stat().st_size != entry.size:
        return f"{path.stat().st_size} bytes instead of {entry.size}"
    if entry.hash:
        kind, _, expected = entry.hash.partition(":")
        found = HASHES[kind](path)
        if not found.startswith(expected):
            return f"{kind} {found[: len(expected)]} instead of {expected}"
    elif not looks_like_weights(path):
        return "it holds no weights"
    return None
