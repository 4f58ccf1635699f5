"""Check a data set on disk: files, sizes, label ids, class histogram, EXIF orientations, images in two splits.

    python scripts/data/check_data.py --dataset voc --data VOCdevkit/VOC2012
    python scripts/data/check_data.py --dataset cityscapes --data cityscapes --split val --workers 8 --json val.json

Without --split, train and val are checked, and the other splits that are there. Each kind of problem gets one line with
its count and first files, and the exit status is 1. --json lists every file. Warnings name files that a person should
look at.
"""

import json
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from utils.environment import require_packages

require_packages()

import numpy as np
from tqdm import tqdm

from datasets import get_dataset_spec
from datasets.base import MAX_LISTED, DatasetSpec, convert_label, find_missing_files, read_sample
from datasets.files import IMAGE_SUFFIXES, PathPair
from scripts.data.pool import map_in_processes
from utils.descriptors import require_descriptors
from utils.entry import run_main
from utils.errors import UserError, require_known
from utils.files import compute_digest, write_text
from utils.options import option, parse_flags
from utils.pictures import read_orientation
from utils.types import IGNORE_INDEX

# how to recognise problems of one kind, whose messages differ in files and numbers only
SUFFIXES = "|".join(map(re.escape, (*IMAGE_SUFFIXES, ".mat", ".txt")))
# It may hold blanks, but no colon or comma. It goes on to the last suffix, as in photo.jpg.png.
FILE_NAME = re.compile(rf"[^\s:,][^:,]*?({SUFFIXES})(?!\.?[\w\-])", re.IGNORECASE)
NUMBER = re.compile(r"\d+")
# ids or colours with their counts, when each number has become N: "N (N px), [N, N, N] (N px) and N more"
COUNTED_VALUES = re.compile(r"(\[?N(, N, N\])? \(N px\)(, | and N more)?)+")

# EXIF orientations
KEEP_SIDES = (2, 3, 4)  # mirrored, or turned by half a turn
SWAP_SIDES = (5, 6, 7, 8)  # turned by a quarter turn
TURNED_ADVICE = (  # on pictures that have an orientation
    "look at these pictures with their labels; to be sure, save images without an orientation tag, their pixels turned "
    "as the labels are"
)


@dataclass(frozen=True)
class DataCheckConfig:
    """Hold the settings of check_data.py."""

    dataset: str = option("", "data set")
    data: str = option("", "its root folder")
    classes: int | None = option(None, "number of classes, where the data set has variants", minimum=2)
    split: str = option("", "one split instead of all")
    workers: int = option(2, "processes that read files; 0: this one", minimum=0)
    json: str = option("", "file for the result")


@dataclass
class Report:
    """Hold the findings of a split, or of all splits together."""

    images: int = 0
    official: tuple[int, ...] = ()  # the numbers of images that the split officially has
    # how many pixels each class has; at IGNORE_INDEX, how many are ignored: int64 [256]
    pixels: np.ndarray = field(default_factory=lambda: np.zeros(IGNORE_INDEX + 1, np.int64))
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    contents: dict[str, Path] = field(default_factory=dict)  # digest of an image file -> the file

    def add(self, other: "Report") -> None:
        """Add the findings of a split to these. A message that is in several splits is kept once."""
        self.images += other.images
        self.pixels += other.pixels
        self.problems += [problem for problem in other.problems if problem not in self.problems]
        self.warnings += [warning for warning in other.warnings if warning not in self.warnings]

    def as_dict(self, names: tuple[str, ...]) -> dict[str, object]:
        """Return the findings in plain values, for JSON. names: the names of the classes."""
        return {
            "images": self.images,
            "official": self.official,
            "problems": self.problems,
            "warnings": self.warnings,
            "pixels": int(self.pixels.sum()),
            "classes": dict(zip(names, self.pixels.tolist(), strict=False)),
            "ignored": int(self.pixels[IGNORE_INDEX]),
        }


