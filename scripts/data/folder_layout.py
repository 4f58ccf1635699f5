"""Find the folders of images and of labels in an unknown tree."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from difflib import SequenceMatcher
from functools import lru_cache
from itertools import groupby, product
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from datasets.files import IMAGE_SUFFIXES, walk_images
from datasets.folder_pairs import IMAGE_SUFFIX_FIELD, NameForm
from utils.errors import UserError
from utils.pictures import read_content

# Words that only begin like a split are none: valley, value, valve, device.
SPLIT = re.compile(r"(?<![a-z])(train|val|dev|test)(?!ley|ue|ve|ice)", re.IGNORECASE)
LABEL_WORD = re.compile(r"mask|label|annot|(?<![a-z])(gt|seg|ann|target)|ids|class", re.IGNORECASE)
# of label files that number objects, or that are drawn for people to look at
OTHER_LABEL_WORD = re.compile(r"instance|object|colou?r|(?<![a-z])vi[sz]", re.IGNORECASE)
IMAGE_WORD = re.compile(r"image|img|photo|picture|frame|(?<![a-z])rgb", re.IGNORECASE)
NO_IMAGE_WORD = re.compile(r"depth|disp|normal|flow|thermal|infrared|overlay|(?<![a-z])vi[sz](?!ible)", re.IGNORECASE)
UNREAD_LABELS = (".gif", ".npy", ".npz", ".mat", ".json", ".xml", ".txt")  # formats that labels often have
KIND = 0.2  # share of a folder's files that an ending must have to be a kind of them
COVERED = 0.5  # share of a folder's images that must have a label
ALIKE = 0.8  # share of the folders that must have a picture's name where each folder holds one image
FEW = 8  # pictures at most in a folder that holds one image
LABEL_NAMES = "label_names.txt"  # that labelme's converter writes beside each label: the names of its ids


class Match(NamedTuple):
    """A folder of images and the folder of their labels; images and labels have names of one form."""

    images: Path
    labels: Path
    form: NameForm
    bases: tuple[str, ...]  # what a list calls the images that have a label
    image_names: tuple[str, ...]  # the files of those images
    label_names: tuple[str, ...]  # and of their labels
    unlabelled: tuple[str, ...]  # names of images of this form without such a label
    hint: bool  # whether the labels are called so
    merit: tuple[object, ...]


def find_matches(root: Path) -> list[Match]:
    """Find the best labels of each folder of images, all with names of one form.

    Raises:
        UserError: no pictures, none that go by the same names as labels, or some whose labels have another form.
    """
    folders = dict(walk_images(root))
    single_images = _match_single_images(folders)
    if single_images:
        return single_images
    found = _match_by_nearness(root, folders)
    label_folders = {match.labels for match in found if match.images != match.labels}
    usable = [match for match in found if match.images not in label_folders]
    form = _choose_form(usable)
    best: dict[Path, Match] = {}
    for match in sorted(usable, key=lambda match: match.merit):
        if match.form == form:
            best[match.images] = match
    if not best:
        places = ", ".join(sorted(str(folder.relative_to(root)) for folder in folders)[:6]) or "there are none"
        raise UserError(
            f"--data {root}: no folder of labels found for those of pictures ({places}); labels are named as their "
            "images with one ending for all, such as photo.jpg and photo_mask.png, and hold few colours"
            f"{_describe_unread_files(root)}"
        )
    matches = [best[folder] for folder in sorted(best)]
    for match in matches:
        _require_one_form(folders, match)
    for match in found:
        if match.hint and match.images not in (best.keys() | label_folders):
            raise UserError(
                f"labels of two forms: {matches[0].labels} calls them {show_label_name(form)}, {match.labels} "
                f"{show_label_name(match.form)}; {match.images} would be left out: name all of them in one way"
            )
    return matches


def _describe_unread_files(root: Path) -> str:
    """Return the end of a sentence on files that may be labels of a format that is not read; "" if there are none."""
    suffixes = Counter(path.suffix.lower() for path in root.rglob("*") if path.is_file())
    found = [f"{count} {suffix}" for suffix, count in suffixes.items() if suffix in UNREAD_LABELS]
    return f". There are also files that are not read: {', '.join(sorted(found))}; convert to PNG" if found else ""


def show_label_name(form: NameForm) -> str:
    """Return what the label of the image NAME is called, for messages."""
    return f"{form.label_prefix}NAME{form.label_suffix}"


def _choose_form(matches: list[Match]) -> NameForm | None:
    """Return the form of names that most images have. Of several, return the one that most looks like it.

    Such forms are Cityscapes' ``_labelIds.png``, ``_color.png`` and ``_instanceIds.png``.
    """
    counts: Counter[NameForm] = Counter()
    first: dict[NameForm, Match] = {}
    for match in matches:
        counts[match.form] += len(match.bases)
        first.setdefault(match.form, match)

    def judge(form: NameForm) -> tuple[object, ...]:
        match = first[form]
        return (
            counts[form],
            form.image_suffix == "",
            NO_IMAGE_WORD.search(form.image_suffix) is None,
            LABEL_WORD.search(form.label_suffix) is not None,
            OTHER_LABEL_WORD.search(form.label_suffix) is None,
            _count_colors(match.images / match.image_names[0]),
            -_count_colors(match.labels / match.label_names[0]),
        )

    return max(counts, key=judge, default=None)


def _match_single_images(folders: dict[Path, list[str]]) -> list[Match]:
    """Match image and label where each folder holds one of them under the same names, as labelme's converter does.

    Returns an empty list where the tree is none of that kind.

    Raises:
        UserError: each folder has several pictures that may be its image, or several that may be its label.
    """
    counts = Counter(name for names in folders.values() for name in names)
    names = sorted(name for name, count in counts.items() if count > 1 and count >= ALIKE * len(folders))
    homes = [folder for folder, present in folders.items() if set(names) <= set(present) and len(present) <= FEW]
    labels = [name for name in names if LABEL_WORD.search(name)]
    images = [name for name in names if not LABEL_WORD.search(name)]
    if not (labels and images) or len(homes) < ALIKE * len(folders):
        return []
    if any(_hold_several_pairs(folders[home]) for home in homes):
        return []
    image = _choose_image(homes[0], images)
    label = _choose_label(homes[0], labels)
    if label.startswith(Path(image).stem):
        return []  # photo.jpg and photo_mask.png, of which there may be several in a folder
    _require_same_names(homes)
    return [
        Match(
            images=home,
            labels=home,
            form=NameForm(image_suffix=image, label_suffix=label),
            bases=(image,),
            image_names=(image,),
            label_names=(label,),
            unlabelled=(),
            hint=True,
            merit=(),
        )
        for home in sorted(homes)
    ]


def _hold_several_pairs(names: list[str]) -> bool:
    """Return whether the names in a folder are those of several images, each with a label of its own.

    Such names are 0.jpg, 1.jpg, 0_mask.png and 1_mask.png, or left.jpg, right.jpg, mask_left.png and mask_right.png.
    """
    labels = [name for name in names if LABEL_WORD.search(name)]
    images = [name for name in names if not LABEL_WORD.search(name)]
    if len(images) < 2:
        return False
    without_digits = {re.sub(r"\d+", "", name) for name in images}
    return len(without_digits) < len(images) or any(
        Path(image).stem in Path(label).stem for image, label in product(images, labels)
    )


def _choose_image(home: Path, names: list[str]) -> str:
    """Return the one of several pictures in a folder that is the image, not its depth or another drawing.

    Raises:
        UserError: neither the names nor the numbers of colours tell which.
    """
    candidates = [name for name in names if not NO_IMAGE_WORD.search(name)] or names
    candidates = [name for name in candidates if IMAGE_WORD.search(name)] or candidates
    most = max(_count_colors(home / name) for name in candidates)
    candidates = [name for name in candidates if 2 * _count_colors(home / name) > most]
    if len(candidates) > 1:
        raise UserError(
            f"{home} has several pictures that may be the image of its label ({', '.join(candidates)}), and so have "
            "the other folders: call the image image.* or rgb.*, or move the other pictures out of the tree"
        )
    return candidates[0]


def _choose_label(home: Path, names: list[str]) -> str:
    """Return the one of several pictures in a folder that is the label, not its coloured version or a preview.

    Raises:
        UserError: another picture has about as few colours, and shows other regions.
    """
    candidates = [name for name in names if not OTHER_LABEL_WORD.search(name)] or names
    label = min(candidates, key=lambda name: (_count_colors(home / name), len(name)))
    few_colors = 2 * _count_colors(home / label)
    others = [name for name in candidates if name != label and _count_colors(home / name) <= few_colors]
    others = [name for name in others if not _show_same_regions(home / label, home / name)]
    if others:
        raise UserError(
            f"{home} has several pictures that may be the label of its image ({', '.join(sorted([label, *others]))}), "
            "and so have the other folders: move all but one out of the tree; merge masks of one class each"
        )
    return label


def _require_same_names(homes: Sequence[Path]) -> None:
    """Check that the ids of labelme's labels mean the same in all folders.

    Raises:
        UserError: two lists of names differ: the converter numbers the classes of each file anew.
    """
    lists = [home / LABEL_NAMES for home in sorted(homes) if (home / LABEL_NAMES).is_file()]
    for path in lists[1:]:
        if read_content(path).split() != read_content(lists[0]).split():
            raise UserError(
                f"{path} and {lists[0]} differ: an id means another class in each folder; convert the annotations "
                "together, with one list of classes (labelme's examples/semantic_segmentation/labelme2voc.py)"
            )


def _match_by_nearness(root: Path, folders: dict[Path, list[str]]) -> list[Match]:
    """Match folders with those near them; what is further away is looked at where nothing nearer is called labels."""
    beside = {folder: list(_match_folders(root, folders, folder, folder)) for folder in folders}
    ranks = {folder: _rank_by_nearness(root, folders, folder) for folder in folders}
    found: list[Match] = []
    for rank in range(max(map(len, ranks.values()), default=0)):
        done: set[Path] = set()
        for match in found:
            if match.hint:
                done |= {match.images, match.labels}
        for here in folders:
            if here in done or rank >= len(ranks[here]):
                continue
            for there in ranks[here][rank]:
                for match in _match_folders(root, folders, here, there):
                    if here == there or not _belong_to_others(root, match, beside):
                        found.append(match)
    return found


def _rank_by_nearness(root: Path, folders: Iterable[Path], here: Path) -> list[list[Path]]:
    """Return the folders, the nearest to ``here`` first. Those that are equally near are in one list."""
    nearness = {there: _measure_nearness(root, here, there) for there in folders}
    ranked = sorted(folders, key=nearness.get, reverse=True)
    return [list(equally_near) for _, equally_near in groupby(ranked, nearness.get)]


def _belong_to_others(root: Path, match: Match, beside: dict[Path, list[Match]]) -> bool:
    """Return whether the labels of a match are those of the images that lie beside them.

    Sequences often have images of the same names, each with its mask beside it: day/0.jpg and night/0.jpg.

    beside: the matches of each folder within itself.
    """
    image_parts = set(match.images.relative_to(root).parts)
    label_parts = set(match.labels.relative_to(root).parts)
    label_folder_is_named_so = any(map(LABEL_WORD.search, label_parts - image_parts))
    image_folder_is_named_so = any(map(LABEL_WORD.search, image_parts - label_parts))
    if label_folder_is_named_so and not image_folder_is_named_so:
        return False  # then what lies beside the labels is a preview
    has_own_labels = any(own.form == match.form for own in beside[match.images])
    return any(own.form == match.form and (own.hint or has_own_labels) for own in beside[match.labels])


def _match_folders(root: Path, folders: dict[Path, list[str]], here: Path, there: Path) -> Iterator[Match]:
    """Yield every way in which most images of one folder have a label in another, or in the same."""
    image_split = find_split_in_path(here.relative_to(root))
    label_split = find_split_in_path(there.relative_to(root))
    if image_split and label_split and image_split != label_split:
        return
    forms = _list_forms(folders[here], folders[there], here == there)
    matches = [_match_form(root, folders, here, there, form) for form in forms]
    if not any(matches):
        forms = _list_forms_with_prefixes(folders[here], folders[there])
        matches = [_match_form(root, folders, here, there, form) for form in forms]
    yield from filter(None, matches)


def _list_forms(image_names: list[str], label_names: list[str], are_beside: bool) -> list[NameForm]:
    """List the forms without prefixes that the names in two folders may have.

    are_beside: the two folders are the same. Then a file suffix such as .jpg may tell images from other pictures.
    """
    image_suffixes = [""]
    for ending in _list_endings(image_names):
        if are_beside or ending.lower() not in IMAGE_SUFFIXES:
            image_suffixes.append(ending)
    label_endings = _list_endings(label_names)
    forms = [NameForm("", image_suffix, "", ending) for image_suffix, ending in product(image_suffixes, label_endings)]
    for ending in label_endings:
        forms.append(NameForm(label_suffix=IMAGE_SUFFIX_FIELD + ending))
    return forms


def _list_forms_with_prefixes(image_names: list[str], label_names: list[str]) -> list[NameForm]:
    """List forms such as img_01.jpg and mask_01.png, where the word in front says which of them is the label.

    Two other words may tell two sequences apart, such as left_01.jpg and right_01.png.
    """
    forms = []
    image_prefixes = ["", *_list_beginnings(image_names)]
    label_prefixes = ["", *_list_beginnings(label_names)]
    for image_prefix, label_prefix in product(image_prefixes, label_prefixes):
        if LABEL_WORD.search(label_prefix) or (IMAGE_WORD.search(image_prefix) and not label_prefix):
            for ending in _list_endings(label_names):
                forms.append(NameForm(image_prefix, "", label_prefix, ending))
    return forms


def _match_form(root: Path, folders: dict[Path, list[str]], here: Path, there: Path, form: NameForm) -> Match | None:
    """Match the images of one folder with labels in another by names of one form.

    Return None where too few images have such a label, or where the labels do not look like labels.
    """
    selected = form.select_images(folders[here], are_labels_beside=here == there)
    images = {_name_in_list(name, form): name for name in selected}
    present = set(folders[there])
    labels = {base: form.name_label(name) for base, name in images.items() if form.name_label(name) in present}
    bases = tuple(sorted(labels))
    if not bases or len(bases) < COVERED * len(images):
        return None
    if all(_have_plain_images(folders[folder], form.image_suffix, bases) for folder in (here, there)):
        return None

    image_place = here.relative_to(root)
    label_place = there.relative_to(root)
    image_words = {*image_place.parts, form.image_prefix, form.image_suffix}
    label_words = {*label_place.parts, form.label_prefix, form.label_suffix}
    label_is_named_so = any(map(LABEL_WORD.search, label_words - image_words))
    image_is_named_so = any(map(LABEL_WORD.search, image_words - label_words))
    image_colors = _count_colors(here / images[bases[0]])
    label_colors = _count_colors(there / labels[bases[0]])
    looks_like_labels = label_is_named_so
    if label_is_named_so == image_is_named_so:  # the names do not tell which of them is the label
        looks_like_labels = 2 * label_colors < image_colors
    if not looks_like_labels:
        return None

    same_split, shared = _measure_nearness(root, here, there)
    is_of_classes = not any(map(OTHER_LABEL_WORD.search, label_words - image_words))
    alike = SequenceMatcher(None, str(image_place), str(label_place)).ratio()
    return Match(
        images=here,
        labels=there,
        form=form,
        bases=bases,
        image_names=tuple(images[base] for base in bases),
        label_names=tuple(labels[base] for base in bases),
        unlabelled=tuple(images[base] for base in sorted(images.keys() - labels.keys())),
        hint=label_is_named_so,
        merit=(same_split, label_is_named_so, shared, len(bases), is_of_classes, -label_colors, alike),
    )


def _have_plain_images(names: Sequence[str], image_suffix: str, bases: Sequence[str]) -> bool:
    """Return whether pictures called after the bases alone are the images, not those with a suffix such as _color.png.

    names: of all pictures in the folder.
    """
    if image_suffix == "" or image_suffix.lower() in IMAGE_SUFFIXES:
        return False
    plain = {Path(name).stem for name in names}
    return len(plain.intersection(bases)) >= COVERED * len(bases)


def _name_in_list(image: str, form: NameForm) -> str:
    """Return what a list calls an image: the base, or the whole name where the label has the image's suffix, too."""
    return image if IMAGE_SUFFIX_FIELD in form.label_suffix else form.get_base(image)


