"""Which splits the folders and lists of an unknown tree make, as dataset.yaml has them."""

from pathlib import Path

from datasets.files import read_list
from datasets.folder_pairs import folders_of
from scripts.data.folder_layout import Match, split_of

LISTED = 0.8  # share of a list's names that must be images
HELD_OUT = 5  # every fifth image is for validation where there is no such split
Splits = dict[str, dict[str, str]]  # as in dataset.yaml


def find_splits(root: Path, matches: list[Match], remarks: list[str]) -> tuple[Splits, dict[str, list[str]]]:
    """By the names of folders and lists; without a validation split, lists that take it from the training images.

    Returns the splits, and the lists to be written: file name -> names of images.
    """
    splits: Splits = {}
    bases: dict[str, list[str]] = {}
    groups: dict[str, list[Match]] = {}
    for match in sorted(matches, key=lambda match: -len(match.bases)):
        images, labels = match.images.relative_to(root), match.labels.relative_to(root)
        groups.setdefault(split_of(images) or split_of(labels) or "train", []).append(match)
    for name, group in groups.items():
        images, labels = _together(root, group)
        several = "*" in images
        splits[name], bases[name] = {"images": images, "labels": labels}, []
        for i, match in enumerate(group):
            place = match.images.relative_to(root)
            if i and not several:
                remarks.append(f"left out: {place} ({len(match.bases)} images): a second folder for {name}")
                continue
            bases[name] += [str(place / base) if several else base for base in match.bases]
            if match.unlabelled:
                remarks.append(f"{match.unlabelled} images of {place} have no label called NAME{match.label_suffix}")
    if list(splits) == ["train"]:
        lists = _lists(root, {Path(base).name for base in bases["train"]})
        splits = {name: splits["train"] | {"list": path} for name, path in lists.items()} or splits
    if "val" in splits or "train" not in splits:
        return splits, {}
    listed = splits["train"].get("list")
    names = read_list(root / listed) if listed else bases["train"]
    parts = {"train": [n for i, n in enumerate(names) if i % HELD_OUT], "val": names[::HELD_OUT]}
    taken = f"no validation split: every {HELD_OUT}th image is taken for it, by lists of names"
    remarks.append(f"{taken}; of a video, whose neighbouring frames are nearly the same, take whole sequences instead")
    more = {name: {**splits["train"], "list": f"{name}_names.txt"} for name in parts}
    return splits | more, {f"{name}_names.txt": part for name, part in parts.items()}


def _together(root: Path, group: list[Match]) -> tuple[str, str]:
    """The folders of a split, with a ``*`` for what differs where that means just all of them; else the first ones."""
    pairs = [(match.images, match.labels) for match in group]
    images, labels = (_pattern([folder.relative_to(root) for folder in side]) for side in zip(*pairs, strict=True))
    if images.count("*") == labels.count("*") > 0 and set(folders_of(root, images, labels)) == set(pairs):
        return images, labels
    return tuple(str(folder.relative_to(root)) for folder in pairs[0])


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
