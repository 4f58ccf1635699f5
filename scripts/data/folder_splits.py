"""Find the splits of an unknown tree, and write them as dataset.yaml has them."""

import re
from collections.abc import Collection, Iterator, Sequence
from itertools import combinations
from pathlib import Path, PurePath
from typing import NamedTuple

from datasets.files import IMAGE_SUFFIXES, clean_name, read_list
from datasets.folder_pairs import NameForm, find_folders, list_folder_pairs
from scripts.data.folder_layout import show_label_name
from scripts.data.folder_matcher import Match
from scripts.data.label_hints import find_split_in_path
from utils.errors import UserError
from utils.files import decode_text
from utils.pictures import read_content

LIST_SUFFIXES = (".txt", ".lst", ".csv")
# finds the first image in a line that goes on after it
TWO_COLUMNS = re.compile(rf"({'|'.join(map(re.escape, IMAGE_SUFFIXES))})[\s,;]", re.IGNORECASE)
LISTED = 0.8  # share of the lines of a text file that must name images, so that it is taken for a list
COMPLETE = 0.8  # share of the folders that a pattern finds which must be folders of the split
HELD_OUT = 5  # every fifth image is for validation where there is no such split
Splits = dict[str, dict[str, str]]  # split -> key -> value, as in dataset.yaml


def find_or_make_splits(
    root: Path, matches: list[Match], own_lists: Collection[Path], remarks: list[str]
) -> tuple[Splits, dict[str, list[str]]]:
    """Find splits by the names of folders and lists; without validation, make lists that take it from training images.

    own_lists: lists that an earlier call wrote; they are passed over. remarks: a list, to which remarks on what a user
    should know are added. Returns the splits, and the lists to be written: file name -> names of images.

    Raises:
        UserError: a list cannot be read, or there are no images for training or none for validation.
    """
    finder = SplitFinder(root, own_lists, remarks)
    finder.find_by_folders(matches)
    if "val" not in finder.splits:
        finder.find_by_lists()
    if "val" not in finder.splits:
        finder.take_validation_from_training()
    for lines in finder.new_lists.values():
        _require_readable(lines)
    return finder.splits, finder.new_lists