def _require_one_form(folders: dict[Path, list[str]], match: Match) -> None:
    """Check that no image or label is passed over because its name has another form.

    Raises:
        UserError: an image has no label of the match's form, but probably one of another form, or reverse.
    """
    form = match.form
    labels = set(folders[match.labels])
    spare = sorted(labels - set(match.label_names))
    pictures = set(folders[match.images])
    if match.images == match.labels:
        spare = [name for name in spare if name not in match.unlabelled and not _is_image(match, name)]
    _require_one_label(match, spare)
    for image in match.unlabelled:
        label = _first_that_begins_with(form.label_prefix + form.get_base(image), spare)
        if label:
            count = f"{len(match.unlabelled)} images of {match.images} have no label called {show_label_name(form)}"
            raise UserError(f"{count}, but {match.labels} has {label} for {image}: name all labels in one way")
    for label in spare:
        if form.image_suffix and form.may_be_label(label):
            others = sorted(name for name in pictures - labels if not name.endswith(form.image_suffix))
            image = _first_that_begins_with(label.removesuffix(form.label_suffix), others)
            if image:
                raise UserError(
                    f"{match.labels / label} is probably the label of {match.images / image}, which is not called "
                    f"NAME{form.image_suffix} as the other images are: name all images in one way"
                )


