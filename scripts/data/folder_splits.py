"""Find the splits of an unknown tree, and write them as dataset.yaml has them."""

import re
from collections.abc import Collection, Sequence
from pathlib import Path, PurePath

from datasets.files import IMAGE_SUFFIXES, clean_name, read_list
from datasets.folder_pairs import find_folders
from scripts.data.folder_layout import Match, get_split
from utils.files import decode_text
from utils.pictures import read_content

LIST_SUFFIXES = (".txt", ".lst", ".csv")
TWO_COLUMNS = re.compile(rf"({'|'.join(map(re.escape, IMAGE_SUFFIXES))})[\s,;]", re.IGNORECASE)  # of a list's line
LISTED = 0.8  # share of a list's names that must be images
COMPLETE = 0.8  # share of the folders of one pattern that must be used
HELD_OUT = 5  # every fifth image is for validation where there is no such split
Splits = dict[str, dict[str, str]]  # as in dataset.yaml


def find_splits(
    root: Path, matches: list[Match], own_lists: Collection[Path], remarks: list[str]
) -> tuple[Splits, dict[str, list[str]]]:
    """Find splits by the names of folders and lists; without validation, make lists that take it from training images.

    own_lists: lists that an earlier call wrote; they are passed over. remarks: those on what a person should know are
    added. Returns the splits, and the lists to be written: file name -> names of images.

    Raises:
        UserError: a list cannot be read.
    """
    splits: Splits = {}
    bases: dict[str, list[str]] = {}
    written: dict[str, list[str]] = {}
    for name, group in _group_by_split(root, matches).items():
        images, labels = _join_folders(root, group)
        splits[name] = {"images": images, "labels": labels}
        bases[name] = _list_bases(root, name, group, "*" in images, remarks)
        if "*" in images and len(find_folders(root, images, labels)) > len(group):
            splits[name]["list"] = make_list_name(name)
            written[make_list_name(name)] = bases[name]
    if list(splits) == ["train"]:
        names = {Path(base).name for base in bases["train"]}
        lists = _find_lists(root, names | {Path(name).stem for name in names}, own_lists, remarks)
        if lists and "train" not in lists:
            others = [root / path for path in lists.values()]
            lists["train"] = make_list_name("train")
            written[lists["train"]] = _leave_out(bases["train"], others)
            remarks.append("no list of training images: they are those in no other list")
        splits = {name: splits["train"] | {"list": path} for name, path in lists.items()} or splits
    if "train" in splits and "val" not in splits:
        _take_validation(root, splits, bases["train"], written)
        remarks.append(
            f"no validation split: every {HELD_OUT}th image is taken for it, by lists of names; of a video, whose "
            "neighbouring frames are nearly the same, take whole sequences instead"
        )
    return splits, written


def _take_validation(root: Path, splits: Splits, bases: list[str], written: dict[str, list[str]]) -> None:
    """Split the training images into lists for training and validation. Changes ``splits`` and ``written``.

    bases: the names of all training images. They count where no list of the user's names the training images.

    Raises:
        UserError: the user's list cannot be read.
    """
    train = splits["train"]
    listed = train.get("list")
    names = bases
    if listed is not None and listed not in written:
        names = read_list(root / listed)
    parts = {
        "train": [name for i, name in enumerate(names) if i % HELD_OUT],
        "val": names[::HELD_OUT],
    }
    for split, part in parts.items():
        splits[split] = {**train, "list": make_list_name(split)}
        written[make_list_name(split)] = part


def make_list_name(split: str) -> str:
    """Return the name of the list of images that is written for a split."""
    return f"{split}_names.txt"


def _group_by_split(root: Path, matches: list[Match]) -> dict[str, list[Match]]:
    """Return the folders of each split, those of most images first. "train" has all whose names say no split."""
    groups: dict[str, list[Match]] = {}
    for match in sorted(matches, key=lambda match: -len(match.bases)):
        images = match.images.relative_to(root)
        labels = match.labels.relative_to(root)
        split = get_split(images) or get_split(labels) or "train"
        groups.setdefault(split, []).append(match)
    return groups