class Finding(NamedTuple):
    """Hold what was found in an image and its label."""

    pixels: np.ndarray  # as in Report; all 0 if there is a problem
    problems: list[str]
    digest: str  # of the image file; empty if it cannot be read
    warnings: Sequence[str] = ()


def check_pair(task: tuple[DatasetSpec, Path, Path | None]) -> Finding:
    """Read one image and its label. Return the pixels of each class, or what is wrong with the files.

    task: the data set, the image file and the label file; None for an image that has no label.
    """
    spec, image_path, label_path = task
    digest = ""
    with suppress(OSError):  # read_sample reads the file as well, and reports such an error
        digest = compute_digest(image_path, blake2b())
    try:
        _, label = read_sample(spec, image_path, label_path)
    except UserError as error:
        problems = list_problems(spec, image_path, label_path, str(error))
        return Finding(np.zeros(IGNORE_INDEX + 1, np.int64), problems, digest)
    pixels = np.bincount(label.ravel(), minlength=IGNORE_INDEX + 1)
    return Finding(pixels, [], digest, doubt_orientation(spec, image_path, label_path, label.shape))


def list_problems(spec: DatasetSpec, image_path: Path, label_path: Path | None, first: str) -> list[str]:
    """Read an image and its label separately, so that no problem hides another. Return each message once.

    first: the message of the error that was raised when both were read.
    """
    problems = [first]
    try:
        spec.read(image_path, None)
    except UserError as error:
        problems.append(str(error))
    if label_path is not None:
        try:
            _, label = spec.read(None, label_path)
            convert_label(spec, label, label_path)
        except UserError as error:
            problems.append(str(error))
    return list(dict.fromkeys(problems))  # a dictionary keeps the order


def doubt_orientation(spec: DatasetSpec, image_path: Path, label_path: Path | None, size: tuple[int, int]) -> list[str]:
    """Return warnings on pictures whose EXIF orientation leaves open which way round the label was drawn.

    size: height and width of the label. An image is turned as its orientation says, unless only the picture as stored
    has the label's size. Where the image has this size both turned and as stored, turning it is a guess. A label is
    never turned.
    """
    if not spec.needs_root or label_path is None:
        return []
    doubts = []
    orientation = read_orientation(image_path)
    height, width = size
    if orientation in KEEP_SIDES or (orientation in SWAP_SIDES and height == width):
        doubts.append(
            f"{image_path} has EXIF orientation {orientation} and is turned; was its label drawn on the turned "
            "picture? The size does not tell"
        )
    if label_path.suffix != ".mat":
        label_orientation = read_orientation(label_path)
        if label_orientation in (*KEEP_SIDES, *SWAP_SIDES):
            doubts.append(f"{label_path} is a label with EXIF orientation {label_orientation}, which is not applied")
    return doubts


def check_split(spec: DatasetSpec, root: Path, split: str, workers: int) -> Report:
    """Read every pair of a split, and report what was found.

    Raises:
        UserError: the split's images cannot be listed, or the system allows too few open files for the workers.
    """
    pairs = spec.pairs(root, split)
    report = Report(len(pairs), spec.splits[split])
    tasks: list[tuple[DatasetSpec, Path, Path | None]] = [(spec, image, label) for image, label in pairs]
    if spec.needs_root and split == "test" and is_unlabelled(pairs):
        tasks = [(spec, image, None) for image, _ in pairs]
    unused = find_labels_without_image(pairs, list_all_pairs(spec, root))
    report.problems += [f"label without image: {path}" for path in unused]
    findings = tqdm(map_in_processes(check_pair, tasks, workers), split, len(tasks), disable=None)
    for (image, _), found in zip(pairs, findings, strict=True):
        report.pixels += found.pixels
        report.problems += found.problems
        report.warnings += found.warnings
        if found.digest:
            report.contents[found.digest] = image
    if not pairs:
        report.problems.append(f"{root} has no images for split {split!r}")
    absent = [name for name, count in zip(spec.names, report.pixels, strict=False) if not count]
    if split == "train" and absent and report.pixels.any():
        report.problems.append(f"no pixel in train is of class {', '.join(absent)}")
    return report


