"""Find the images and labels of a data set that a ``dataset.yaml`` describes."""

import glob
import re
from collections.abc import Iterable
from pathlib import Path, PurePath
from typing import NamedTuple

from datasets.files import PathPair, list_images, pair_labels, read_list
from utils.errors import UserError

IMAGE_SUFFIX_FIELD = "{suffix}"  # begins a label_suffix that contains the image's own suffix: photo.jpg.png


class NameForm(NamedTuple):
    """How images and labels are called: a prefix, the base that both have in common, and a suffix.

    The fields are keys of dataset.yaml. An ``image_suffix`` of "" is the suffix of any image file. A ``label_suffix``
    may contain IMAGE_SUFFIX_FIELD.
    """

    image_prefix: str = ""
    image_suffix: str = ""
    label_prefix: str = ""
    label_suffix: str = ".png"

    def get_base(self, image: str) -> str:
        """Return what the name of an image has in common with that of its label, without suffixes."""
        base = image.removeprefix(self.image_prefix)
        return base.removesuffix(self.image_suffix) if self.image_suffix else PurePath(base).stem

    def name_label(self, image: str) -> str:
        """Return the name of the label of an image."""
        suffix = self.label_suffix.replace(IMAGE_SUFFIX_FIELD, PurePath(image).suffix)
        return f"{self.label_prefix}{self.get_base(image)}{suffix}"

    def select_images(self, names: Iterable[str], are_labels_beside: bool) -> list[str]:
        """Return the images of this form among the pictures in a folder.

        are_labels_beside: the labels are in the same folder.
        """
        images = [name for name in names if name.startswith(self.image_prefix) and name.endswith(self.image_suffix)]
        if not are_labels_beside:
            return images
        if IMAGE_SUFFIX_FIELD in self.label_suffix:
            labels = {self.name_label(name) for name in images}
            return [name for name in images if name not in labels]
        return [name for name in images if not self.may_be_label(name)]

    def may_be_label(self, name: str) -> bool:
        """Return whether a name has the prefix and the suffix of labels."""
        return name.startswith(self.label_prefix) and name.endswith(self.label_suffix)


class FolderPair(NamedTuple):
    """A folder of images and the folder of their labels, which may be the same."""

    images: Path
    labels: Path


def list_folder_pairs(splits: dict[str, dict[str, str]], form: NameForm, root: Path, split: str) -> list[PathPair]:
    """List the images and labels of a split, sorted. A label is listed whether or not its file exists.

    splits: the value of this key in dataset.yaml. split: a key of it.

    Raises:
        UserError: no folder matches, a folder or list is missing or cannot be read, a list is ambiguous or names an
            image twice, or two images have the same label.
    """
    entry = splits[split]
    folders = find_folders(root, entry["images"], entry["labels"])
    bases: dict[Path, str] = {}  # what the name of each image has in common with that of its label
    labels: dict[Path, Path] = {}
    for folder in folders:
        pictures = [path.name for path in list_images(folder.images)]
        for name in form.select_images(pictures, folder.images == folder.labels):
            image = folder.images / name
            bases[image] = form.get_base(name)
            labels[image] = folder.labels / form.name_label(name)
    chosen = sorted(labels)
    if "list" in entry:
        names = {image: {image.name, base, labels[image].name} for image, base in bases.items()}
        label_folders = {folder.images: folder.labels for folder in folders}
        chosen = _choose_listed(root / entry["list"], names, [folder.images for folder in folders])
        for image in chosen:
            # a listed image that does not exist gets a label as well, so that the pair is reported as incomplete
            missing_label = f"{image.name}{form.label_suffix.removeprefix(IMAGE_SUFFIX_FIELD)}"
            labels.setdefault(image, label_folders.get(image.parent, image.parent) / missing_label)
    return pair_labels(chosen, lambda image: [labels[image]], "set image_suffix in dataset.yaml to select one of them")


def find_folders(root: Path, images: str, labels: str) -> list[FolderPair]:
    """Find the folders of images and of labels that two patterns name below the root.

    Each ``*`` in ``labels`` stands for the same name as the ``*`` at its place in ``images``. Without a ``*`` in
    ``images`` the one pair is returned, whether or not the folders exist.

    Raises:
        UserError: ``images`` has a ``*``, and no folder matches it.
    """
    if "*" not in images:
        return [FolderPair(root / images, root / labels)]
    parts = str(PurePath(images)).split("*")
    glob_pattern = "*".join(map(glob.escape, parts))
    pattern = re.compile("([^/]*)".join(map(re.escape, parts)))
    found = []
    for place in sorted(map(PurePath, glob.glob(glob_pattern, root_dir=root))):  # glob leaves out hidden folders
        if (root / place).is_dir():
            names = pattern.fullmatch(place.as_posix()).groups()
            found.append(FolderPair(root / place, root / _fill_in(labels, names)))
    if not found:
        raise UserError(f"{root} holds no folder {images}")
    return found


