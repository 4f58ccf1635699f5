"""Tell labels from images by the words in their names and by the colours of the pictures, and find words for splits."""

import re
from collections.abc import Iterable, Set
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from utils.errors import UserError

LABEL_WORD = re.compile(r"mask|label|annot|(?<![a-z])(gt|seg|ann|target)|ids|class", re.IGNORECASE)
# of label files that number objects, or that are drawn for people to look at
OTHER_LABEL_WORD = re.compile(r"instance|object|colou?r|(?<![a-z])vi[sz]", re.IGNORECASE)
IMAGE_WORD = re.compile(r"image|img|photo|picture|frame|(?<![a-z])rgb", re.IGNORECASE)
NO_IMAGE_WORD = re.compile(r"depth|disp|normal|flow|thermal|infrared|overlay|(?<![a-z])vi[sz](?!ible)", re.IGNORECASE)
# A word that only begins like a split is none: valley, value, valve, valencia, valladolid, valparaiso, device, devon.
SPLIT_WORD = re.compile(r"(?<![a-z])(train|val(?!le(?!ft)|ue|ve|en|er|lad|parai)|dev(?!ice|il|on)|test)", re.IGNORECASE)


class NameHints(NamedTuple):
    """Hold which words occur only on the side of the labels, or only on the side of the images."""

    labels_have_label_word: bool
    images_have_label_word: bool
    labels_have_other_word: bool  # for labels of objects, or coloured labels


def compare_names(image_names: Set[str], label_names: Set[str]) -> NameHints:
    """Look for words that tell labels from images. A name that both sides have tells nothing.

    image_names, label_names: the folders on the path of each side, and what its file names begin and end with.
    """
    only_labels = label_names - image_names
    only_images = image_names - label_names
    return NameHints(
        labels_have_label_word=_has_word(only_labels, LABEL_WORD),
        images_have_label_word=_has_word(only_images, LABEL_WORD),
        labels_have_other_word=_has_word(only_labels, OTHER_LABEL_WORD),
    )


def _has_word(names: Iterable[str], word: re.Pattern[str]) -> bool:
    """Return whether the word occurs in one of the names."""
    return any(word.search(name) for name in names)


def find_split_in_path(path: Path) -> str:
    """Return ``train``, ``val`` or ``test``, as the last part of the path that has such a word says; else ""."""
    for part in reversed(path.parts):
        match = SPLIT_WORD.search(part)
        if match:
            split = match[1].lower()
            return "val" if split == "dev" else split
    return ""


@lru_cache
def count_colors(path: Path) -> int:
    """Return how many different colours or values a picture has. A label has few.

    Raises:
        UserError: the picture cannot be read.
    """
    try:
        with Image.open(path) as file:
            if file.mode.startswith(("I", "F")):  # convert() would cut them off at 255
                return len(np.unique(np.asarray(file)))
            return len(file.convert("RGB").getcolors(2**24))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error


def show_same_regions(one: Path, other: Path) -> bool:
    """Return whether two pictures show the same regions, as a label and its coloured version do.

    One of them may have finer regions, such as the objects of a class.
    """
    one_codes = _read_color_codes(one)
    other_codes = _read_color_codes(other)
    if len(one_codes) != len(other_codes):
        return False
    pairs_of_codes = np.unique(np.stack([one_codes, other_codes]), axis=1)
    most_regions = max(len(np.unique(one_codes)), len(np.unique(other_codes)))
    return pairs_of_codes.shape[1] == most_regions


def _read_color_codes(path: Path) -> np.ndarray:
    """Return one number for the colour of each pixel, int64 ``[H * W]``."""
    with Image.open(path) as file:
        colors = np.asarray(file.convert("RGB"), np.int64).reshape(-1, 3)
    return colors @ (1, 256, 65536)