def _require_one_label(match: Match, spare: Sequence[str]) -> None:
    """Check that the label of an image is not one of several masks, of a class or an object each.

    spare: pictures beside the labels that are none.

    Raises:
        UserError: beside a label of two values lie others that are called like it.
    """
    ending = match.form.label_suffix.removeprefix(IMAGE_SUFFIX_FIELD)
    label = match.label_names[0]
    base = label.removesuffix(ending)
    others = [name for name in spare if re.match(rf"{re.escape(base)}[_\-. ]", name)]
    if LABEL_WORD.search(ending):
        others = [name for name in others if LABEL_WORD.search(name.removeprefix(base))]
    if not others or _count_colors(match.labels / label) > 2:
        return
    masks = [name for name in others if _count_colors(match.labels / name) <= 2]
    masks = [name for name in masks if not _show_same_regions(match.labels / label, match.labels / name)]
    if masks:
        names = ", ".join([label, *masks[:2]])
        raise UserError(
            f"{match.labels} has several masks of two values for one image ({names}): each is a class or an object; "
            "merge them into one label an image, whose values are the classes"
        )


def _is_image(match: Match, name: str) -> bool:
    """Say whether a picture beside its label is an image of the match."""
    is_of_form = name.startswith(match.form.image_prefix) and name.endswith(match.form.image_suffix)
    return is_of_form and (match.form.get_base(name) in match.bases or name in match.bases)