class SplitFinder:
    """Find the splits of a tree: first by its folders, then by lists of images.

    splits: those found so far. new_lists: the lists to be written, file name -> names of images.
    """

    def __init__(self, root: Path, own_lists: Collection[Path], remarks: list[str]) -> None:
        """Begin without splits. The arguments are those of ``find_or_make_splits``."""
        self.root = root
        self.own_lists = own_lists
        self.remarks = remarks
        self.splits: Splits = {}
        self.new_lists: dict[str, list[str]] = {}
        self.training_images: dict[str, Path] = {}  # the name by which a list can name an image -> the image
        self.form = NameForm()  # how the images and labels are called, once find_by_folders knows it

    def find_by_folders(self, matches: list[Match]) -> None:
        """Make a split of all folders that are called after it.

        A split needs a list where the pattern of its folders finds more folders than those of the split, and where
        images have no label.

        Raises:
            UserError: there are several splits and none is for training.
        """
        self.form = matches[0].form
        groups = _group_by_split(self.root, matches)
        if "train" not in groups:
            groups = {"train": _take_only_split(self.root, groups, self.remarks)}
        for name, group in groups.items():
            images, labels = _join_folders(self.root, group)
            is_pattern = "*" in images
            listed = _list_bases(self.root, name, group, is_pattern, self.remarks)
            self.splits[name] = {"images": images, "labels": labels}
            used = group if is_pattern else group[:1]
            finds_more = is_pattern and len(find_folders(self.root, images, labels)) > len(group)
            if finds_more or any(match.unlabelled for match in used):
                self.splits[name]["list"] = make_list_name(name)
                self.new_lists[make_list_name(name)] = list(listed)
            if name == "train":
                self.training_images = listed

    def find_by_lists(self) -> None:
        """Divide the training images into the splits that lists in the tree name, if there are such lists.

        A list for testing is not used if there is a folder for it.

        Raises:
            UserError: a list cannot be read or is ambiguous, or the lists leave no image for training.
        """
        names = {Path(name).name for name in self.training_images}
        names |= {Path(name).stem for name in names}  # a list may leave out the suffixes
        lists = _find_lists(self.root, names, self.own_lists, self.remarks)
        if "test" in lists and "test" in self.splits:
            self.remarks.append(f"not used: {lists.pop('test')}, a list for test, which has a folder of its own")
        if not lists:
            return
        self.new_lists.pop(make_list_name("train"), None)
        images = {path: self.find_listed_images(path) for path in lists.values()}
        self.note_shared_images(images)
        if "train" not in lists:
            lists["train"] = self.list_the_rest(images)
        folders = self.splits["train"]
        for name, path in lists.items():
            self.splits[name] = folders | {"list": path}

    def find_listed_images(self, path: str) -> set[Path]:
        """Return the images that a list names. path: of the list, below the root.

        Raises:
            UserError: the list cannot be read, is ambiguous or names an image twice.
        """
        entry = self.splits["train"] | {"list": path}
        return {image for image, _ in list_folder_pairs({"train": entry}, self.form, self.root, "train")}

    def note_shared_images(self, images: dict[str, set[Path]]) -> None:
        """Add a remark for each two lists that have images in common. images: list -> the images that it names."""
        for one, other in combinations(images, 2):
            shared = len(images[one] & images[other])
            if shared:
                self.remarks.append(f"{shared} images are in {one} and in {other}")

    def list_the_rest(self, images: dict[str, set[Path]]) -> str:
        """Make a list of the training images that are in none of the lists. Return its name.

        images: list -> the images that it names.

        Raises:
            UserError: there is no such image.
        """
        listed = set().union(*images.values())
        rest = {name: image for name, image in self.training_images.items() if image not in listed}
        if not rest:
            raise UserError(
                f"no images for training: {', '.join(sorted(images))} name all images of {self.root}: write a "
                "list of the training images, train.txt, or take their names out of the other lists"
            )
        self.training_images = rest
        self.remarks.append("no list of training images: they are those in no other list")
        self.new_lists[make_list_name("train")] = list(rest)
        return make_list_name("train")

    def take_validation_from_training(self) -> None:
        """Divide the training images into lists for training and validation.

        Raises:
            UserError: the user's list cannot be read, or there is one image only.
        """
        folders = self.splits["train"]
        list_name = folders.get("list")
        names = list(self.training_images)
        is_users_list = list_name is not None and list_name not in self.new_lists
        if is_users_list:
            names = read_list(self.root / list_name)
        if len(names) < 2:
            raise UserError(
                f"--data {self.root}: {len(names)} image with a label for training and none for validation: at least "
                "two images are needed, one for each"
            )
        self.add_new_list("train", folders, [name for i, name in enumerate(names) if i % HELD_OUT != 0])
        self.add_new_list("val", folders, names[::HELD_OUT])
        self.remarks.append(
            f"no validation split: every {HELD_OUT}th image is taken for it, by lists of names; of a video, whose "
            "neighbouring frames are nearly the same, take whole sequences instead"
        )

    def add_new_list(self, split: str, folders: dict[str, str], names: list[str]) -> None:
        """Add a split whose images are those of a new list. folders: the folders of the images and labels."""
        self.splits[split] = {**folders, "list": make_list_name(split)}
        self.new_lists[make_list_name(split)] = names


def _take_only_split(root: Path, groups: dict[str, list[Match]], remarks: list[str]) -> list[Match]:
    """Return the folders of the only split, and add a remark that they are taken for training.

    Raises:
        UserError: there are several splits, so that it is not clear which is for training.
    """
    if len(groups) > 1:
        places = ", ".join(str(group[0].images.relative_to(root)) for group in groups.values())
        raise UserError(
            f"--data {root}: no images for training: by their names, all folders are for {' or '.join(groups)} "
            f"({places}): rename the folder of the training images to train"
        )
    [(split, group)] = groups.items()
    remarks.append(f"no training split: all folders are called {split}, and are taken for training")
    return group


def make_list_name(split: str) -> str:
    """Return the name of the list of images that is written for a split."""
    return f"{split}_names.txt"


