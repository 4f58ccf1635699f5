"""Match the images in one folder with the labels in another folder, or in the same one, by their names."""

import re
from collections import Counter
from collections.abc import Collection, Sequence
from difflib import SequenceMatcher
from itertools import product
from pathlib import Path
from typing import NamedTuple

from datasets.files import IMAGE_SUFFIXES
from datasets.folder_pairs import IMAGE_SUFFIX_FIELD, NameForm
from scripts.data.label_hints import IMAGE_WORD, LABEL_WORD, NameHints, compare_names, count_colors, find_split_in_path

COMMON = 0.2  # share of a folder's files that must have an ending (or beginning) for it to count
COVERED = 0.5  # share of a folder's images that must have a label, or of a folder's labels that must have an image
PicturesByFolder = dict[Path, list[str]]  # folder -> names of all pictures in it: images, labels and others


class Nearness(NamedTuple):
    """Hold how near two folders are. The greater of two is nearer: the split counts first, then the path."""

    are_of_same_split: bool
    shared_names: int  # folder names that both paths have


def measure_nearness(one: Path, other: Path) -> Nearness:
    """Measure how near two folders are. Their paths are relative to the root of the tree."""
    shared_names = len(set(one.parts) & set(other.parts))
    if one == other and one != Path():
        shared_names -= 1  # a folder is not nearer to itself than the folders beside it
    are_of_same_split = find_split_in_path(one) == find_split_in_path(other)
    return Nearness(are_of_same_split, shared_names)


class Merit(NamedTuple):
    """Hold how well labels fit images. The greater of two is better: the first field that differs counts."""

    are_of_same_split: bool
    has_label_word: bool
    shared_names: int
    pairs: int
    are_of_classes: bool  # not of objects, and not drawn for people to look at
    negative_colors: int  # the fewer colours a label has, the better
    likeness_of_paths: float


class Match(NamedTuple):
    """Hold a folder of images and the folder of their labels. Images and labels have names of one form."""

    images: Path
    labels: Path
    form: NameForm
    bases: tuple[str, ...]  # what a list calls the images that have a label
    image_names: tuple[str, ...]  # the files of those images
    label_names: tuple[str, ...]  # and of their labels
    unlabelled: tuple[str, ...]  # names of images of this form without such a label
    has_label_word: bool  # a word such as "mask" is in the names of the labels, and not in those of the images
    merit: Merit | None = None  # None where there was nothing to compare

    @property
    def is_partial(self) -> bool:
        """Return whether most images have no label."""
        return len(self.bases) < COVERED * (len(self.bases) + len(self.unlabelled))


