"""Which files of one's own data are images, and where their labels are."""

import glob
import re
from pathlib import Path, PurePath

from datasets.files import Pair, images_in, match, read_list
from utils.errors import UserError


def folder_pairs(
    splits: dict[str, dict[str, str]], label_suffix: str, image_suffix: str, root: Path, split: str
) -> list[Pair]:
    """Images and labels of a split, sorted; files that should be there.

    splits: of dataset.yaml, as are the suffixes.

    Raises UserError: no such folder or list, a list that is not clear, two images with one label.
    """
    entry, labels = splits[split], {}
    folders = folders_of(root, entry["images"], entry["labels"])
    for images, there in folders:
        found = [path for path in images_in(images) if path.name.endswith(image_suffix)]
        if images == there:
            found = [path for path in found if not path.name.endswith(label_suffix)]
        for path in found:
            stem = path.name.removesuffix(image_suffix) if image_suffix else path.stem
            labels[path] = there / f"{stem}{label_suffix}"
    chosen = _listed(root / entry["list"], labels, label_suffix, *folders[0]) if "list" in entry else sorted(labels)
    return match(chosen, lambda image: [labels[image]], "image_suffix in dataset.yaml picks a kind")


def folders_of(root: Path, images: str, labels: str) -> list[tuple[Path, Path]]:
    """Each folder of images with that of its labels; any number where there is a ``*``."""
    if "*" not in images:
        return [(root / images, root / labels)]
    parts = str(PurePath(images)).split("*")
    form, found = re.compile("([^/]*)".join(map(re.escape, parts))), []
    for place in sorted(map(PurePath, glob.glob("*".join(map(glob.escape, parts)), root_dir=root))):  # none hidden
        names = iter(form.fullmatch(place.as_posix()).groups())
        if (root / place).is_dir():
            found.append((root / place, root / re.sub(r"\*", lambda _, names=names: next(names), labels)))
    if not found:
        raise UserError(f"{root} holds no folder {images}")
    return found


def _listed(path: Path, labels: dict[Path, Path], label_suffix: str, images: Path, there: Path) -> list[Path]:
    """The images that a list names, with or without suffix and folders; one that is not there gets a label, too."""
    named: dict[str, list[Path]] = {}
    for image, label in labels.items():
        for name in {image.name, label.name.removesuffix(label_suffix)}:
            named.setdefault(name, []).append(image)
    lines, picked = read_list(path), set()
    for line in lines:
        *folders, name = Path(line).parts
        found = named.get(name, [images / name])
        *others, best = sorted((len(set(folders) & set(image.parts)), image) for image in found)
        if others and others[-1][0] == best[0]:
            raise UserError(f"{path}: {line} may be {others[-1][1]} or {best[1]}: name its folder or suffix, too")
        picked.add(best[1])
        labels.setdefault(best[1], there / f"{name}{label_suffix}")
    if len(picked) < len(lines):
        raise UserError(f"{path} has {len(lines)} lines for {len(picked)} images of {images}")
    return sorted(picked)