def _group_by_split(root: Path, matches: list[Match]) -> dict[str, list[Match]]:
    """Return the folders of each split, those with most images first. Folders that name no split are in "train"."""
    groups: dict[str, list[Match]] = {}
    for match in sorted(matches, key=lambda match: -len(match.bases)):
        images = match.images.relative_to(root)
        labels = match.labels.relative_to(root)
        split = find_split_in_path(images) or find_split_in_path(labels) or "train"
        groups.setdefault(split, []).append(match)
    return groups


def _list_bases(root: Path, split: str, group: list[Match], takes_all: bool, remarks: list[str]) -> dict[str, Path]:
    """Return the images of a split that have a label: the name by which a list can name an image -> the image.

    Add remarks on folders that are left out, and on images without a label.

    takes_all: the split has all folders of the group, and the names begin with the folder. Otherwise the split has the
    first folder only.
    """
    bases: dict[str, Path] = {}
    for i, match in enumerate(group):
        place = match.images.relative_to(root)
        if i and not takes_all:
            remarks.append(f"left out: {place} ({len(match.bases)} images): a second folder for {split}")
            continue
        folder = place if takes_all else Path()
        for base, image_name in zip(match.bases, match.image_names, strict=True):
            line = _write_line(str(folder / base), str(folder / image_name))
            bases[line] = match.images / image_name
        if match.unlabelled:
            remarks.append(
                f"{len(match.unlabelled)} images of {place} have no label called {show_label_name(match.form)}"
            )
    return bases


def _write_line(base: str, image: str) -> str:
    """Return the line of a list that names an image.

    The line is the base. If blanks at the ends of the base would be lost when the list is read, the line is the file's
    name ``image``, after "./" if need be. If no line can be read, return the base, which ``_require_readable`` refuses.
    """
    for line in (base, image, f"./{image}"):
        if _can_be_read(line):
            return line
    return base


def _can_be_read(line: str) -> bool:
    """Return whether a name that is written into a list is the same when the list is read."""
    return [clean_name(part) for part in line.splitlines()] == [line]


def _require_readable(lines: Sequence[str]) -> None:
    """Check the lines of a list that is to be written.

    Raises:
        UserError: a name of an image cannot be in a list.
    """
    for line in lines:
        if not _can_be_read(line):
            raise UserError(f"the image {line!r} cannot be named in a list: rename it, without line breaks and \\")


def _join_folders(root: Path, group: list[Match]) -> tuple[str, str]:
    """Return two patterns that find all folders of images and all folders of labels of a split.

    A pattern has a ``*`` for what differs between the folders; that of the labels has none if they lie in one folder.
    A pattern may find a few more folders that have no label; the caller then writes a list of images, which leaves them
    out. If there are no such patterns, return the first folder of images and the first folder of labels.
    """
    pairs = {(match.images, match.labels) for match in group}
    image_folders = [match.images.relative_to(root) for match in group]
    label_folders = [match.labels.relative_to(root) for match in group]
    for whole_names in (True, False):
        images = _write_pattern(image_folders, whole_names)
        labels = _write_pattern(label_folders, whole_names)
        if "*" not in images or labels.count("*") not in (0, images.count("*")):
            continue
        if "*" not in labels and not _have_own_labels(group):
            continue
        found = set(find_folders(root, images, labels))
        if pairs <= found and len(found) <= len(group) / COMPLETE:
            return images, labels
    return str(image_folders[0]), str(label_folders[0])


def _have_own_labels(group: list[Match]) -> bool:
    """Return whether no two images of a split have the same label, as two views of one scene have."""
    labels = [match.labels / name for match in group for name in match.label_names]
    return len(labels) == len(set(labels))