def _fill_in(pattern: str, names: tuple[str, ...]) -> str:
    """Replace the first ``*`` of a pattern by the first name, the second ``*`` by the second name, and so on.

    A pattern without ``*`` is returned as it is.
    """
    filled, *parts = pattern.split("*")
    for name, part in zip(names, parts, strict=False):
        filled += name + part
    return filled


def _choose_listed(path: Path, names: dict[Path, set[str]], folders: list[Path]) -> list[Path]:
    """Return the images that a list names, sorted. The list may leave out suffixes and folders, or name the labels.

    For a name that fits no image, the result has the path where the image should be.

    names: the images that exist, each with the names that a list may give it. folders: the folders of images.

    Raises:
        UserError: the list cannot be read, a line fits several images, or two lines name the same image.
    """
    images: dict[tuple[Path, str], list[Path]] = {}  # the images of a folder that a name may mean
    for image, names_of_image in names.items():
        for name in names_of_image:
            images.setdefault((image.parent, name), []).append(image)
    folder_names = _FolderNames(folders)
    lines = read_list(path)
    chosen = set()
    for line in lines:
        candidates = _select_candidates(images, folder_names, line)
        if len(candidates) > 1:
            first, second = sorted(candidates)[:2]
            raise UserError(f"{path}: {line} may be {first} or {second}: name its folder or suffix, too")
        chosen.add(candidates[0])
    if len(chosen) < len(lines):
        raise UserError(f"{path} has {len(lines)} lines for {len(chosen)} images of {folders[0]}")
    return sorted(chosen)


class _FolderNames:
    """Find the folders of images that the folders in a line of a list may mean.

    Only names that tell the folders apart count. Names above the first such name do not count, so the place of the data
    set does not matter.
    """

    def __init__(self, folders: list[Path]) -> None:
        """Find the names that tell the folders apart. All folders are equally deep."""
        columns = [set(names) for names in zip(*(folder.parts for folder in folders), strict=True)]
        positions = [i for i, names in enumerate(columns) if len(names) > 1]
        start = positions[0] if positions else len(columns)
        self.shared = Path(*folders[0].parts[:start])
        self.names_that_differ = set().union(*(columns[i] for i in positions))
        self.names: dict[Path, list[str]] = {}
        self.folders_with: dict[str, list[Path]] = {}  # name -> the folders that have it
        for folder in folders:
            self.names[folder] = self.select_names(folder.parts[start:])
            for name in set(self.names[folder]):
                self.folders_with.setdefault(name, []).append(folder)

    def select_names(self, parts: Iterable[str]) -> list[str]:
        """Return those of the parts of a path that tell the folders apart, in their order."""
        return [part for part in parts if part in self.names_that_differ]

    def find_folders(self, line_folders: list[str]) -> list[Path]:
        """Return the folders whose paths have the names in a line, in the same order.

        If no folder has them, the names at the beginning of the line may be those of folders above the data set.
        """
        wanted = self.select_names(line_folders)
        found = self.find_folders_with(wanted)
        while not found and wanted[0] in self.shared.parts:
            wanted = wanted[1:]
            found = self.find_folders_with(wanted)
        return found

    def find_folders_with(self, wanted: list[str]) -> list[Path]:
        """Return the folders whose paths have the wanted names, in this order."""
        folders = self.folders_with[wanted[-1]] if wanted else self.names
        return [folder for folder in folders if _has_in_order(self.names[folder], wanted)]


def _has_in_order(names: list[str], wanted: list[str]) -> bool:
    """Return whether all wanted names are among the names, in the same order."""
    rest = iter(names)
    return all(name in rest for name in wanted)


def _select_candidates(images: dict[tuple[Path, str], list[Path]], folder_names: _FolderNames, line: str) -> list[Path]:
    """Select the images that a line of a list may mean. If there is none, return where the image should be.

    A line may name a folder that tells the folders of images apart. Then images of the other folders do not count.

    images: a folder and a name -> the images that it may mean. folder_names: those of all folders of images.
    """
    *line_folders, name = Path(line).parts
    folders = folder_names.find_folders(line_folders)
    if not folders:
        return [folder_names.shared / line]
    found = [image for folder in folders for image in images.get((folder, name), [])]
    return found or [folders[0] / name]