def _list_bases(root: Path, split: str, group: list[Match], takes_all: bool, remarks: list[str]) -> list[str]:
    """Return the names of the images of a split, and add remarks on folders and images that have none.

    takes_all: the split has all folders of the group, and the names begin with the folder; otherwise the first only.
    """
    bases: list[str] = []
    for i, match in enumerate(group):
        place = match.images.relative_to(root)
        if i and not takes_all:
            remarks.append(f"left out: {place} ({len(match.bases)} images): a second folder for {split}")
            continue
        bases += [str(place / base) if takes_all else base for base in match.bases]
        if match.unlabelled:
            remarks.append(f"{len(match.unlabelled)} images of {place} have no label called NAME{match.label_suffix}")
    return bases


def _join_folders(root: Path, group: list[Match]) -> tuple[str, str]:
    """Write the folders of a split with a ``*`` for what differs, where that means all of them and few more.

    Return the first folder where there is no such pattern. A pattern may match some more folders that have no label;
    the caller then writes a list of images, which leaves them out.
    """
    pairs = [(match.images, match.labels) for match in group]
    sides = [[folder.relative_to(root) for folder in side] for side in zip(*pairs, strict=True)]
    for whole_names in (True, False):
        images, labels = (_write_pattern(side, whole_names) for side in sides)
        if images.count("*") != labels.count("*") or "*" not in images:
            continue
        found = set(find_folders(root, images, labels))
        if set(pairs) <= found and len(found) <= len(pairs) / COMPLETE:
            return images, labels
    return tuple(str(side[0]) for side in sides)


def _write_pattern(folders: list[Path], whole_names: bool) -> str:
    """Write what the folders have in common, with a ``*`` for each name that differs; "" if they are not equally deep.

    whole_names: the ``*`` is the whole name; otherwise what the names begin and end with alike stays.
    """
    if len({len(folder.parts) for folder in folders}) > 1:
        return ""
    parts = []
    for names in zip(*(folder.parts for folder in folders), strict=True):
        if len(set(names)) == 1:
            parts.append(names[0])
        elif whole_names:
            parts.append("*")
        else:
            start = _common_start(names)
            end = _common_start([name[len(start) :][::-1] for name in names])[::-1]
            parts.append(f"{start}*{end}")
    return "/".join(parts)


def _common_start(names: Sequence[str]) -> str:
    """Return the letters that all names begin with."""
    first, last = min(names), max(names)
    differs = (i for i, (one, other) in enumerate(zip(first, last, strict=False)) if one != other)
    return first[: next(differs, len(first))]


def _leave_out(bases: list[str], lists: Sequence[Path]) -> list[str]:
    """Return the names of images that are in none of the lists."""
    listed = {name for path in lists for line in read_list(path) for name in (Path(line).name, Path(line).stem)}
    return [base for base in bases if not {Path(base).name, Path(base).stem} & listed]


def _find_lists(root: Path, bases: set[str], own_lists: Collection[Path], remarks: list[str]) -> dict[str, str]:
    """Find text files that are called after a split and name images, the longest for each.

    own_lists: lists that an earlier call wrote; they are passed over. remarks: those on files that name images in
    another form are added.

    Raises:
        UserError: such a list cannot be read.
    """
    found: list[tuple[int, str, str]] = []
    for path in filter(Path.is_file, sorted(root.rglob("*"))):
        split = get_split(Path(path.stem))
        if not split or path.suffix.lower() not in LIST_SUFFIXES or path in own_lists:
            continue
        data = read_content(path)
        is_damaged = False
        try:
            text = decode_text(data)
        except ValueError:  # what can be made out of it shows whether it is a list
            text = data.replace(b"\0", b"").decode(errors="replace")
            is_damaged = True
        lines = [clean_name(line) for line in text.splitlines() if clean_name(line)]
        known = sum(_names_image(line, bases) for line in lines)
        if known and (is_damaged or known >= LISTED * len(lines)):
            read_list(path)
            found.append((known, split, str(path.relative_to(root))))
        elif any(_names_image(word, bases) for line in lines for word in re.split(r"[\s,;\"]+", line)):
            place = path.relative_to(root)
            remarks.append(f"not used: {place} names images, but a list has one name a line and nothing else")
    return {split: path for _, split, path in sorted(found)}


def _names_image(text: str, bases: set[str]) -> bool:
    """Return whether a line or word is the name of an image. bases: names with and without suffix."""
    name = PurePath(text)
    return not TWO_COLUMNS.search(text) and (name.name in bases or name.stem in bases)
