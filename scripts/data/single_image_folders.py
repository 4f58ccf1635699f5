"""Match image and label in a tree where each folder holds one image and its label, as labelme's converter writes it."""

import re
from collections import Counter
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import NamedTuple

from datasets.folder_pairs import NameForm
from scripts.data.folder_matcher import Match, PicturesByFolder
from scripts.data.label_hints import (
    IMAGE_WORD,
    LABEL_WORD,
    NO_IMAGE_WORD,
    OTHER_LABEL_WORD,
    count_colors,
    show_same_regions,
)
from utils.errors import UserError
from utils.pictures import read_content

ALIKE = 0.8  # share of the folders that must have a picture of the same name
FEW = 8  # pictures at most in a folder that holds one image
LABEL_NAMES = "label_names.txt"  # that labelme's converter writes beside each label: the names of its ids


def match_single_images(pictures: PicturesByFolder) -> list[Match]:
    """Match image and label where nearly every folder holds one of each, under the same two names.

    Return an empty list where the tree is not of this kind.

    Raises:
        UserError: each folder has several pictures that may be its image, or several that may be its label, or the
            ids of the labels mean something else in each folder.
    """
    names = _find_common_names(pictures)
    candidates = _divide_by_label_word(names)
    if not (candidates.labels and candidates.images):
        return []
    folders = [folder for folder, present in pictures.items() if set(names) <= set(present) and len(present) <= FEW]
    if len(folders) < ALIKE * len(pictures):
        return []
    if any(_hold_several_pairs(pictures[folder]) for folder in folders):
        return []
    image = _choose_image(folders[0], candidates.images)
    label = _choose_label(folders[0], candidates.labels)
    if label.startswith(Path(image).stem):
        return []  # photo.jpg and photo_mask.png, of which there may be several in a folder
    _require_same_label_names(folders)
    return [_make_match(folder, image, label) for folder in sorted(folders)]


def _make_match(folder: Path, image: str, label: str) -> Match:
    """Return the match of the one image and the one label in a folder."""
    return Match(
        images=folder,
        labels=folder,
        form=NameForm(image_suffix=image, label_suffix=label),
        bases=(image,),
        image_names=(image,),
        label_names=(label,),
        unlabelled=(),
        has_label_word=True,
    )


def _find_common_names(pictures: PicturesByFolder) -> list[str]:
    """Return the names of pictures that nearly every folder has, sorted."""
    counts = Counter(name for names in pictures.values() for name in names)
    return sorted(name for name, count in counts.items() if count > 1 and count >= ALIKE * len(pictures))


class _Candidates(NamedTuple):
    """Hold the names of pictures that may be images, and of those that may be labels."""

    images: list[str]
    labels: list[str]


def _divide_by_label_word(names: Sequence[str]) -> _Candidates:
    """Divide names of pictures into those without and with a word such as mask."""
    candidates = _Candidates(images=[], labels=[])
    for name in names:
        if LABEL_WORD.search(name):
            candidates.labels.append(name)
        else:
            candidates.images.append(name)
    return candidates


def _hold_several_pairs(names: Sequence[str]) -> bool:
    """Return whether the names in a folder are those of several images, each with a label of its own.

    Such names are 0.jpg, 1.jpg, 0_mask.png and 1_mask.png, or left.jpg, right.jpg, mask_left.png and mask_right.png.
    """
    images, labels = _divide_by_label_word(names)
    if len(images) < 2:
        return False
    without_digits = {re.sub(r"\d+", "", name) for name in images}
    if len(without_digits) < len(images):
        return True
    return any(Path(image).stem in Path(label).stem for image, label in product(images, labels))


def _choose_image(folder: Path, names: list[str]) -> str:
    """Return the one of several pictures in a folder that is the image, not its depth or another drawing.

    Raises:
        UserError: neither the names nor the numbers of colours tell which.
    """
    candidates = [name for name in names if not NO_IMAGE_WORD.search(name)] or names
    candidates = [name for name in candidates if IMAGE_WORD.search(name)] or candidates
    most_colors = max(count_colors(folder / name) for name in candidates)
    candidates = [name for name in candidates if 2 * count_colors(folder / name) > most_colors]
    if len(candidates) > 1:
        raise UserError(
            f"{folder} has several pictures that may be the image of its label ({', '.join(candidates)}), and so have "
            "the other folders: call the image image.* or rgb.*, or move the other pictures out of the tree"
        )
    return candidates[0]


def _choose_label(folder: Path, names: list[str]) -> str:
    """Return the one of several pictures in a folder that is the label, not its coloured version or a preview.

    Raises:
        UserError: another picture has about as few colours, and shows other regions.
    """
    candidates = [name for name in names if not OTHER_LABEL_WORD.search(name)] or names
    label = min(candidates, key=lambda name: (count_colors(folder / name), len(name)))
    few_colors = 2 * count_colors(folder / label)
    others = [name for name in candidates if name != label and count_colors(folder / name) <= few_colors]
    others = [name for name in others if not show_same_regions(folder / label, folder / name)]
    if others:
        names_to_show = ", ".join(sorted([label, *others]))
        raise UserError(
            f"{folder} has several pictures that may be the label of its image ({names_to_show}), "
            "and so have the other folders: move all but one out of the tree; merge masks of one class each"
        )
    return label


def _require_same_label_names(folders: Sequence[Path]) -> None:
    """Check that the ids of labelme's labels mean the same in all folders.

    Raises:
        UserError: two lists of names differ: the converter numbers the classes of each file anew.
    """
    lists = [folder / LABEL_NAMES for folder in sorted(folders) if (folder / LABEL_NAMES).is_file()]
    for path in lists[1:]:
        if read_content(path).split() != read_content(lists[0]).split():
            raise UserError(
                f"{path} and {lists[0]} differ: an id means another class in each folder; convert the annotations "
                "together, with one list of classes (labelme's examples/semantic_segmentation/labelme2voc.py)"
            )
