"""Your own data: folders of images and labels, described by a ``dataset.yaml`` in the root.

names: [road, sky, car]                # classes 0, 1, 2
splits:                                # folders below the root; "test" may lack labels
  train: {images: train/rgb, labels: train/mask}
  val: {images: val/rgb, labels: val/mask, list: val.txt}  # list, optional: only the images named there, one a line
  test: {images: drives/*/rgb, labels: drives/*/mask}      # a * stands for any name that does not begin with a dot,
                                                           # the same name in both places
palette: [[128, 64, 128], ...]         # optional: VOC's colours otherwise. Labels stored as RGB(A) are read by it
ids: {7: road, 10: sky, 26: car}       # optional: id in the files -> class; 0, 1, 2 otherwise
ignore: [0, 255, [0, 0, 0]]            # optional: ids and colours without a class; otherwise 255, if no class has it
label_suffix: _mask.png                # optional: the label is called <stem> + this; .png otherwise
                                       # "{suffix}.png": photo.jpg has photo.jpg.png, photo.png has photo.png.png
image_suffix: _sat.jpg                 # optional: images are called <stem> + this; any image file otherwise
label_prefix: mask_                    # optional: the label is called this + <stem>; 01.jpg has mask_01.png
image_prefix: img_                     # optional: images are called this + <stem>; img_01.jpg has mask_01.png

For labels that are coloured pictures, write ``colors`` instead of ``ids``; ``names`` is then optional. Every label file
is then read by its colours, also one with a palette or grey levels. Alpha is not used.

colors: {road: [128, 64, 128], sky: [70, 130, 180], car: [[0, 0, 142], [0, 0, 70]]}
ignore: [[0, 0, 0]]                    # optional: colours without a class; none otherwise

``scripts/data/describe_folder.py`` looks through a folder and writes such a file for it.
"""

import shlex
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from datasets.base import DatasetSpec, make_voc_colors
from datasets.files import read_files
from datasets.folder_pairs import NameForm, list_folder_pairs
from datasets.ids import MAX_CLASSES, IdMap
from utils.errors import UserError, suggest_nearest
from utils.files import is_color, is_list, read_yaml
from utils.types import IGNORE_INDEX

FILE = "dataset.yaml"
KEYS = ("names", "splits", "palette", "ids", "colors", "ignore", *NameForm._fields)


def make_folder_spec(root: Path) -> DatasetSpec:
    """Make the spec of a data set from the ``dataset.yaml`` in its root.

    Raises:
        UserError: there is no dataset.yaml, or a key of it is unknown, missing or has a wrong value.
    """
    file = DatasetFile.read(root / FILE)
    names = file.check_names()
    file.check_splits()
    form = file.read_name_form()
    file.check_palette(names)
    ids = make_color_map(file, names) if file.has_colors else make_id_map(file, names)
    splits = file.content["splits"]
    return DatasetSpec(
        names=tuple(names),
        palette=tuple(tuple(color) for color in _choose_palette(file, names, ids)),
        pairs=partial(list_folder_pairs, splits, form),
        splits=dict.fromkeys(splits, ()),
        ids=ids,
        read=partial(read_files, indexed=not file.has_colors, colored=bool(ids.colors)),
    )


