"""Write the dataset.yaml of an unknown folder of images and labels, from what is found there, to be corrected by hand.

    python scripts/data/describe_folder.py --data my_photos

It looks for folders (or one folder) of images and labels that go by the same names, for splits in the names of
folders or in lists, and for the ids or colours of the labels, with their counts. Without a validation split every fifth
training image is taken out for it, by two lists that are written. A single split of another name is taken for training.
See datasets/folder.py for the keys.
"""

import shlex
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from utils.environment import require_packages

require_packages()

import yaml

from datasets import get_dataset_spec
from datasets.base import MAX_LISTED, find_missing_files
from datasets.files import walk_images
from datasets.folder import FILE
from datasets.folder_pairs import NameForm
from datasets.ids import MAX_CLASSES
from scripts.data.folder_layout import find_matches
from scripts.data.folder_matcher import Match
from scripts.data.folder_splits import find_or_make_splits, make_list_name
from scripts.data.label_values import LabelValues, Value
from utils.entry import run_main
from utils.errors import UserError
from utils.files import write_text
from utils.options import option, parse_flags
from utils.types import IGNORE_INDEX

SPLITS = ("train", "val", "test")  # in the order of dataset.yaml
HEADER = "# Written by scripts/data/describe_folder.py"


@dataclass(frozen=True)
class DescribeConfig:
    """Hold the settings of describe_folder.py."""

    data: str = option("", "root folder of the images and labels")
    labels: int = option(1000, "label files to look into, spread evenly; 0: all", minimum=0)
    overwrite: bool = option(False, "replace a dataset.yaml (and lists) that are there")


