"""Find the folders of images and of labels in an unknown tree.

``find_matches`` is the entry. It looks for one of two layouts: folders with one image and its label each (in
single_image_folders.py), or folders of many images, whose labels go by the same names (here). Two folders are matched
in folder_matcher.py. Words and colours that tell labels from images are in label_hints.py.
"""

import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from datasets.files import walk_images
from datasets.folder_pairs import IMAGE_SUFFIX_FIELD, NameForm
from scripts.data.folder_matcher import FolderMatcher, Match, Merit, Nearness, PicturesByFolder, measure_nearness
from scripts.data.label_hints import (
    LABEL_WORD,
    NO_IMAGE_WORD,
    OTHER_LABEL_WORD,
    compare_names,
    count_colors,
    show_same_regions,
)
from scripts.data.single_image_folders import match_single_images
from utils.errors import UserError

UNREAD_LABELS = (".gif", ".npy", ".npz", ".mat", ".json", ".xml", ".txt")  # formats that labels often have
MAX_PLACES = 6  # folders that an error message lists


def find_matches(root: Path) -> list[Match]:
    """Find the best labels of each folder of images, all with names of one form.

    Raises:
        UserError: no pictures, none that go by the same names as labels, or some whose labels have another form.
    """
    pictures = dict(walk_images(root))
    single_images = match_single_images(pictures)
    if single_images:
        return single_images
    return LayoutFinder(root, pictures).find_matches()


class LayoutFinder:
    """Find the labels of each folder of images where a folder may hold many images.

    Any folder may hold images, labels, both or neither. So each folder is tried with every other, the nearest first.

    matches_within: of each folder, its matches with itself, where labels lie beside their images.
    """

    def __init__(self, root: Path, pictures: PicturesByFolder) -> None:
        """Match each folder with itself. pictures: the names of the pictures in each folder of the tree."""
        self.root = root
        self.pictures = pictures
        self.matches_within: dict[Path, list[Match]] = {}
        for folder in pictures:
            self.matches_within[folder] = FolderMatcher(root, folder, folder, pictures).find_matches()

    def find_matches(self) -> list[Match]:
        """Return the best match of each folder of images, sorted by folder. All have names of one form.

        Raises:
            UserError: there is no match, an image has several masks, or names of another form would leave out images or
                labels.
        """
        candidates = self.find_candidates()
        label_folders = {match.labels for match in candidates if match.images != match.labels}
        usable = [match for match in candidates if match.images not in label_folders]
        usable = _leave_out_labels_of_other_images(usable)
        form = _choose_form(usable)
        matches = _choose_labels(usable, form)
        if not matches:
            raise UserError(self.describe_failure())
        chosen_labels = {match.labels for match in matches}
        others = [match for match in usable if match.labels not in chosen_labels]
        for match in matches:
            FormCheck(match, self.pictures).run()
            _require_no_mask_per_class(match, others)
        used_folders = label_folders | {match.images for match in matches}
        left_out = [match for match in candidates if match.images not in used_folders and not match.is_partial]
        _require_no_other_form(matches[0], left_out)
        return matches

    def find_candidates(self) -> list[Match]:
        """Match each folder with the folders near it, then with those further away.

        A folder is done once it has a match by a word such as mask. It is not matched with folders further away.
        """
        neighbours = {folder: self.rank_by_nearness(folder) for folder in self.pictures}
        number_of_ranks = max(map(len, neighbours.values()), default=0)
        candidates: list[Match] = []
        for rank in range(number_of_ranks):
            done = _list_folders_with_label_word(candidates)
            for folder, ranked in neighbours.items():
                if folder not in done and rank < len(ranked):
                    candidates += self.match_with_all(folder, ranked[rank])
        return candidates

    def rank_by_nearness(self, folder: Path) -> list[list[Path]]:
        """Return all folders, the nearest to a folder first. Those that are equally near are in one list."""
        place = folder.relative_to(self.root)
        by_nearness: dict[Nearness, list[Path]] = {}
        for other in self.pictures:
            nearness = measure_nearness(place, other.relative_to(self.root))
            by_nearness.setdefault(nearness, []).append(other)
        return [by_nearness[nearness] for nearness in sorted(by_nearness, reverse=True)]

    def match_with_all(self, images: Path, label_folders: Iterable[Path]) -> list[Match]:
        """Match a folder of images with each of several folders, without labels that belong to other images."""
        matches = []
        for labels in label_folders:
            if images == labels:
                matches += self.matches_within[images]
                continue
            for match in FolderMatcher(self.root, images, labels, self.pictures).find_matches():
                if not self.belongs_to_images_beside(match):
                    matches.append(match)
        return matches

    def belongs_to_images_beside(self, match: Match) -> bool:
        """Return whether the labels of a match are those of other images, which lie beside them.

        Sequences often have images of the same names, each with its mask beside it: day/0.jpg and night/0.jpg.
        """
        image_parts = set(match.images.relative_to(self.root).parts)
        label_parts = set(match.labels.relative_to(self.root).parts)
        hints = compare_names(image_parts, label_parts)
        if hints.labels_have_label_word and not hints.images_have_label_word:
            return False  # then what lies beside the labels is a preview
        images_have_own_labels = any(own.form == match.form for own in self.matches_within[match.images])
        for own in self.matches_within[match.labels]:
            if own.form == match.form and (own.has_label_word or images_have_own_labels):
                return True
        return False

    def describe_failure(self) -> str:
        """Return the error message for a tree without labels. It says what the tree has instead."""
        places = sorted(str(folder.relative_to(self.root)) for folder in self.pictures)[:MAX_PLACES]
        return (
            f"--data {self.root}: no folder of labels found for those of pictures "
            f"({', '.join(places) or 'there are none'}); labels are named as their "
            "images with one ending for all, such as photo.jpg and photo_mask.png, and hold few colours"
            f"{_describe_unread_files(self.root)}"
        )