class DatasetFile(NamedTuple):
    """The content of a dataset.yaml, with a check for each of its keys."""

    path: Path
    content: dict[str, Any]

    @classmethod
    def read(cls, path: Path) -> "DatasetFile":
        """Read a dataset.yaml, and check that it has the keys it needs and no unknown ones.

        Raises:
            UserError: there is no such file, or it lacks a key or has an unknown one.
        """
        if not path.exists():
            raise UserError(
                f"{path} is missing: it names the classes and folders. To write one that you can then correct, run: "
                f"python scripts/data/describe_folder.py --data {shlex.quote(str(path.parent))}"
            )
        content = read_yaml(path)
        if not isinstance(content, dict):
            raise UserError(f"{path} must hold 'key: value' lines (see datasets/folder.py)")
        for key in content:
            if key not in KEYS:
                raise UserError(
                    f"{path}: unknown key {str(key)!r}{suggest_nearest(str(key), KEYS)} (keys: {', '.join(KEYS)})"
                )
        required = ("splits",) if content.get("colors") else ("names", "splits")
        for key in required:
            if key not in content:
                raise UserError(f"{path} lacks the key {key!r} (see datasets/folder.py)")
        return cls(path, content)

    @property
    def has_colors(self) -> bool:
        """Return whether the labels are pictures that are read by their colours."""
        return bool(self.content.get("colors"))

    def require(self, key: str, is_valid: object, wanted: str) -> None:
        """Check the value of a key.

        Raises:
            UserError: the value is not valid; the message says what is wanted instead.
        """
        if not is_valid:
            raise UserError(f"{self.path}: {key} must be {wanted}")

    def check_names(self) -> list[str]:
        """Check the keys ``colors`` and ``names``. Return the class names."""
        colors = self.content.get("colors", {})
        self.require("colors", isinstance(colors, dict), "{class: [R, G, B], ...}")
        has_both = colors and "ids" in self.content
        self.require("colors", not has_both, "left out where there are ids: labels hold one or the other")
        names = self.content.get("names", list(colors))
        are_different = is_list(names, str) and len(names) == len(set(names))
        wanted = "2 or more different names, words (yes, no, on, off and numbers in quotes)"
        self.require("names", are_different and len(names) >= 2, wanted)
        self.require("names", len(names) <= MAX_CLASSES, f"at most {MAX_CLASSES} classes")
        return names

    def check_splits(self) -> None:
        """Check the key ``splits``."""
        wanted = "train: {images: FOLDER, labels: FOLDER} and so on, a * in both or in images alone"
        self.require("splits", _are_splits(self.content["splits"]), wanted)

    def read_name_form(self) -> NameForm:
        """Check the prefixes and suffixes of images and labels, and return them."""
        form = NameForm(**{key: self.content[key] for key in NameForm._fields if key in self.content})
        for key, part in form._asdict().items():
            example = "the beginning of a file name, such as mask_"
            if key.endswith("suffix"):
                example = "the end of a file name, such as _mask.png"
            self.require(key, isinstance(part, str), example)
        return form

    def check_palette(self, names: list[str]) -> None:
        """Check the key ``palette``."""
        palette = self.content.get("palette")
        if palette is None:
            return
        is_valid = isinstance(palette, list) and len(palette) == len(names) and all(map(is_color, palette))
        self.require("palette", is_valid, f"{len(names)} colours [R, G, B] of 0..255")


def _choose_palette(file: DatasetFile, names: list[str], ids: IdMap) -> list[Any]:
    """Return the colours in which classes are shown: the file's palette, else its label colours, else VOC's colours."""
    palette = file.content.get("palette")
    if palette:
        return palette
    if file.has_colors:
        return ids.to_official(np.arange(len(names))).tolist()
    return list(make_voc_colors(len(names)))


def make_id_map(file: DatasetFile, names: list[str]) -> IdMap:
    """Make the map for labels that hold ids. Labels stored as RGB(A) are read by the palette, if there is one.

    Raises:
        UserError: ``ids`` or ``ignore`` has a wrong value.
    """
    ids = file.content.get("ids", {k: k for k in range(len(names))})
    classes = _read_classes_of_ids(file, ids, names)
    ignore = file.content.get("ignore", [] if IGNORE_INDEX in ids else [IGNORE_INDEX])
    if not isinstance(ignore, list):
        ignore = [ignore]
    ignored_ids = [item for item in ignore if _is_id(item)]
    ignored_colors = {tuple(item): IGNORE_INDEX for item in ignore if is_color(item)}
    class_colors = {tuple(color): k for k, color in enumerate(file.content.get("palette") or ())}

    are_ids_or_colors = all(_is_id(item) or is_color(item) for item in ignore)
    hit_a_class = set(ignored_ids) & set(ids) or ignored_colors.keys() & class_colors.keys()
    wanted = "ids 0..65535 or colours [R, G, B] that are no class"
    file.require("ignore", are_ids_or_colors and not hit_a_class, wanted)

    colors = {}
    if len(class_colors) == len(names):  # otherwise there is no palette, or two classes share a colour
        colors = class_colors | ignored_colors
    return IdMap(classes, tuple(ignored_ids), colors)


