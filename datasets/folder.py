"""One's own data: folders of images and labels, described by a ``dataset.yaml`` in the root.

names: [road, sky, car]                # classes 0, 1, 2
splits:                                # folders below the root; "test" may lack labels
  train: {images: train/rgb, labels: train/mask}
  val: {images: val/rgb, labels: val/mask, list: val.txt}  # list, optional: only the images named there, one a line
  test: {images: drives/*/rgb, labels: drives/*/mask}      # a * is any name but .hidden ones, in both places the same
palette: [[128, 64, 128], ...]         # optional: VOC's colours otherwise. RGB(A) label files are read by it
ids: {7: road, 10: sky, 26: car}       # optional: id in the files -> class; 0, 1, 2 otherwise
ignore: [0, 255, [0, 0, 0]]            # optional: ids and colours without a class; otherwise 255, if that is none
label_suffix: _mask.png                # optional: the label is called <stem> + this; .png otherwise
                                       # "{suffix}.png": photo.jpg has photo.jpg.png, photo.png has photo.png.png
image_suffix: _sat.jpg                 # optional: images are called <stem> + this; any image file otherwise

Labels that are pictures take ``colors`` instead of ``ids``, and need no ``names``; every kind of file, palette and grey
too, is then read by its colours. Alpha is not looked at.

colors: {road: [128, 64, 128], sky: [70, 130, 180], car: [[0, 0, 142], [0, 0, 70]]}
ignore: [[0, 0, 0]]                    # optional: colours without a class; none otherwise

``scripts/data/describe_folder.py`` writes such a file from what it finds in a folder.
"""

import shlex
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from datasets.base import DatasetSpec, voc_colors
from datasets.files import read_files
from datasets.folder_pairs import folder_pairs
from datasets.ids import MAX_CLASSES, IdMap
from utils.errors import UserError, nearest
from utils.files import is_color, is_list, read_yaml
from utils.types import IGNORE_INDEX

FILE = "dataset.yaml"
KEYS = ("names", "splits", "palette", "ids", "colors", "ignore", "label_suffix", "image_suffix")
Check = Callable[[str, object, str], None]  # key, whether it holds, what was wanted


def folder_spec(root: Path) -> DatasetSpec:
    """Raises UserError: no dataset.yaml, or a key of it that is unknown, missing or of a wrong form."""
    path = root / FILE
    content = _read(path)

    def check(key: str, holds: object, wanted: str) -> None:
        if not holds:
            raise UserError(f"{path}: {key} must be {wanted}")

    colors = content.get("colors", {})
    check("colors", isinstance(colors, dict), "{class: [R, G, B], ...}")
    check("colors", not (colors and "ids" in content), "left out where there are ids: labels hold one or the other")
    names = content.get("names", list(colors))
    valid = is_list(names, str) and 2 <= len(names) == len(set(names))
    check("names", valid, "2 or more different names, words (yes, no, on, off and numbers in quotes)")
    check("names", len(names) <= MAX_CLASSES, f"at most {MAX_CLASSES} classes")

    valid = _are_splits(content["splits"])
    check("splits", valid, "train: {images: FOLDER, labels: FOLDER} and so on, a * in both or none")
    suffixes = content.get("label_suffix", ".png"), content.get("image_suffix", "")
    for key, suffix in zip(("label_suffix", "image_suffix"), suffixes, strict=True):
        check(key, isinstance(suffix, str), "the end of a file name, such as _mask.png")

    palette = content.get("palette")
    if palette is not None:
        valid = isinstance(palette, list) and len(palette) == len(names) and all(map(is_color, palette))
        check("palette", valid, f"{len(names)} colours [R, G, B] of 0..255")
    ids = _colors(content, names, check) if colors else _ids(content, names, check)
    shown = palette or (ids.official(np.arange(len(names))).tolist() if colors else voc_colors(len(names)))
    return DatasetSpec(
        names=tuple(names),
        palette=tuple(tuple(color) for color in shown),
        pairs=partial(folder_pairs, content["splits"], *suffixes),
        splits=dict.fromkeys(content["splits"], ()),
        ids=ids,
        read=partial(read_files, indexed=not colors, colored=bool(ids.colors)),
    )


