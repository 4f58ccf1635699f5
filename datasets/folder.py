"""One's own data: folders of images and labels, described by a ``dataset.yaml`` in the root.

names: [road, sky, car]                # classes 0, 1, 2
splits:                                # folders below the root; "test" may lack labels
  train: {images: train/rgb, labels: train/mask}
  val: {images: val/rgb, labels: val/mask}
palette: [[128, 64, 128], ...]         # optional: VOC's colours otherwise
ids: {7: road, 10: sky, 26: car}       # optional: id in the files -> class; 0, 1, 2 otherwise
ignore: [0, 255]                       # optional: ids without a class; 255 otherwise
label_suffix: _mask.png                # optional: <image stem> + this is the label's name; .png otherwise
"""

from functools import partial
from pathlib import Path
from typing import Any

import yaml

from datasets.base import DatasetSpec, voc_colors
from datasets.files import Pair, images_in, match
from datasets.ids import MAX_CLASSES, IdMap
from utils.errors import UserError, nearest

FILE = "dataset.yaml"
KEYS = ("names", "splits", "palette", "ids", "ignore", "label_suffix")


def folder_spec(root: Path) -> DatasetSpec:
    """Raises UserError: no dataset.yaml, or a key of it that is unknown, missing or of a wrong form."""
    path = root / FILE
    content = _read(path)
    names = content["names"]
    _check(path, "names", _is_list(names, str) and 2 <= len(names) == len(set(names)), "2 or more different names")
    _check(path, "names", len(names) <= MAX_CLASSES, f"at most {MAX_CLASSES} classes")

    splits = content["splits"]
    forms = isinstance(splits, dict) and all(
        isinstance(name, str)
        and isinstance(s, dict)
        and set(s) == {"images", "labels"}
        and _is_list(list(s.values()), str)
        for name, s in splits.items()
    )
    _check(path, "splits", forms and splits, "train: {images: FOLDER, labels: FOLDER} and so on")

    palette = content.get("palette", [list(color) for color in voc_colors(len(names))])
    colors = isinstance(palette, list) and all(
        _is_list(c, int) and len(c) == 3 and 0 <= min(c) <= max(c) < 256 for c in palette
    )
    _check(path, "palette", colors and len(palette) == len(names), f"{len(names)} colours [R, G, B] of 0..255")

    ids = content.get("ids", {k: k for k in range(len(names))})
    classes = {**{name: k for k, name in enumerate(names)}, **{k: k for k in range(len(names))}}
    known = isinstance(ids, dict) and all(
        _is_id(raw) and isinstance(k, (int, str)) and k in classes for raw, k in ids.items()
    )
    _check(path, "ids", known and {classes[k] for k in ids.values()} == set(range(len(names))), "an id for each class")

    ignore = content.get("ignore", [255])
    ignore = ignore if isinstance(ignore, list) else [ignore]
    _check(path, "ignore", all(map(_is_id, ignore)) and not set(ignore) & set(ids), "ids 0..65535 that are no class")

    suffix = content.get("label_suffix", ".png")
    _check(path, "label_suffix", isinstance(suffix, str), "the end of a file name, such as _mask.png")
    return DatasetSpec(
        names=tuple(names),
        palette=tuple(tuple(color) for color in palette),
        pairs=partial(_pairs, splits, suffix),
        splits=dict.fromkeys(splits, ()),
        ids=IdMap({raw: classes[k] for raw, k in ids.items()}, tuple(ignore)),
    )


def _pairs(splits: dict[str, dict[str, str]], suffix: str, root: Path, split: str) -> list[Pair]:
    images, labels = root / splits[split]["images"], root / splits[split]["labels"]
    found = [path for path in images_in(images) if images != labels or not path.name.endswith(suffix)]
    return match(found, lambda image: [labels / f"{image.stem}{suffix}"])


def _read(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise UserError(f"{path} is missing: it names the classes and folders (see datasets/folder.py)") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is no plain yaml: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold 'key: value' lines (see datasets/folder.py)")
    for key in content:
        if key not in KEYS:
            raise UserError(f"{path}: unknown key {str(key)!r}{nearest(str(key), KEYS)} (keys: {', '.join(KEYS)})")
    for key in KEYS[:2]:
        if key not in content:
            raise UserError(f"{path} lacks the key {key!r} (see datasets/folder.py)")
    return content


def _check(path: Path, key: str, holds: object, wanted: str) -> None:
    if not holds:
        raise UserError(f"{path}: {key} must be {wanted}")


def _is_list(value: object, kind: type) -> bool:
    return isinstance(value, list) and all(type(item) is kind for item in value)


def _is_id(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**16