def _leave_out_labels_of_other_images(matches: Iterable[Match]) -> list[Match]:
    """Leave out the matches where most images have no label and the labels fit another folder of images better."""
    taken = {match.labels for match in matches if not match.is_partial}
    return [match for match in matches if not (match.is_partial and match.labels in taken)]


def _list_folders_with_label_word(matches: Iterable[Match]) -> set[Path]:
    """Return the folders of those matches whose labels are known by a word such as mask.

    Folders where most images have no label do not count, since their labels may be in another folder.
    """
    folders = set()
    for match in matches:
        if match.has_label_word and not match.is_partial:
            folders |= {match.images, match.labels}
    return folders


class _FormRating(NamedTuple):
    """Hold what speaks for a form of names. The greater of two is better: the first field that differs counts."""

    images: int
    takes_any_image: bool
    has_no_word_against_images: bool
    has_label_word: bool
    has_no_other_label_word: bool
    image_colors: int
    negative_label_colors: int


def _choose_form(matches: Iterable[Match]) -> NameForm | None:
    """Return the form of names that most images have, or None without matches.

    Of several such forms, return the one that looks most like images and labels. Cityscapes has several, as it has
    files of ``_labelIds.png``, ``_color.png`` and ``_instanceIds.png``.
    """
    counts: Counter[NameForm] = Counter()
    first_matches: dict[NameForm, Match] = {}
    for match in matches:
        counts[match.form] += len(match.bases)
        first_matches.setdefault(match.form, match)
    ratings = {form: _rate_form(match, counts[form]) for form, match in first_matches.items()}
    return max(ratings, key=ratings.get, default=None)


def _rate_form(match: Match, images: int) -> _FormRating:
    """Rate the form of a match. images: the number of images that have this form in the whole tree."""
    form = match.form
    return _FormRating(
        images=images,
        takes_any_image=form.image_suffix == "",
        has_no_word_against_images=NO_IMAGE_WORD.search(form.image_suffix) is None,
        has_label_word=LABEL_WORD.search(form.label_suffix) is not None,
        has_no_other_label_word=OTHER_LABEL_WORD.search(form.label_suffix) is None,
        image_colors=count_colors(match.images / match.image_names[0]),
        negative_label_colors=-count_colors(match.labels / match.label_names[0]),
    )


def _choose_labels(matches: Iterable[Match], form: NameForm | None) -> list[Match]:
    """Return the best match for each folder of images, sorted by folder. All have the given form.

    Labels for most of the images are better than labels for a few. Otherwise the merit counts.
    """
    best: dict[Path, Match] = {}
    for match in matches:
        if match.form != form:
            continue
        known = best.get(match.images)
        if known is None or _rank(match) >= _rank(known):  # of equal ones, the last
            best[match.images] = match
    return [best[folder] for folder in sorted(best)]


def _rank(match: Match) -> tuple[bool, Merit]:
    """Return what says how good a match is. The greater of two is better."""
    return not match.is_partial, match.merit


def _require_no_mask_per_class(chosen: Match, others: Iterable[Match]) -> None:
    """Check that the labels of a match are not masks of one class, beside a folder of masks of another class.

    others: the matches whose labels are not used.

    Raises:
        UserError: an image has several masks of two values, in folders beside each other.
    """
    label_folder = chosen.labels.parent
    if not LABEL_WORD.search(label_folder.name) or count_colors(chosen.labels / chosen.label_names[0]) > 2:
        return
    for other in others:
        if other.images != chosen.images or other.form != chosen.form or other.labels.parent != label_folder:
            continue
        name = other.label_names[0]
        mask = other.labels / name
        if name not in chosen.label_names or count_colors(mask) > 2:
            continue
        if not show_same_regions(chosen.labels / name, mask):
            raise UserError(
                f"{chosen.images / other.image_names[0]} has several masks of two values ({chosen.labels / name}, "
                f"{mask}): each is a class or an object; merge them into one label an image, whose values are the "
                "classes"
            )


def _require_no_other_form(chosen: Match, left_out: Iterable[Match]) -> None:
    """Check that no folder of images is left out because its labels have names of another form.

    chosen: a match of the form that is used. left_out: the matches of folders that are not used.

    Raises:
        UserError: such a folder has labels that are known by a word such as mask.
    """
    for match in left_out:
        if match.has_label_word:
            raise UserError(
                f"labels of two forms: {chosen.labels} calls them {show_label_name(chosen.form)}, {match.labels} "
                f"{show_label_name(match.form)}; {match.images} would be left out: name all of them in one way"
            )