def _first_that_begins_with(base: str, names: Sequence[str]) -> str:
    """Return the first name that is the base and an ending; an empty string where there is none."""
    return next((name for name in names if re.match(rf"{re.escape(base)}[_\-. ]", name)), "")


def _measure_nearness(root: Path, here: Path, there: Path) -> tuple[bool, int]:
    """Return whether two folders are of one split, and how many folder names their paths have in common."""
    own = here.relative_to(root)
    other = there.relative_to(root)
    shared = len(set(own.parts) & set(other.parts))
    if own == other and own != Path():
        shared -= 1  # a folder is not nearer to itself than the folders beside it
    return find_split_in_path(own) == find_split_in_path(other), shared


def _list_endings(names: list[str]) -> list[str]:
    """List what several of the names end with, from a mark on."""
    counts = Counter(name[mark.start() :] for name in names for mark in re.finditer(r"(?<=.)[_\-.]", name))
    return [ending for ending, count in counts.items() if count >= KIND * len(names)]


def _list_beginnings(names: list[str]) -> list[str]:
    """List the words that several of the names begin with, with the mark after them: img_ of img_01.jpg."""
    words = [re.match(r"[^\W\d_]+[_\-. ]*", name) for name in names]  # the first word
    words += [re.match(r"\D+(?=\d)", name) for name in names]  # all before the first number
    counts = Counter(word[0] for word in filter(None, words))
    return [word for word, count in counts.items() if count >= KIND * len(names)]


def _show_same_regions(one: Path, other: Path) -> bool:
    """Return whether two pictures show the same regions, as a label and its coloured version do.

    One of them may have finer regions, such as the objects of a class.
    """
    codes = []
    for path in (one, other):
        with Image.open(path) as file:
            codes.append(np.asarray(file.convert("RGB"), np.int64).reshape(-1, 3) @ (1, 256, 65536))
    if len(codes[0]) != len(codes[1]):
        return False
    together = np.unique(np.stack(codes), axis=1).shape[1]
    return together == max(len(np.unique(code)) for code in codes)


@lru_cache
def _count_colors(path: Path) -> int:
    """Return how many colours or values a picture has.

    Raises:
        UserError: it cannot be read.
    """
    try:
        with Image.open(path) as file:
            if file.mode.startswith(("I", "F")):  # convert() would cut them off at 255
                return len(np.unique(np.asarray(file)))
            return len(file.convert("RGB").getcolors(2**24))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error


def find_split_in_path(path: Path) -> str:
    """Return ``train``, ``val`` or ``test`` as the last part of the path that says so has it; "" if none does."""
    for part in reversed(path.parts):
        match = SPLIT.search(part)
        if match:
            split = match[1].lower()
            return "val" if split == "dev" else split
    return ""
