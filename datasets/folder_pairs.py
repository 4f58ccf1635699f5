"""Which files of one's own data are images, and where their labels are."""

import glob
import re
from pathlib import Path, PurePath

from datasets.files import Pair, images_in, match, read_list
from utils.errors import UserError

OWN_SUFFIX = "{suffix}"  # at the beginning of a label_suffix: the image's own, for labels called photo.jpg.png


def folder_pairs(
    splits: dict[str, dict[str, str]], label_suffix: str, image_suffix: str, root: Path, split: str
) -> list[Pair]:
    """List the images and labels of a split, sorted: the files that should be there.

    splits, label_suffix, image_suffix: as in dataset.yaml.

    Raises UserError: no such folder or list, a list that is not clear, two images with one label.
    """
    entry = splits[split]
    bases: dict[Path, str] = {}
    labels: dict[Path, Path] = {}
    folders = folders_of(root, entry["images"], entry["labels"])
    for images, there in folders:
        found = [path for path in images_in(images) if path.name.endswith(image_suffix)]
        names = {path.name for path in found}
        for path in found:
            if images == there and _is_label(path.name, names, label_suffix):
                continue
            bases[path] = path.name.removesuffix(image_suffix) if image_suffix else path.stem
            labels[path] = there / f"{bases[path]}{label_suffix.replace(OWN_SUFFIX, path.suffix)}"
    chosen = sorted(labels)
    if "list" in entry:
        first_images, first_labels = folders[0]
        chosen = _pick_listed(root / entry["list"], bases, first_images)
        for path in chosen:
            name = f"{path.name}{label_suffix.removeprefix(OWN_SUFFIX)}"
            labels.setdefault(path, first_labels / name)  # of an image that is not there
    return match(chosen, lambda image: [labels[image]], "image_suffix in dataset.yaml picks a kind")


def _is_label(name: str, names: set[str], label_suffix: str) -> bool:
    """Say whether a picture beside the images is one of their labels."""
    if label_suffix.startswith(OWN_SUFFIX):
        ending = label_suffix.removeprefix(OWN_SUFFIX)
        return name.endswith(ending) and name.removesuffix(ending) in names
    return name.endswith(label_suffix)


def folders_of(root: Path, images: str, labels: str) -> list[tuple[Path, Path]]:
    """List each folder of images with that of its labels; any number where there is a ``*``."""
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


def _pick_listed(path: Path, bases: dict[Path, str], folder: Path) -> list[Path]:
    """Pick the images that a list names, with or without suffix and folders; of one that is not there, its place.

    bases: the images that are there, with their names without suffix. folder: where an image should be.
    """
    named: dict[str, list[Path]] = {}
    for image, base in bases.items():
        for name in {image.name, base}:
            named.setdefault(name, []).append(image)
    lines, picked = read_list(path), set()
    for line in lines:
        *folders, name = Path(line).parts
        found = named.get(name, [folder / name])
        *others, best = sorted((len(set(folders) & set(image.parts)), image) for image in found)
        if others and others[-1][0] == best[0]:
            raise UserError(f"{path}: {line} may be {others[-1][1]} or {best[1]}: name its folder or suffix, too")
        picked.add(best[1])
    if len(picked) < len(lines):
        raise UserError(f"{path} has {len(lines)} lines for {len(picked)} images of {folder}")
    return sorted(picked)