def to_yaml(value: object) -> str:
    """Write a value as one line of yaml."""
    plain = list(value) if isinstance(value, tuple) else value
    text = yaml.safe_dump(plain, default_flow_style=True, width=10**9, sort_keys=False, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")


def list_values(values: Sequence[Value]) -> str:
    """Write the first ids or colours of several, and how many there are besides."""
    more = f" and {len(values) - MAX_LISTED} more" if len(values) > MAX_LISTED else ""
    return ", ".join(map(to_yaml, values[:MAX_LISTED])) + more


def describe_classes(values: LabelValues, folder: Path) -> list[str]:
    """Write the lines of dataset.yaml on classes, with a comment on every value.

    folder: of the labels, for messages.

    Raises:
        UserError: fewer than two ids or colours, more than there can be classes, ids beyond 16 bits.
    """
    unlabelled = values.find_unlabelled()
    ignored = sorted([*unlabelled, *values.strays])
    classes = sorted(values.pixels.keys() - set(ignored))
    too_many = max(len(classes), len(values.strays)) > MAX_CLASSES
    too_large = not values.colored and max(values.pixels) >= 2**16
    if len(classes) < 2 or too_many or too_large:
        kind = "colours" if values.colored else "ids"
        seen = ", ".join(to_yaml(value) for value, _ in values.pixels.most_common(8))
        why = "a class alone cannot be learnt" if len(classes) < 2 else "instances, depth, or a JPEG's blended colours?"
        raise UserError(f"{folder} holds {len(values.pixels)} different {kind} (the most frequent: {seen}): {why}")
    if values.colored:
        lines = ["colors:"]
        lines += [f"  class_{bytes(v).hex()}: {to_yaml(v)}  # {values.describe(v)}" for v in classes]
    else:
        lines = ["names:", *(f"  - class_{v}  # id {v}: {values.describe(v)}" for v in classes)]
        if classes != list(range(len(classes))):
            lines.append(f"ids: {to_yaml({value: k for k, value in enumerate(classes)})}  # id in the files: class")
    lines.append(f"ignore: {to_yaml([list(v) if isinstance(v, tuple) else v for v in ignored])}  # a guess")
    lines += [f"  # {to_yaml(v)}: {values.describe(v)}" for v in unlabelled]
    if values.strays:
        lines.append(f"  # {list_values(values.strays)}: stray values, {values.describe(*values.strays)}")
    return lines


def remark_on_values(values: LabelValues) -> list[str]:
    """Say which values a person should look at, as they may mean something else."""
    remarks = []
    if values.strays:
        remarks.append(
            f"stray values, at the edges of others as in a mask that was resized: {list_values(values.strays)}; they "
            "are ignored. Resize masks by the nearest neighbour"
        )
    if not values.colored and IGNORE_INDEX not in values.find_unlabelled() and values.pixels[IGNORE_INDEX]:
        seen = values.describe(IGNORE_INDEX)
        remarks.append(f"{IGNORE_INDEX} is taken for a class ({seen}): if it means unlabelled, write it under ignore")
    return remarks


def find_own_lists(root: Path) -> set[Path]:
    """Find the lists that an earlier call of this script wrote: those that its dataset.yaml names."""
    lists = {make_list_name(split) for split in SPLITS}
    try:
        text = (root / FILE).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return set()
    return {root / name for name in lists if text.startswith(HEADER) and name in text}


class Description(NamedTuple):
    """Hold the lines of the files to write, dataset.yaml first, and the names of the splits."""

    files: dict[Path, list[str]]
    splits: list[str]


def describe(root: Path, most_labels: int) -> Description:
    """Describe a folder of images and labels by a dataset.yaml and, where it needs them, lists of images.

    most_labels: how many label files are read, spread evenly; 0: all.

    Raises:
        UserError: no labels are found, they do not fit together, or a file cannot be read.
    """
    matches = find_matches(root)
    require_no_stars(root, matches)
    first = matches[0]
    labels = [match.labels / name for match in matches for name in match.label_names]
    count = min(most_labels or len(labels), len(labels))
    values = LabelValues([labels[i * len(labels) // count] for i in range(count)])
    classes = describe_classes(values, first.labels)
    remarks = remark_on_values(values)
    splits, lists = find_or_make_splits(root, matches, find_own_lists(root), remarks)
    remarks += remark_on_unused_folders(root, matches)

    lines = [f"{HEADER} from {count} label files. Correct what is wrong."]
    lines += [f"# {remark}" for remark in remarks]
    lines.append("splits:")
    for name in SPLITS:
        if name in splits:
            lines.append(f"  {name}: {to_yaml(splits[name])}")
    defaults = NameForm()._asdict()
    for key, part in first.form._asdict().items():
        if part != defaults[key]:
            lines.append(f"{key}: {to_yaml(part)}")
    files = {root / FILE: [*lines, *classes]}
    for name, image_names in lists.items():
        files[root / name] = image_names
    return Description(files, list(splits))


def require_no_stars(root: Path, matches: Iterable[Match]) -> None:
    """Check that no folder has a * in its name, since dataset.yaml reads it as any name.

    Raises:
        UserError: a folder of images or labels has one.
    """
    for match in matches:
        for folder in (match.images, match.labels):
            place = str(folder.relative_to(root))
            if "*" in place:
                raise UserError(f"--data {root}: rename the folder {place}: in dataset.yaml a * stands for any name")


def remark_on_unused_folders(root: Path, matches: Sequence[Match]) -> list[str]:
    """Name the folders of pictures that are neither images with labels nor these labels."""
    used = {folder for match in matches for folder in (match.images, match.labels)}
    unused = [str(folder.relative_to(root)) for folder, _ in walk_images(root) if folder not in used]
    if not unused:
        return []
    more = f" and {len(unused) - MAX_LISTED} more" if len(unused) > MAX_LISTED else ""
    return [f"not used, neither images with labels nor these: {', '.join(unused[:MAX_LISTED])}{more}"]


def require_new(files: Iterable[Path]) -> None:
    """Check that none of the files exists.

    Raises:
        UserError: a file exists.
    """
    for file in files:
        if file.exists():
            raise UserError(f"{file} exists: --overwrite replaces it")


def print_splits(root: Path, splits: Sequence[str]) -> None:
    """Print how many images each split has by the dataset.yaml that was written, and how many files are missing."""
    spec = get_dataset_spec("folder", str(root))
    for split in splits:
        pairs = spec.pairs(root, split)
        missing = len(find_missing_files(pairs))
        line = f"{split}: {len(pairs)} images"
        if missing:
            line += f", {missing} files missing"
        print(line)


def main(argv: Sequence[str] | None = None) -> None:
    config = DescribeConfig(**parse_flags(DescribeConfig, __doc__, argv))
    root = Path(config.data).expanduser()
    if not (config.data and root.is_dir()):
        raise UserError(f"--data {config.data or 'ROOT'}: no such folder")
    files, splits = describe(root, config.labels)
    if not config.overwrite:
        require_new(files)
    for file, lines in files.items():
        write_text(file, "\n".join(lines) + "\n")
    print("\n".join(files[root / FILE]))
    print_splits(root, splits)
    check = f"python scripts/data/check_data.py --dataset folder --data {shlex.quote(config.data)}"
    print(f"written: {root / FILE}; after correcting it: {check}")


if __name__ == "__main__":
    run_main(main)