def is_unlabelled(pairs: list[PathPair]) -> bool:
    """Return whether all images are there and no label is, as in a test split whose labels are not published."""
    labels = [label for _, label in pairs]
    return find_missing_files(pairs) == labels


def list_all_pairs(spec: DatasetSpec, root: Path) -> list[PathPair]:
    """Return the images and labels of all splits that can be listed."""
    pairs = []
    for split in spec.splits:
        with suppress(UserError):  # such a split is reported when it is checked
            pairs += spec.pairs(root, split)
    return pairs


def find_labels_without_image(pairs: list[PathPair], all_pairs: list[PathPair]) -> list[Path]:
    """Find labels that are named like those of the pairs and have no image where it would be.

    all_pairs: those of all splits. Several splits or folders of images may keep their labels in one folder; then a
    label needs an image in one of them.
    """
    examples: dict[tuple[Path, Path], PathPair] = {}
    for image, label in all_pairs:
        examples[image.parent, label.parent] = (image, label)
    unused: dict[Path, set[Path]] = {}  # folder of labels -> those that have no image in any folder of images
    for image, label in examples.values():
        if image.parent.is_dir() and label.parent.is_dir():
            found = set(find_labels_named_like(image, label))
            unused[label.parent] = unused.get(label.parent, found) & found
    folders = {label.parent for _, label in pairs}
    return sorted(path for folder in folders for path in unused.get(folder, ()))


def find_labels_named_like(image: Path, label: Path) -> Iterator[Path]:
    """Find labels beside ``label`` that have no image beside ``image``.

    The pair shows how the name of a label follows from that of its image: both have a part in common, and something
    before and after it that is the same for all images, or for all labels.
    """
    shared = find_shared_part(image.stem, label.name)
    if not shared:
        return
    image_start, _, image_end = image.stem.partition(shared)
    label_start, _, label_end = label.name.partition(shared)

    def is_label(path: Path) -> bool:
        return path.name.startswith(label_start) and path.name.endswith(label_end)

    pictures = [path for path in image.parent.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES]
    if image.parent == label.parent:  # a label there is no image, whatever its suffix
        pictures = [path for path in pictures if not is_label(path)]
    stems = {path.stem for path in pictures}
    for path in sorted(label.parent.iterdir()):
        is_hidden = path.name.startswith(".")
        base = path.name.removeprefix(label_start).removesuffix(label_end)
        has_image = image_start + base + image_end in stems
        if is_label(path) and not is_hidden and not has_image:
            yield path


def find_shared_part(image_stem: str, label_name: str) -> str:
    """Return the letters that both names begin with.

    If there are none, as in img_01 and mask_01.png, return the longest part that the names have in common.
    """
    blocks = SequenceMatcher(None, image_stem, label_name, autojunk=False).get_matching_blocks()
    first = blocks[0]
    if (first.a, first.b) == (0, 0) and first.size:
        return image_stem[: first.size]
    longest = max(blocks, key=lambda block: block.size)
    return image_stem[longest.a : longest.a + longest.size]


def check(spec: DatasetSpec, root: Path, split: str, workers: int) -> dict[str, Report]:
    """Report on each split, or on the one that is given. Where ``split`` is "", all splits are read.

    train and val must be there; other splits are left out if they cannot be read. Images that are in the training split
    and in another are problems of the other.
    """
    reports: dict[str, Report] = {}
    for name in [split] if split else spec.splits:
        try:
            reports[name] = check_split(spec, root, name, workers)
        except UserError as error:
            if split or name in ("train", "val"):
                reports[name] = Report(0, spec.splits[name], problems=[str(error)])
    if "train" in reports:
        train = reports["train"].contents
        for name, report in reports.items():
            if name != "train":
                report.problems += list_images_in_train(name, report.contents, train)
    return reports