def _write_pattern(folders: list[Path], whole_names: bool) -> str:
    """Return the path that the folders have in common, with a ``*`` for what differs; "" if they are not equally deep.

    whole_names: the ``*`` stands for the whole name of a folder. Otherwise the letters stay that all names begin with,
    and those that all names end with.
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
            start = _find_common_start(names)
            end = _find_common_end([name.removeprefix(start) for name in names])
            parts.append(f"{start}*{end}")
    return "/".join(parts)


def _find_common_start(names: Sequence[str]) -> str:
    """Return the letters that all names begin with."""
    start = names[0]
    while not all(name.startswith(start) for name in names):
        start = start[:-1]
    return start


def _find_common_end(names: Sequence[str]) -> str:
    """Return the letters that all names end with."""
    end = names[0]
    while not all(name.endswith(end) for name in names):
        end = end[1:]
    return end


class _FoundList(NamedTuple):
    """Describe a text file that names images.

    Of two lists of one split, the one that is sorted after the other is used: so the order of the fields matters.
    """

    is_called_after_split: bool  # the name is the split's and nothing else, as that of train.txt
    images: int  # how many it names
    split: str
    path: str


def _find_lists(root: Path, bases: set[str], own_lists: Collection[Path], remarks: list[str]) -> dict[str, str]:
    """Find text files that are called after a split and name images. Return split -> path in the tree.

    Of several for one split, the longest file called train.txt is used; without such a file, the longest. Of equally
    long ones, the last is used.

    bases: the names of the training images, with and without suffix. own_lists: lists that an earlier call wrote; they
    are passed over. remarks: a list, to which remarks on files that are not used are added.

    Raises:
        UserError: a text file that is called after a split cannot be read.
    """
    found: list[_FoundList] = []
    for path, split in _find_files_called_after_splits(root, own_lists):
        place = path.relative_to(root)
        text, is_damaged = _read_text(path)
        count = _count_listed_images(text, is_damaged, bases)
        if count:
            read_list(path)  # this only refuses a damaged file
        if count and _is_called_after_two_splits(path):
            remarks.append(f"not used: {place}, which is called after two splits")
        elif count:
            found.append(_FoundList(path.stem.lower() == split, count, split, str(place)))
        elif not is_damaged and not clean_name(text):
            remarks.append(f"not used: {place}, which is empty")
        elif _mentions_images(text, bases):
            reason = f"a list has one name a line and nothing else, and {100 * LISTED:.0f} % of them are images here"
            remarks.append(f"not used: {place} names images, but {reason}")
    lists = {entry.split: entry.path for entry in sorted(found)}  # the last one of a split stays
    for entry in found:
        if entry.path != lists[entry.split]:
            remarks.append(f"not used: {entry.path} ({entry.images} images), a second list for {entry.split}")
    return lists


def _find_files_called_after_splits(root: Path, own_lists: Collection[Path]) -> Iterator[tuple[Path, str]]:
    """Yield each text file that is called after a split, and that split. The files may be lists of images.

    Hidden files and folders are passed over.

    own_lists: lists that an earlier call wrote; they are passed over.
    """
    for path in sorted(root.rglob("*")):
        split = find_split_in_path(Path(path.stem))
        is_hidden = any(part.startswith(".") for part in path.relative_to(root).parts)
        is_text = path.suffix.lower() in LIST_SUFFIXES and path.is_file()
        if split and is_text and not is_hidden and path not in own_lists:
            yield path, split


def _is_called_after_two_splits(path: Path) -> bool:
    """Return whether the name of a file has the words of two splits, as trainval.txt has."""
    return len(set(re.findall("train|val|dev|test", path.stem.lower()))) > 1


def _count_listed_images(text: str, is_damaged: bool, bases: set[str]) -> int:
    """Return how many images the text of a list names, or 0 if it is no list.

    is_damaged: the text is what could be made out of a damaged file. It is a list then if it names any image.
    """
    lines = [clean_name(line) for line in text.splitlines() if clean_name(line)]
    known = sum(_names_image(line, bases) for line in lines)
    if not known or (known < LISTED * len(lines) and not is_damaged):
        return 0
    return known


def _mentions_images(text: str, bases: set[str]) -> bool:
    """Return whether a word of a text is the name of an image."""
    return any(_names_image(clean_name(word), bases) for word in re.split(r"[\s,;\"]+", text))


def _read_text(path: Path) -> tuple[str, bool]:
    """Return the text of a file, and whether it is damaged. Of a damaged file return what can be made out."""
    data = read_content(path)
    try:
        return decode_text(data), False
    except ValueError:
        return data.replace(b"\0", b"").decode(errors="replace"), True


def _names_image(text: str, bases: set[str]) -> bool:
    """Return whether a line or word names one image, and nothing else. bases: their names, with and without suffix."""
    name = PurePath(text)
    return not TWO_COLUMNS.search(text) and (name.name in bases or name.stem in bases)