class FolderMatcher:
    """Match the images in one folder with the labels in another, or in the same, in every form of names that fits.

    image_place, label_place: the two folders relative to the root of the tree. image_pictures, label_pictures: the
    names of all pictures in them.
    """

    def __init__(self, root: Path, images: Path, labels: Path, pictures: PicturesByFolder) -> None:
        """Take the two folders. pictures: of all folders of the tree."""
        self.images = images
        self.labels = labels
        self.image_place = images.relative_to(root)
        self.label_place = labels.relative_to(root)
        self.image_pictures = pictures[images]
        self.label_pictures = pictures[labels]
        self.are_beside = images == labels

    def find_matches(self) -> list[Match]:
        """Return a match for each form of names by which most of the images have a label, or most labels have an image.

        Names with a word in front, such as img_01.jpg and mask_01.png, are tried only if no other form fits.
        """
        image_split = find_split_in_path(self.image_place)
        label_split = find_split_in_path(self.label_place)
        if image_split and label_split and image_split != label_split:
            return []
        return self.match_forms(self.list_forms()) or self.match_forms(self.list_forms_with_prefixes())

    def match_forms(self, forms: Sequence[NameForm]) -> list[Match]:
        """Return the matches of those of the forms that fit."""
        matches = []
        for form in forms:
            match = self.match_form(form)
            if match is not None:
                matches.append(match)
        return matches

    def list_forms(self) -> list[NameForm]:
        """List the forms without prefixes that the names in the two folders may have."""
        image_suffixes = [""]
        for ending in _list_endings(self.image_pictures):
            # A file suffix such as .jpg tells images from other pictures only where the labels are among them.
            if self.are_beside or ending.lower() not in IMAGE_SUFFIXES:
                image_suffixes.append(ending)
        label_endings = _list_endings(self.label_pictures)
        forms = []
        for image_suffix, ending in product(image_suffixes, label_endings):
            forms.append(NameForm(image_suffix=image_suffix, label_suffix=ending))
        for ending in label_endings:
            forms.append(NameForm(label_suffix=IMAGE_SUFFIX_FIELD + ending))
        return forms

    def list_forms_with_prefixes(self) -> list[NameForm]:
        """List forms such as img_01.jpg and mask_01.png, where the word in front says which of them is the label.

        Two other words may tell two sequences apart, such as left_01.jpg and right_01.png.
        """
        image_prefixes = ["", *_list_beginnings(self.image_pictures)]
        label_prefixes = ["", *_list_beginnings(self.label_pictures)]
        label_endings = _list_endings(self.label_pictures)
        forms = []
        for image_prefix, label_prefix in product(image_prefixes, label_prefixes):
            is_marked_label = LABEL_WORD.search(label_prefix)
            is_marked_image = IMAGE_WORD.search(image_prefix) and not label_prefix
            if is_marked_label or is_marked_image:
                for ending in label_endings:
                    forms.append(NameForm(image_prefix=image_prefix, label_prefix=label_prefix, label_suffix=ending))
        return forms

    def match_form(self, form: NameForm) -> Match | None:
        """Match images with labels whose names have one form.

        Return None where most images have no such label and most labels have no image, or where the labels do not look
        like labels.
        """
        images = self.find_images(form)
        labels = self.find_labels(form, images)
        if not labels or len(labels) < COVERED * min(len(images), len(self.label_pictures)):
            return None
        if self.are_beside_plain_images(form, labels):
            return None
        bases = sorted(labels)
        hints = self.compare_names(form)
        image_colors = count_colors(self.images / images[bases[0]])
        label_colors = count_colors(self.labels / labels[bases[0]])
        if not _look_like_labels(hints, image_colors, label_colors):
            return None
        return Match(
            images=self.images,
            labels=self.labels,
            form=form,
            bases=tuple(bases),
            image_names=tuple(images[base] for base in bases),
            label_names=tuple(labels[base] for base in bases),
            unlabelled=tuple(images[base] for base in sorted(images.keys() - labels.keys())),
            has_label_word=hints.labels_have_label_word,
            merit=self.judge(hints, len(bases), label_colors),
        )

    def find_images(self, form: NameForm) -> dict[str, str]:
        """Return the images of a form in the folder of images: what a list calls each -> the name of its file."""
        images = {}
        for name in form.select_images(self.image_pictures, self.are_beside):
            images[_name_in_list(name, form)] = name
        return images

    def find_labels(self, form: NameForm, images: dict[str, str]) -> dict[str, str]:
        """Return the labels that exist: what a list calls the image -> the name of the label's file."""
        present = set(self.label_pictures)
        labels = {}
        for base, image in images.items():
            label = form.name_label(image)
            if label in present:
                labels[base] = label
        return labels

    def are_beside_plain_images(self, form: NameForm, bases: Collection[str]) -> bool:
        """Return whether both folders have pictures that are called after the bases alone.

        Then those pictures are the images, and what has the form's suffix, such as _color.png, is something else.
        """
        if form.image_suffix == "" or form.image_suffix.lower() in IMAGE_SUFFIXES:
            return False
        for pictures in (self.image_pictures, self.label_pictures):
            stems = {Path(name).stem for name in pictures}
            if len(stems.intersection(bases)) < COVERED * len(bases):
                return False
        return True

    def compare_names(self, form: NameForm) -> NameHints:
        """Look for words that tell labels from images in the two paths and in the form of the names."""
        image_names = {*self.image_place.parts, form.image_prefix, form.image_suffix}
        label_names = {*self.label_place.parts, form.label_prefix, form.label_suffix}
        return compare_names(image_names, label_names)

    def judge(self, hints: NameHints, pairs: int, label_colors: int) -> Merit:
        """Judge how well the labels of a form fit the images.

        pairs: the number of images that have a label. label_colors: the number of colours in one of the labels.
        """
        nearness = measure_nearness(self.image_place, self.label_place)
        return Merit(
            are_of_same_split=nearness.are_of_same_split,
            has_label_word=hints.labels_have_label_word,
            shared_names=nearness.shared_names,
            pairs=pairs,
            are_of_classes=not hints.labels_have_other_word,
            negative_colors=-label_colors,
            likeness_of_paths=SequenceMatcher(None, str(self.image_place), str(self.label_place)).ratio(),
        )


def _look_like_labels(hints: NameHints, image_colors: int, label_colors: int) -> bool:
    """Return whether labels look like labels: by their names, or by their colours where the names do not tell."""
    if hints.labels_have_label_word == hints.images_have_label_word:
        return 2 * label_colors < image_colors
    return hints.labels_have_label_word


def _name_in_list(image: str, form: NameForm) -> str:
    """Return what a list calls an image: the base, or the whole name where the label has the image's suffix, too."""
    if IMAGE_SUFFIX_FIELD in form.label_suffix:
        return image
    return form.get_base(image)


def _list_endings(names: Sequence[str]) -> list[str]:
    """List what several of the names end with, from a separator on: _mask.png and .png of 01_mask.png."""
    endings = []
    for name in names:
        for separator in re.finditer(r"(?<=.)[_\-.]", name):
            endings.append(name[separator.start() :])
    return _select_common(endings, len(names))


def _list_beginnings(names: Sequence[str]) -> list[str]:
    """List the words that several of the names begin with, with the separator after them: img_ of img_01.jpg."""
    first_words = [re.match(r"[^\W\d_]+[_\-. ]*", name) for name in names]
    before_first_numbers = [re.match(r"\D+(?=\d)", name) for name in names]
    beginnings = [match[0] for match in first_words + before_first_numbers if match]
    return _select_common(beginnings, len(names))


def _select_common(texts: Sequence[str], names: int) -> list[str]:
    """Return the texts that occur often enough, each once, in the order in which they occur first.

    names: the number of file names that the texts come from.
    """
    counts = Counter(texts)
    return [text for text, count in counts.items() if count >= COMMON * names]