def _ids(content: dict[str, Any], names: list[str], check: Check) -> IdMap:
    """Of labels that hold ids; RGB(A) files among them are read by the palette, if there is one."""
    ids = content.get("ids", {k: k for k in range(len(names))})
    classes = {**{name: k for k, name in enumerate(names)}, **{k: k for k in range(len(names))}}
    check("ids", isinstance(ids, dict) and all(map(_is_id, ids)), "{id in the files, 0..65535: class, ...}")
    for raw, k in ids.items():
        known = isinstance(k, (int, str)) and k in classes
        check("ids", known, f"of classes in names: {raw}: {k!r} is none{nearest(str(k), names)}")
    without = [names[k] for k in sorted({*classes.values()} - {classes[k] for k in ids.values()})]
    check("ids", not without, f"an id for each class: {', '.join(without)} has none")
    ignore = content.get("ignore", [] if IGNORE_INDEX in ids else [IGNORE_INDEX])
    ignore = ignore if isinstance(ignore, list) else [ignore]
    ignored = [item for item in ignore if _is_id(item)]
    unclassed = {tuple(item): IGNORE_INDEX for item in ignore if is_color(item)}
    colors = {tuple(color): k for k, color in enumerate(content.get("palette") or ())}
    valid = all(_is_id(item) or is_color(item) for item in ignore)
    valid = valid and not set(ignored) & set(ids) and not unclassed.keys() & colors.keys()
    check("ignore", valid, "ids 0..65535 or colours [R, G, B] that are no class")
    colors = colors | unclassed if len(colors) == len(names) else {}  # no palette, or two classes of one colour
    return IdMap({raw: classes[k] for raw, k in ids.items()}, tuple(ignored), colors)


def _colors(content: dict[str, Any], names: list[str], check: Check) -> IdMap:
    """Of labels that are pictures."""
    given = {name: [c] if is_color(c) else c for name, c in content["colors"].items()}
    valid = all(isinstance(c, list) and c and all(map(is_color, c)) for c in given.values())
    check("colors", valid and set(given) == set(names), "one or more colours [R, G, B] of 0..255 for each class")
    classes = [(tuple(color), names.index(name)) for name, several in given.items() for color in several]
    check("colors", len(dict(classes)) == len(classes), "different for different classes")
    ignore = content.get("ignore", [])
    ignore = [ignore] if is_color(ignore) else ignore
    valid = isinstance(ignore, list) and all(map(is_color, ignore))
    unclassed = {tuple(color): IGNORE_INDEX for color in ignore} if valid else {}
    check("ignore", valid and not unclassed.keys() & dict(classes).keys(), "colours [R, G, B] that are no class")
    return IdMap({}, (), dict(classes) | unclassed)


def _read(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise UserError(
            f"{path} is missing: it names the classes and folders; one to correct is written by: "
            f"python scripts/data/describe_folder.py --data {shlex.quote(str(path.parent))}"
        )
    content = read_yaml(path)
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold 'key: value' lines (see datasets/folder.py)")
    for key in content:
        if key not in KEYS:
            raise UserError(f"{path}: unknown key {str(key)!r}{nearest(str(key), KEYS)} (keys: {', '.join(KEYS)})")
    for key in ("splits",) if content.get("colors") else ("names", "splits"):
        if key not in content:
            raise UserError(f"{path} lacks the key {key!r} (see datasets/folder.py)")
    return content


def _are_splits(value: object) -> bool:
    return (
        isinstance(value, dict)
        and len(value) > 0
        and is_list(list(value), str)
        and all(
            isinstance(entry, dict)
            and {"images", "labels"} <= set(entry) <= {"images", "labels", "list"}
            and is_list(list(entry.values()), str)
            and not any("\0" in place for place in entry.values())
            and entry["labels"].count("*") in (0, entry["images"].count("*"))
            and not ("*" in entry["images"] and ("**" in entry["images"] or Path(entry["images"]).is_absolute()))
            for entry in value.values()
        )
    )


def _is_id(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**16
