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

from datasets import choose_evenly, get_dataset_spec
from datasets.base import MAX_LISTED, find_missing_files
from datasets.files import walk_images
from datasets.folder import FILE
from datasets.folder_pairs import NameForm
from datasets.ids import ID_COUNT, MAX_CLASSES
from scripts.data.folder_layout import find_matches
from scripts.data.folder_matcher import Match
from scripts.data.folder_splits import find_or_make_splits, make_list_name
from scripts.data.label_values import LabelValues, Value
from utils.entry import run_main
from utils.errors import UserError
from utils.files import write_text
from utils.options import option, parse_flags
from utils.types import IGNORE_INDEX, Rgb

SPLITS = ("train", "val", "test")  # in the order in which dataset.yaml has them
HEADER = "# Written by scripts/data/describe_folder.py"


@dataclass(frozen=True)
class DescribeConfig:
    """Hold the settings of describe_folder.py."""

    data: str = option("", "root folder of the images and labels")
    labels: int = option(1000, "label files to look into, spread evenly; 0: all", minimum=0)
    overwrite: bool = option(False, "replace a dataset.yaml (and lists) that are there")


def to_yaml(value: object) -> str:
    """Return a value as one line of yaml."""
    plain = list(value) if isinstance(value, tuple) else value
    text = yaml.safe_dump(plain, default_flow_style=True, width=10**9, sort_keys=False, allow_unicode=True)
    # yaml ends a lone value with a line of three dots
    return text.removesuffix("\n").removesuffix("\n...")


def list_first(texts: Sequence[str]) -> str:
    """Join the first few texts by commas, and say how many more there are."""
    listed = ", ".join(texts[:MAX_LISTED])
    if len(texts) > MAX_LISTED:
        listed += f" and {len(texts) - MAX_LISTED} more"
    return listed


def list_strays(values: LabelValues) -> str:
    """Return the first stray ids or colours, and how many more there are."""
    return list_first([to_yaml(value) for value in values.strays])


def describe_classes(values: LabelValues, folder: Path) -> list[str]:
    """Return the lines of dataset.yaml on classes, with a comment on every value.

    folder: the folder of the labels, for messages.

    Raises:
        UserError: there are fewer than two classes, more than there can be, or ids beyond 16 bits.
    """
    unlabelled = values.find_unlabelled()
    ignored = sorted([*unlabelled, *values.strays])
    classes = sorted(values.pixels.keys() - set(ignored))
    require_usable(values, classes, folder)
    lines = describe_colors(values, classes) if values.colored else describe_ids(values, classes)
    ignored_lists = [list(value) if isinstance(value, tuple) else value for value in ignored]
    lines.append(f"ignore: {to_yaml(ignored_lists)}  # a guess")
    for value in unlabelled:
        lines.append(f"  # {to_yaml(value)}: {values.describe(value)}")
    if values.strays:
        lines.append(f"  # {list_strays(values)}: stray values, {values.describe(*values.strays)}")
    return lines


def require_usable(values: LabelValues, classes: Sequence[Value], folder: Path) -> None:
    """Check that the labels of a folder can be labels of classes.

    classes: the ids or colours that would be classes.

    Raises:
        UserError: there are fewer than two classes, more than there can be, or ids beyond 16 bits.
    """
    too_few = len(classes) < 2
    too_many = max(len(classes), len(values.strays)) > MAX_CLASSES
    too_large = not values.colored and max(values.pixels) >= ID_COUNT
    if too_few or too_many or too_large:
        kind = "colours" if values.colored else "ids"
        seen = ", ".join(to_yaml(value) for value, _ in values.pixels.most_common(8))
        why = "a class alone cannot be learnt" if too_few else "instances, depth, or a JPEG's blended colours?"
        raise UserError(f"{folder} holds {len(values.pixels)} different {kind} (the most frequent: {seen}): {why}")


def describe_colors(values: LabelValues, colors: Sequence[Rgb]) -> list[str]:
    """Return the lines on classes that are drawn in colours. Each class is called after its colour in hex."""
    lines = ["colors:"]
    for color in colors:
        lines.append(f"  class_{bytes(color).hex()}: {to_yaml(color)}  # {values.describe(color)}")
    return lines


def describe_ids(values: LabelValues, ids: Sequence[int]) -> list[str]:
    """Return the lines on classes that are given by ids. Each class is called after its id."""
    lines = ["names:"]
    for value in ids:
        lines.append(f"  - class_{value}  # id {value}: {values.describe(value)}")
    if list(ids) != list(range(len(ids))):
        id_to_class = {value: k for k, value in enumerate(ids)}
        lines.append(f"ids: {to_yaml(id_to_class)}  # id in the files: class")
    return lines


def remark_on_values(values: LabelValues) -> list[str]:
    """Return remarks on the values that a person should look at, because they may mean something else."""
    remarks = []
    if values.strays:
        remarks.append(
            f"stray values, at the edges of others as in a mask that was resized: {list_strays(values)}; they "
            "are ignored. Resize masks by the nearest neighbour"
        )
    if not values.colored and IGNORE_INDEX not in values.find_unlabelled() and values.pixels[IGNORE_INDEX]:
        seen = values.describe(IGNORE_INDEX)
        remarks.append(f"{IGNORE_INDEX} is taken for a class ({seen}): if it means unlabelled, write it under ignore")
    return remarks


def find_own_lists(root: Path) -> set[Path]:
    """Find the lists that an earlier call of this script wrote: those that its dataset.yaml names."""
    try:
        text = (root / FILE).read_text(encoding="utf-8", errors="replace")
    except OSError:  # there is no dataset.yaml yet
        return set()
    if not text.startswith(HEADER):
        return set()
    names = [make_list_name(split) for split in SPLITS]
    return {root / name for name in names if name in text}


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
    labels = choose_labels(matches, most_labels)
    values = LabelValues(labels)
    classes = describe_classes(values, first.labels)
    remarks = remark_on_values(values)
    splits, lists = find_or_make_splits(root, matches, find_own_lists(root), remarks)
    remarks += remark_on_unused_folders(root, matches)

    lines = [f"{HEADER} from {len(labels)} label files. Correct what is wrong."]
    lines += [f"# {remark}" for remark in remarks]
    lines.append("splits:")
    for name in SPLITS:
        if name in splits:
            lines.append(f"  {name}: {to_yaml(splits[name])}")
    lines += describe_name_form(first.form)
    files = {root / FILE: [*lines, *classes]}
    for name, image_names in lists.items():
        files[root / name] = image_names
    return Description(files, list(splits))


def choose_labels(matches: Sequence[Match], most: int) -> list[Path]:
    """Return at most ``most`` label files of all folders, spread evenly; all of them where ``most`` is 0."""
    labels = [match.labels / name for match in matches for name in match.label_names]
    return [labels[i] for i in choose_evenly(len(labels), most or len(labels))]


def describe_name_form(form: NameForm) -> list[str]:
    """Return the lines on how the names of images and labels differ. Parts that are as usual need no line."""
    usual = NameForm()._asdict()
    lines = []
    for key, part in form._asdict().items():
        if part != usual[key]:
            lines.append(f"{key}: {to_yaml(part)}")
    return lines


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
    """Return a remark on the folders of pictures that are neither images with labels nor these labels, if any."""
    used: set[Path] = set()
    for match in matches:
        used |= {match.images, match.labels}
    unused = [str(folder.relative_to(root)) for folder, _ in walk_images(root) if folder not in used]
    if not unused:
        return []
    return [f"not used, neither images with labels nor these: {list_first(unused)}"]


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
