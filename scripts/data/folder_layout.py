"""Which folders of an unknown tree hold images, and which the labels of those."""

import os
import re
from collections import Counter
from collections.abc import Iterator
from difflib import SequenceMatcher
from functools import lru_cache
from itertools import groupby, product
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from datasets.files import IMAGE_SUFFIXES
from utils.errors import UserError

SPLIT = re.compile(r"(?<![a-z])(train|val|dev|test)", re.IGNORECASE)
LABEL_WORD = re.compile(r"mask|label|annot|(?<![a-z])(gt|seg|ann|target)|ids|class", re.IGNORECASE)
KIND = 0.2  # share of a folder's files that an ending must have to be a kind of them
COVERED = 0.5  # share of a folder's images that must have a label


class Match(NamedTuple):
    """Images called base + one ending in one folder, labels called base + another in a folder; "" is any suffix."""

    images: Path
    image_suffix: str
    labels: Path
    label_suffix: str
    bases: tuple[str, ...]
    unlabelled: int  # images of that ending without such a label
    hint: bool  # the labels are called so
    merit: tuple[object, ...]


def find_matches(root: Path) -> list[Match]:
    """The best labels of each folder of images, all with names of one form.

    Raises UserError: no pictures, or none that go by the same names as labels.
    """
    folders = dict(pictures(root))
    ranked = {}
    for here in folders:
        near = {there: _nearness(root, here, there) for there in folders}
        ranked[here] = [list(g) for _, g in groupby(sorted(folders, key=near.get, reverse=True), near.get)]
    found: list[Match] = []
    for rank in range(max(map(len, ranked.values()), default=0)):
        # what is further away is looked at where nothing nearer is called labels: there may be many folders
        done = {folder for match in found if match.hint for folder in (match.images, match.labels)}
        for here in [folder for folder in folders if folder not in done]:
            for there in ranked[here][rank] if rank < len(ranked[here]) else ():
                found += _pairings(root, folders, here, there)
    if not found:
        places = ", ".join(sorted(str(folder.relative_to(root)) for folder in folders)[:6]) or "there are none"
        raise UserError(
            f"--data {root}: no folder of labels found for those of pictures ({places}); labels are named as their "
            "images with one ending for all, such as photo.jpg and photo_mask.png, and hold few colours"
        )
    forms: Counter[tuple[str, str]] = Counter()
    for match in found:
        forms[match.image_suffix, match.label_suffix] += len(match.bases)
    form = max(forms, key=lambda form: (forms[form], form[0] == ""))
    label_folders = {match.labels for match in found if match.images != match.labels}
    best: dict[Path, Match] = {}
    for match in sorted(found, key=lambda match: match.merit):
        if (match.image_suffix, match.label_suffix) == form and match.images not in label_folders:
            best[match.images] = match
    return [best[folder] for folder in sorted(best)]


def pictures(root: Path) -> Iterator[tuple[Path, list[str]]]:
    """Names of the pictures of each folder; links are followed, once."""
    seen: set[Path] = set()
    for folder, below, names in os.walk(root, followlinks=True):
        seen.add(Path(folder).resolve())
        below[:] = [name for name in sorted(below) if name[0] != "." and Path(folder, name).resolve() not in seen]
        found = [name for name in sorted(names) if Path(name).suffix.lower() in IMAGE_SUFFIXES and name[0] != "."]
        if found:
            yield Path(folder), found


def _pairings(root: Path, folders: dict[Path, list[str]], here: Path, there: Path):
    """Every way in which most images of one folder have a label in another, or the same."""
    image_split, label_split = split_of(here.relative_to(root)), split_of(there.relative_to(root))
    if image_split and label_split and image_split != label_split:
        return
    special = [ending for ending in _endings(folders[here]) if ending.lower() not in IMAGE_SUFFIXES]
    for image_suffix, label_suffix in product(("", *special), _endings(folders[there])):
        names = [n for n in folders[here] if n.endswith(image_suffix)]
        if here == there:
            names = [n for n in names if not n.endswith(label_suffix)]
        images = {n.removesuffix(image_suffix) if image_suffix else Path(n).stem: n for n in names}
        labels = {n.removesuffix(label_suffix): n for n in folders[there] if n.endswith(label_suffix)}
        bases = tuple(sorted(images.keys() & labels.keys()))
        if not bases or len(bases) < COVERED * len(images):
            continue
        places = [str(folder.relative_to(root)) for folder in (here, there)]
        words = [{*Path(place).parts, end} for place, end in zip(places, (image_suffix, label_suffix), strict=True)]
        hint, against = (any(map(LABEL_WORD.search, words[i] - words[1 - i])) for i in (1, 0))
        colors = [_colors(path) for path in (here / images[bases[0]], there / labels[bases[0]])]
        if (hint and not against) or (hint == against and 2 * colors[1] < colors[0]):
            alike = SequenceMatcher(None, *places).ratio()
            same_split, shared = _nearness(root, here, there)
            merit = (same_split, hint, shared, len(bases), -colors[1], alike)
            yield Match(here, image_suffix, there, label_suffix, bases, len(images) - len(bases), hint, merit)


def _nearness(root: Path, here: Path, there: Path) -> tuple[bool, int]:
    """Whether two folders are of one split, and how much of their places they have in common."""
    own, other = here.relative_to(root), there.relative_to(root)
    shared = len(set(own.parts) & set(other.parts)) - (own == other != Path())  # it is not nearer than those beside it
    return split_of(own) == split_of(other), shared


def _endings(names: list[str]) -> list[str]:
    """What several of the names end with, from a mark on."""
    counts = Counter(name[mark.start() :] for name in names for mark in re.finditer(r"(?<=.)[_\-.]", name))
    return [ending for ending, count in counts.items() if count >= KIND * len(names)]


@lru_cache
def _colors(path: Path) -> int:
    try:
        with Image.open(path) as file:
            return len(file.convert("RGB").getcolors(2**24))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error


def split_of(path: Path) -> str:
    """``train``, ``val`` or ``test`` where a part of the path says so, the last one first; else an empty string."""
    found = next(filter(None, map(SPLIT.search, reversed(path.parts))), None)
    return {"dev": "val"}.get(found[1].lower(), found[1].lower()) if found else ""
