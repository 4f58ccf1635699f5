"""Which folders of an unknown tree hold images, which the labels of those, and which splits they make."""

import os
import re
from collections import Counter
from difflib import SequenceMatcher
from itertools import product
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from datasets.files import IMAGE_SUFFIXES, read_list
from datasets.folder_pairs import folders_of
from utils.errors import UserError

SPLIT = re.compile(r"(?<![a-z])(train|val|dev|test)", re.IGNORECASE)
LABEL_WORD = re.compile(r"mask|label|annot|(?<![a-z])(gt|seg|ann|target)|ids|class", re.IGNORECASE)
KIND = 0.2  # share of a folder's files that an ending must have to be a kind of them
COVERED = 0.5  # share of a folder's images that must have a label
LISTED = 0.8  # share of a list's names that must be images
HELD_OUT = 5  # every fifth image is for validation where there is no such split
Splits = dict[str, dict[str, str]]  # as in dataset.yaml


class Match(NamedTuple):
    """Images called base + one ending in one folder, labels called base + another in a folder; "" is any suffix."""

    images: Path
    image_suffix: str
    labels: Path
    label_suffix: str
    bases: tuple[str, ...]
    unlabelled: int  # images of that ending without such a label
    merit: tuple[object, ...]


def find_matches(root: Path) -> list[Match]:
    """The best labels of each folder of images, all with names of one form.

    Raises:
        UserError: no pictures, or none that go by the same names as labels.
    """
    folders = dict(_pictures(root))
    found = [match for here, there in product(folders, repeat=2) for match in _pairings(root, folders, here, there)]
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


def _pictures(root: Path):
    """Names of the pictures of each folder; links are followed, once."""
    seen: set[Path] = set()
    for folder, below, names in os.walk(root, followlinks=True):
        seen.add(Path(folder).resolve())
        below[:] = [name for name in sorted(below) if name[0] != "." and Path(folder, name).resolve() not in seen]
        pictures = [name for name in sorted(names) if Path(name).suffix.lower() in IMAGE_SUFFIXES and name[0] != "."]
        if pictures:
            yield Path(folder), pictures


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
            shared = len(set(here.parts) & set(there.parts))
            merit = (image_split == label_split, shared, len(bases), hint, -colors[1], alike)
            yield Match(here, image_suffix, there, label_suffix, bases, len(images) - len(bases), merit)


def _endings(names: list[str]) -> list[str]:
    """What several of the names end with, from a mark on."""
    counts = Counter(name[mark.start() :] for name in names for mark in re.finditer(r"(?<=.)[_\-.]", name))
    return [ending for ending, count in counts.items() if count >= KIND * len(names)]


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


def find_splits(root: Path, matches: list[Match], remarks: list[str]) -> tuple[Splits, dict[str, list[str]]]:
    """By the names of folders and lists; without a validation split, lists that take it from the training images.

    Returns the splits, and the lists to be written: file name -> names of images.
    """
    splits: Splits = {}
    bases: dict[str, list[str]] = {}
    groups: dict[str, list[Match]] = {}
    for match in sorted(matches, key=lambda match: -len(match.bases)):
        groups.setdefault(_split_of_match(root, match), []).append(match)
    for name, group in groups.items():
        images, labels, several = _together(root, group)
        splits[name] = {"images": images, "labels": labels}
        for match in group if several else group[:1]:
            place = match.images.relative_to(root)
            bases.setdefault(name, []).extend(str(place / base) if several else base for base in match.bases)
            if match.unlabelled:
                remarks.append(f"{match.unlabelled} images of {place} have no label called NAME{match.label_suffix}")
        for match in () if several else group[1:]:
            place = match.images.relative_to(root)
            remarks.append(f"left out: {place} ({len(match.bases)} images): a second folder for {name}")
    if list(splits) == ["train"]:
        lists = _lists(root, {Path(base).name for base in bases["train"]})
        splits = {name: splits["train"] | {"list": path} for name, path in lists.items()} or splits
    if "val" in splits or "train" not in splits:
        return splits, {}
    listed = splits["train"].get("list")
    names = read_list(root / listed) if listed else bases["train"]
    parts = {"train": [n for i, n in enumerate(names) if i % HELD_OUT], "val": names[::HELD_OUT]}
    remarks.append(f"no validation split: every {HELD_OUT}th image is taken for it, by lists of names")
    more = {name: {**splits["train"], "list": f"{name}_names.txt"} for name in parts}
    return splits | more, {f"{name}_names.txt": part for name, part in parts.items()}


def _split_of_match(root: Path, match: Match) -> str:
    return split_of(match.images.relative_to(root)) or split_of(match.labels.relative_to(root)) or "train"


def _together(root: Path, group: list[Match]) -> tuple[str, str, bool]:
    """The folders of a split as dataset.yaml has them, with a ``*`` for what differs where that says all of them; those
    of the first otherwise."""
    pairs = {(m.images.relative_to(root), m.labels.relative_to(root)) for m in group}
    first = group[0].images.relative_to(root), group[0].labels.relative_to(root)
    if len(group) > 1:
        images, labels = (_pattern([pair[side] for pair in pairs]) for side in (0, 1))
        if images.count("*") == labels.count("*") > 0:
            meant = {tuple(p.relative_to(root) for p in pair) for pair in folders_of(root, images, labels)}
            if meant == pairs:
                return images, labels, True
    return str(first[0]), str(first[1]), False


def _pattern(folders: list[Path]) -> str:
    """What the folders have in common, a ``*`` for each part that differs; "" where they are not equally deep."""
    if len({len(folder.parts) for folder in folders}) > 1:
        return ""
    return "/".join(part[0] if len(set(part)) == 1 else "*" for part in zip(*(f.parts for f in folders), strict=True))


def _lists(root: Path, bases: set[str]) -> dict[str, str]:
    """Text files that are called after a split and name images, the longest for each."""
    found: list[tuple[int, str, str]] = []
    for path in filter(Path.is_file, sorted(root.rglob("*.txt"))):
        lines = path.read_text(encoding="utf-8-sig", errors="replace").splitlines()
        names = [Path(line.strip()) for line in lines if line.strip()]
        known = sum(name.name in bases or name.stem in bases for name in names)
        if known and known >= LISTED * len(names) and split_of(Path(path.stem)):
            found.append((known, split_of(Path(path.stem)), str(path.relative_to(root))))
    return {split: path for _, split, path in sorted(found)}