def _describe_unread_files(root: Path) -> str:
    """Return the end of a sentence on files that may be labels of a format that is not read; "" if there are none."""
    counts = Counter(path.suffix.lower() for path in root.rglob("*") if path.is_file())
    found = sorted(f"{count} {suffix}" for suffix, count in counts.items() if suffix in UNREAD_LABELS)
    if not found:
        return ""
    return f". There are also files that are not read: {', '.join(found)}; convert to PNG"


def show_label_name(form: NameForm) -> str:
    """Return what the label of the image NAME is called, for messages."""
    return f"{form.label_prefix}NAME{form.label_suffix}"


class FormCheck:
    """Check that a match passes over no image and no label because its name has another form.

    image_pictures, label_pictures: the names of all pictures in the two folders. spare_labels: those in the folder of
    labels that the match does not use.
    """

    def __init__(self, match: Match, pictures: PicturesByFolder) -> None:
        """Take the match to check. pictures: the names of the pictures in each folder of the tree."""
        self.match = match
        self.form = match.form
        self.image_pictures = set(pictures[match.images])
        self.label_pictures = set(pictures[match.labels])
        self.spare_labels = self.list_spare_labels()

    def list_spare_labels(self) -> list[str]:
        """Return the pictures in the folder of labels that are neither labels nor images of the match, sorted."""
        spare = sorted(self.label_pictures - set(self.match.label_names))
        if self.match.images != self.match.labels:
            return spare
        return [name for name in spare if name not in self.match.unlabelled and not self.is_image(name)]

    def is_image(self, name: str) -> bool:
        """Return whether a picture beside its label is an image of the match."""
        if not (name.startswith(self.form.image_prefix) and name.endswith(self.form.image_suffix)):
            return False
        return self.form.get_base(name) in self.match.bases or name in self.match.bases

    def run(self) -> None:
        """Check the match.

        Raises:
            UserError: an image has several masks, or an image or label probably has a name of another form.
        """
        self.require_one_label()
        self.require_no_label_of_other_form()
        self.require_no_image_of_other_form()

    def require_one_label(self) -> None:
        """Check that the label of an image is not one of several masks, of a class or an object each.

        Raises:
            UserError: a label has two values, and so have other pictures beside it that are called like it.
        """
        label = self.match.label_names[0]
        masks = self.find_other_masks(label)
        if masks:
            names = ", ".join([label, *masks[:2]])
            raise UserError(
                f"{self.match.labels} has several masks of two values for one image ({names}): each is a class or an "
                "object; merge them into one label an image, whose values are the classes"
            )

    def find_other_masks(self, label: str) -> list[str]:
        """Return the spare pictures that are masks of the same image as a label, if the label is such a mask."""
        ending = self.form.label_suffix.removeprefix(IMAGE_SUFFIX_FIELD)
        base = label.removesuffix(ending)
        others = [name for name in self.spare_labels if _continues(name, base)]
        if LABEL_WORD.search(ending):
            others = [name for name in others if LABEL_WORD.search(name.removeprefix(base))]
        path = self.match.labels / label
        if not others or count_colors(path) > 2:
            return []
        masks = [name for name in others if count_colors(self.match.labels / name) <= 2]
        return [name for name in masks if not show_same_regions(path, self.match.labels / name)]

    def require_no_label_of_other_form(self) -> None:
        """Check that images without a label have none under a name of another form.

        Raises:
            UserError: an image probably has such a label.
        """
        for image in self.match.unlabelled:
            label = _find_continuation(self.form.label_prefix + self.form.get_base(image), self.spare_labels)
            if label:
                raise UserError(
                    f"{len(self.match.unlabelled)} images of {self.match.images} have no label called "
                    f"{show_label_name(self.form)}, but {self.match.labels} has {label} for {image}: "
                    "name all labels in one way"
                )

    def require_no_image_of_other_form(self) -> None:
        """Check that labels without an image have none under a name of another form.

        Raises:
            UserError: a label probably has such an image.
        """
        if not self.form.image_suffix:
            return  # then every picture is an image of this form
        others = sorted(
            name for name in self.image_pictures - self.label_pictures if not name.endswith(self.form.image_suffix)
        )
        for label in self.spare_labels:
            if not self.form.may_be_label(label):
                continue
            image = _find_continuation(label.removesuffix(self.form.label_suffix), others)
            if image:
                raise UserError(
                    f"{self.match.labels / label} is probably the label of {self.match.images / image}, which is not "
                    f"called NAME{self.form.image_suffix} as the other images are: name all images in one way"
                )


def _find_continuation(base: str, names: Iterable[str]) -> str:
    """Return the first name that is the base and an ending; an empty string where there is none."""
    for name in names:
        if _continues(name, base):
            return name
    return ""


def _continues(name: str, base: str) -> bool:
    """Return whether a name is the base and an ending, which begins with a separator."""
    return re.match(rf"{re.escape(base)}[_\-. ]", name) is not None
