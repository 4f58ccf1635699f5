"""Which splits a tree has, or can be given."""

from pathlib import Path
from typing import NamedTuple

from datasets.files import read_list
from scripts.data.describing.layout import Match, split_of
from utils.errors import UserError

HELD_OUT = 5  # every fifth image is for validation where there is no such split
LIST_COVERS = 0.8  # share of a list's names that are images, at least
ORDER = ("train", "val", "test")


class Splits(NamedTuple):
    entries: dict[str, dict[str, str]]  # as in dataset.yaml
    remarks: list[str]
    lists: dict[str, list[str]]  # to be written: file name -> names of images


def find_splits(root: Path, matches: list[Match]) -> Splits:
    """By the names of folders and lists; without a validation split, lists that take it from the training images."""
    splits: dict[str, dict[str, str]] = {}
    remarks: list[str] = []
    new: dict[str, list[str]] = {}
    for match in sorted(matches, key=lambda match: -len(match.pairs)):
        paths = [side.folder.relative_to(root) for side in (match.images, match.labels)]
        entry = dict(zip(("images", "labels"), map(str, paths), strict=True))
        name = split_of(*paths) or "all"
        if name in splits:
            remarks.append(f"left out: {entry['images']} ({len(match.pairs)} images): a second folder for {name}")
            continue
        splits[name] = entry
        if match.without:
            remarks.append(
                f"{match.without} images of {entry['images']} have no label in {entry['labels']}: remove them"
            )
    whole = next((match for match in matches if "all" in splits and len(matches) == 1), None)
    if whole:
        lists = _lists(root, whole)
        splits = {name: splits["all"] | {"list": path} for name, path in lists.items()} or {"train": splits["all"]}
    elif "all" in splits:
        splits.setdefault("train", splits["all"])
        del splits["all"]
    if "train" in splits and "val" not in splits:
        first = splits["train"]
        match = next(m for m in matches if m.images.folder == root / first["images"])
        names = read_list(root / first["list"]) if "list" in first else sorted(match.images.files)
        parts = {"val": names[::HELD_OUT], "train": [n for i, n in enumerate(names) if i % HELD_OUT]}
        new = {f"{name}_names.txt": part for name, part in parts.items()}
        splits |= {name: {**first, "list": f"{name}_names.txt"} for name in parts}
        remarks.append(f"no validation split: every {HELD_OUT}th image is taken for it, by {' and '.join(new)}")
    return Splits({name: splits[name] for name in (*ORDER, *splits) if name in splits}, remarks, new)


def _lists(root: Path, match: Match) -> dict[str, str]:
    """Text files named after a split whose lines are the match's images, the one with the most of them."""
    stems = set(match.images.files) | {path.name for path in match.images.files.values()}
    found: dict[str, tuple[int, str]] = {}
    for path in sorted(root.rglob("*.txt")):
        name = split_of(path.stem)
        try:
            lines = [Path(line).name for line in read_list(path)] if name else []
        except UserError:
            continue  # some other text
        known = sum(line in stems for line in lines)
        if lines and known >= LIST_COVERS * len(lines) and known > found.get(name, (0, ""))[0]:
            found[name] = known, str(path.relative_to(root))
    return {name: path for name, (_, path) in found.items()}