def list_images_in_train(split: str, contents: dict[str, Path], train: dict[str, Path]) -> list[str]:
    """Return a message for each image of a split that is in the training split, too.

    contents, train: digest of an image file -> the file, of both splits.
    """
    shared = sorted((contents[digest], train[digest]) for digest in train.keys() & contents.keys())
    return [f"the same image in {split} and train: {one} and {other}" for one, other in shared]


def describe_kinds(problems: list[str]) -> Iterator[str]:
    """Yield a line for each kind of problem: its first message, how many there are, the next files that have it."""
    kinds: dict[str, list[str]] = {}
    for problem in problems:
        kind = FILE_NAME.sub("FILE", problem)
        kind = NUMBER.sub("N", kind)
        kind = COUNTED_VALUES.sub("VALUES", kind)
        kinds.setdefault(kind, []).append(problem)
    for first, *others in kinds.values():
        if not others:
            yield first
            continue
        count = f"{len(others) + 1} like this"
        matches = [FILE_NAME.search(problem) for problem in others[:MAX_LISTED]]
        files = [match[0] for match in matches if match]
        if files:
            count += f"; also {', '.join(files)}"
        if files and len(others) > MAX_LISTED:
            count += ", ..."
        yield f"{first} ({count})"


def print_class_shares(total: Report, spec: DatasetSpec) -> None:
    """Print how many pixels each class has, and how many are ignored."""
    names = (*spec.names, "ignored")
    counts = (*total.pixels[: len(spec.names)], total.pixels[IGNORE_INDEX])
    width = max(map(len, names))
    for name, count in zip(names, counts, strict=True):
        print(f"  {name:<{width}} {count:>16,} {100 * count / max(total.pixels.sum(), 1):7.3f} %")


def print_summary(name: str, report: Report) -> None:
    """Print how many images and problems a split has, and the official number of images if that differs."""
    differs = ""
    if report.official and report.images not in report.official:
        differs = f" (official: {' or '.join(map(str, report.official))})"
    print(f"{name}: {report.images} images{differs}, {len(report.problems)} problems")


def print_warnings(warnings: Sequence[str], advice: str = "") -> None:
    """Print a line for each warning. If there is any, print the advice on what to do about them, too."""
    for line in warnings:
        print(f"warning: {line}")
    if warnings and advice:
        print(advice)


def main(argv: Sequence[str] | None = None) -> None:
    config = DataCheckConfig(**parse_flags(DataCheckConfig, __doc__, argv))
    if not config.dataset:
        raise UserError("--dataset NAME is missing")
    root = Path(config.data).expanduser()
    spec = get_dataset_spec(config.dataset, config.data, config.classes)
    if config.split:
        require_known(config.split, spec.splits, f"split of {config.dataset}")
    if spec.needs_root and not (config.data and root.is_dir()):
        raise UserError(f"--data {config.data or 'ROOT'}: no such folder")
    require_descriptors(config.workers)  # here, because ``check`` reports a UserError as a problem of the data
    reports = check(spec, root, config.split, config.workers)
    total = Report()
    for name, report in reports.items():
        total.add(report)
        print_summary(name, report)
    print_class_shares(total, spec)
    for line in describe_kinds(total.problems):
        print(f"problem: {line}")
    print_warnings(total.warnings, advice=TURNED_ADVICE)
    if not config.split and "train" not in spec.splits:
        warning = f"{root} has no train split (only {', '.join(spec.splits)}): nothing can be trained on it"
        print_warnings([warning])
        total.warnings.append(warning)
    if config.json:
        result = {"dataset": config.dataset, "data": config.data, "split": config.split or None}
        result |= total.as_dict(spec.names)
        result["splits"] = {name: report.as_dict(spec.names) for name, report in reports.items()}
        write_text(Path(config.json).expanduser(), json.dumps(result, indent=1) + "\n")
    if total.problems:
        raise SystemExit(1)


if __name__ == "__main__":
    run_main(main)
