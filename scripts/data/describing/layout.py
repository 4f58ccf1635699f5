"""Which folders of a tree hold images, which the labels of those, and which split each is."""

import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import cache, cached_property
from pathlib import Path
from statistics import median

import numpy as np
from PIL import Image

from datasets.files import IMAGE_SUFFIXES
from utils.errors import UserError

SPLIT = re.compile(r"(?<![a-z])(train|val|dev|test)", re.IGNORECASE)
LABEL_WORD = re.compile(r"mask|label|annot|(?<![a-z])(gt|seg|ann|target)|ids|class", re.IGNORECASE)
LOOKED_INTO = 3  # files of a folder, to tell labels from images
COVERED = 0.5  # share of a folder's images that have a label there, at least
PROBES = 20  # names looked for before all are compared
KIND = 0.2  # share of a folder's files that an ending must have to be a kind of them


@dataclass(frozen=True)
class Side:
    """Files of one folder that are called <base> + ``ending``; the ending "" is any picture's suffix."""

    folder: Path
    ending: str
    files: dict[str, Path]  # by base

    @cached_property
    def variety(self) -> float:
        """Different colours in a file: labels have few."""
        files = list(self.files.values())
        return median(map(_colors, files[:: max(1, len(files) // LOOKED_INTO)][:LOOKED_INTO]))

    def named(self, root: Path) -> str:
        return f"{self.folder.relative_to(root)}/*{self.ending}"


@dataclass(frozen=True)
class Match:
    """Images and the labels that go by the same names."""

    images: Side
    labels: Side
    pairs: tuple[tuple[Path, Path], ...]
    without: int  # images that have no label there


def split_of(*paths: Path | str) -> str:
    """``train``, ``val`` or ``test`` where one of the paths says so, the last folder first; else an empty string."""
    for path in paths:
        for part in reversed(Path(path).parts):
            found = SPLIT.search(part)
            if found:
                return {"dev": "val"}.get(found[1].lower(), found[1].lower())
    return ""


def find_matches(root: Path) -> tuple[list[Match], list[str]]:
    """The best labels of each folder of images, all with names of one form; and what else might have been meant.

    Raises:
        UserError: no pictures, or none that go by the same names as labels.
    """
    sides = list(_sides(root))
    if not sides:
        raise UserError(f"--data {root} has no pictures ({', '.join(IMAGE_SUFFIXES)})")
    found = [match for images, labels in _same_names(sides) if (match := _match(images, labels, root))]
    if not found:
        folders = ", ".join(sorted({str(side.folder.relative_to(root)) for side in sides})[:6])
        raise UserError(
            f"--data {root}: no folder of labels found for those of pictures ({folders}); labels are named as their "
            "images with one ending for all, such as photo.jpg and photo_mask.png, and hold few colours"
        )
    forms: Counter[tuple[str, str]] = Counter()
    for match in found:
        forms[match.images.ending, match.labels.ending] += len(match.pairs) * 2 - bool(match.images.ending)
    masks = {match.labels.folder for match in found if match.images.folder != match.labels.folder}
    images, labels = max(forms, key=lambda form: forms[form])
    best: dict[Path, Match] = {}
    others = []
    for match in sorted(found, key=lambda match: _merit(match, root), reverse=True):
        here = match.images.folder
        if match.images.ending != images or here in masks:
            continue
        if match.labels.ending == labels and here not in best:
            best[here] = match
        else:
            others.append(f"{match.images.named(root)} with labels {match.labels.named(root)}")
    return [best[folder] for folder in sorted(best)], others


def _sides(root: Path) -> Iterator[Side]:
    seen: set[Path] = set()
    for folder, below, names in os.walk(root, followlinks=True):
        here = Path(folder)
        seen.add(here.resolve())
        below[:] = sorted(n for n in below if n[0] != "." and (here / n).resolve() not in seen)  # links may go in rings
        paths = [here / n for n in sorted(names) if Path(n).suffix.lower() in IMAGE_SUFFIXES and n[0] != "."]
        endings: defaultdict[str, dict[str, Path]] = defaultdict(dict)
        for path in paths:
            for cut in re.finditer(r"(?<=.)[_\-.]", path.name):
                endings[path.name[cut.start() :]][path.name[: cut.start()]] = path
        if paths:
            yield Side(here, "", {path.stem: path for path in reversed(paths)})
        yield from (Side(here, end, files) for end, files in endings.items() if len(files) >= KIND * len(paths))


def _same_names(sides: Iterable[Side]) -> Iterator[tuple[Side, Side]]:
    """Every two that share names and may be of the same split; labels have an ending."""
    sides = list(sides)
    for images in sides:
        plain = not images.ending or images.ending.lower() not in IMAGE_SUFFIXES
        for labels in sides if plain else ():
            one, other = split_of(images.folder), split_of(labels.folder)
            same = images.folder == labels.folder and images.ending == labels.ending
            if labels.ending and not same and (one == other or not one or not other):
                yield images, labels


def _match(images: Side, labels: Side, root: Path) -> Match | None:
    """The pairs, where most images have one and the other file of it looks like a label."""
    files = images.files
    if images.folder == labels.folder:
        files = {base: path for base, path in files.items() if not path.name.endswith(labels.ending)}
        if not images.ending:  # photo.jpg beside photo.png: the plain name stands for either
            others = [p for p in images.folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and p.name[0] != "."]
            files = {path.stem: path for path in others if not path.name.endswith(labels.ending)}
    if not any(base in labels.files for base in list(files)[:: max(1, len(files) // PROBES)]):
        return None
    shared = sorted(files.keys() & labels.files.keys())
    if len(shared) < COVERED * len(files):
        return None
    shown = Side(images.folder, images.ending, {base: files[base] for base in shared})
    mask = Side(labels.folder, labels.ending, {base: labels.files[base] for base in shared})
    if not _hinted(shown, mask, root) and (_hinted(mask, shown, root) or 2 * mask.variety >= shown.variety):
        return None
    return Match(shown, mask, tuple((files[b], labels.files[b]) for b in shared), len(files) - len(shared))


def _hinted(images: Side, labels: Side, root: Path) -> bool:
    """By what differs between their names."""
    one, other = (set(Path(side.named(root)).parts) for side in (images, labels))
    return any(map(LABEL_WORD.search, other - one)) and not any(map(LABEL_WORD.search, one - other))


def _merit(match: Match, root: Path) -> tuple[object, ...]:
    image, label = (str(side.folder.relative_to(root)) for side in (match.images, match.labels))
    split = split_of(image) == split_of(label)
    return (
        split,
        len(match.pairs),
        _hinted(match.images, match.labels, root),
        -match.labels.variety,
        SequenceMatcher(None, image, label).ratio(),
    )


@cache
def _colors(path: Path) -> int:
    try:
        with Image.open(path) as file:
            if file.mode == "P":
                return len(np.unique(np.asarray(file)))
            pixels = np.asarray(file)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    channels = pixels.reshape(pixels.shape[0] * pixels.shape[1], -1).astype(np.int64)
    return len(np.unique(channels @ [1, 256, 65536, 0][: channels.shape[1]]))