def _read_classes_of_ids(file: DatasetFile, ids: Any, names: list[str]) -> dict[int, int]:
    """Check the value of the key ``ids``. Return the class of each id.

    Raises:
        UserError: the value is no table of ids, names an unknown class, or leaves a class without an id.
    """
    are_ids = isinstance(ids, dict) and all(map(_is_id, ids))
    file.require("ids", are_ids, "{id in the files, 0..65535: class, ...}")
    classes = {}
    for raw, name in ids.items():
        if isinstance(name, str) and name in names:
            classes[raw] = names.index(name)
        elif type(name) is int and 0 <= name < len(names):
            classes[raw] = name
        elif isinstance(name, bool):  # what yaml makes of the words yes, no, on and off
            file.require("ids", False, f"of classes in names: {raw}: {name} is none (yes, no, on, off in quotes)")
        else:
            file.require(
                "ids", False, f"of classes in names: {raw}: {name!r} is none{suggest_nearest(str(name), names)}"
            )
    used = set(classes.values())
    unused = [name for k, name in enumerate(names) if k not in used]
    file.require("ids", not unused, f"an id for each class: {', '.join(unused)} has none")
    return classes


def make_color_map(file: DatasetFile, names: list[str]) -> IdMap:
    """Make the map for labels that are pictures of colours.

    Raises:
        UserError: ``colors`` or ``ignore`` has a wrong value.
    """
    colors_of_class = {name: [value] if is_color(value) else value for name, value in file.content["colors"].items()}
    are_colors = all(
        isinstance(colors, list) and colors and all(map(is_color, colors)) for colors in colors_of_class.values()
    )
    has_all_classes = set(colors_of_class) == set(names)
    wanted = "one or more colours [R, G, B] of 0..255 for each class"
    file.require("colors", are_colors and has_all_classes, wanted)

    classes = {}
    for name, colors in colors_of_class.items():
        for color in colors:
            file.require("colors", tuple(color) not in classes, "different for different classes")
            classes[tuple(color)] = names.index(name)

    ignore = file.content.get("ignore", [])
    if is_color(ignore):
        ignore = [ignore]
    are_colors = isinstance(ignore, list) and all(map(is_color, ignore))
    ignored = {tuple(color): IGNORE_INDEX for color in ignore} if are_colors else {}
    is_valid = are_colors and not ignored.keys() & classes.keys()
    file.require("ignore", is_valid, "colours [R, G, B] that are no class")
    return IdMap({}, (), classes | ignored)


def _are_splits(value: object) -> bool:
    """Return whether the value of the key ``splits`` has the right form."""
    if not isinstance(value, dict) or not value:
        return False
    return is_list(list(value), str) and all(map(_is_split, value.values()))


def _is_split(entry: object) -> bool:
    """Return whether the entry of one split names its folders in the right form."""
    if not isinstance(entry, dict) or not {"images", "labels"} <= set(entry) <= {"images", "labels", "list"}:
        return False
    places = list(entry.values())
    if not is_list(places, str) or any("\0" in place for place in places):
        return False
    images, labels = entry["images"], entry["labels"]
    if labels.count("*") not in (0, images.count("*")):
        return False
    # a pattern is looked up below the root, one name for each *
    return "*" not in images or not ("**" in images or Path(images).is_absolute())


def _is_id(value: object) -> bool:
    """Return whether a value is a 16-bit id."""
    return type(value) is int and 0 <= value < 2**16
