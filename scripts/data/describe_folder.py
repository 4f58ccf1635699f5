"""Write the dataset.yaml of an unknown folder of images and labels, from what is found there, to be corrected by hand.

    python scripts/data/describe_folder.py --data my_photos

It looks for folders (or one folder) of images and labels that go by the same names, for splits in the names of
folders or in lists, and for the ids or colours of the labels, with their counts. Without a validation split every fifth
training image is taken out for it, by two lists that are written. See datasets/folder.py for the keys.
"""

import shlex
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import yaml
from tqdm import tqdm

from datasets import dataset_spec
from datasets.base import SHOWN, missing_files
from datasets.files import read_label
from datasets.folder import FILE
from datasets.ids import MAX_CLASSES, color_codes
from scripts.data.folder_layout import find_matches, pictures
from scripts.data.folder_splits import find_splits
from utils.errors import UserError, run_main
from utils.files import write_text
from utils.options import option, parse_flags
from utils.types import IGNORE_INDEX, Rgb

Value = int | Rgb
BLACK, VOID = (0, 0, 0), (224, 224, 192)  # VOID: VOC's outlines
SMALL = 0.15  # share of pixels up to which black is probably "void" rather than a class


@dataclass(frozen=True)
class DescribeConfig:
    data: str = option("", "root folder of the images and labels")
    labels: int = option(1000, "label files to look into, spread evenly; 0: all", minimum=0)
    overwrite: bool = option(False, "replace a dataset.yaml (and lists) that are there")


class Content:
    """What label files hold. ``pixels`` and ``files``: counts by id or RGB colour."""

    def __init__(self, labels: Sequence[Path]) -> None:
        """Raises UserError when a file cannot be read."""
        self.pixels: Counter[Value] = Counter()
        self.files: Counter[Value] = Counter()
        self.looked_into = len(labels)
        self.colored = any(read_label(path, colored=True).ndim == 3 for path in labels)
        for path in tqdm(labels, "labels", disable=None):
            array = read_label(path, indexed=not self.colored, colored=self.colored)
            codes, counts = np.unique(color_codes(array) if self.colored else array, return_counts=True)
            values = [(c & 255, c >> 8 & 255, c >> 16) if self.colored else c for c in codes.tolist()]
            self.pixels.update(dict(zip(values, counts.tolist(), strict=True)))
            self.files.update(values)

    def ignored(self) -> list[Value]:
        """What has probably no class."""
        void = {VOID, BLACK} if self.pixels[BLACK] < SMALL * self.pixels.total() else {VOID}
        usual = void if self.colored else {IGNORE_INDEX}
        return sorted(usual & self.pixels.keys()) if len(self.pixels) > 2 else []

    def seen(self, value: Value) -> str:
        share = self.pixels[value] / self.pixels.total()
        return f"{share:.2%} of the pixels, in {self.files[value]} of {self.looked_into} files"


def flow(value: object) -> str:
    """One line of yaml."""
    plain = list(value) if isinstance(value, tuple) else value
    text = yaml.safe_dump(plain, default_flow_style=True, width=10**9, sort_keys=False, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")


def classes_text(content: Content, folder: Path) -> list[str]:
    """The lines of dataset.yaml on classes, with a comment on every value.

    Raises UserError: fewer than two ids or colours, more than there can be classes, ids beyond 16 bits.
    """
    ignored = content.ignored()
    values = sorted(content.pixels.keys() - set(ignored))
    if not 2 <= len(values) <= MAX_CLASSES or (not content.colored and values[-1] >= 2**16):
        kind = "colours" if content.colored else "ids"
        seen = ", ".join(flow(value) for value, _ in content.pixels.most_common(8))
        few = "a class alone cannot be learnt" if len(values) < 2 else "instances, depth, or a JPEG's blended colours?"
        raise UserError(f"{folder} holds {len(content.pixels)} different {kind} (the most frequent: {seen}): {few}")
    if content.colored:
        lines = ["colors:"]
        lines += [f"  class_{bytes(v).hex()}: {flow(v)}  # {content.seen(v)}" for v in values]
    else:
        lines = ["names:", *(f"  - class_{v}  # id {v}: {content.seen(v)}" for v in values)]
        if values != list(range(len(values))):
            lines.append(f"ids: {flow({value: k for k, value in enumerate(values)})}  # id in the files: class")
    lines.append(f"ignore: {flow([list(v) if isinstance(v, tuple) else v for v in ignored])}  # a guess")
    return [*lines, *(f"  # {flow(v)}: {content.seen(v)}" for v in ignored)]


def main(argv: Sequence[str] | None = None) -> None:
    config = DescribeConfig(**parse_flags(DescribeConfig, __doc__, argv))
    root = Path(config.data).expanduser()
    if not (config.data and root.is_dir()):
        raise UserError(f"--data {config.data or 'ROOT'}: no such folder")
    matches = find_matches(root)
    first = matches[0]
    labels = [match.labels / f"{base}{match.label_suffix}" for match in matches for base in match.bases]
    count = min(config.labels or len(labels), len(labels))
    content = Content([labels[i * len(labels) // count] for i in range(count)])
    classes, remarks = classes_text(content, first.labels), []
    splits, lists = find_splits(root, matches, remarks)
    used = {folder for match in matches for folder in (match.images, match.labels)}
    if unused := [str(folder.relative_to(root)) for folder, _ in pictures(root) if folder not in used]:
        more = f" and {len(unused) - SHOWN} more" if len(unused) > SHOWN else ""
        remarks.append(f"not used, neither images with labels nor these: {', '.join(unused[:SHOWN])}{more}")

    lines = [f"# Written by scripts/data/describe_folder.py from {count} label files. Correct what is wrong."]
    lines += [*(f"# {remark}" for remark in remarks), "splits:"]
    lines += [f"  {name}: {flow(splits[name])}" for name in sorted(splits, key=("train", "val", "test").index)]
    suffixes = {"label_suffix": (first.label_suffix, ".png"), "image_suffix": (first.image_suffix, "")}
    lines += [f"{key}: {flow(suffix)}" for key, (suffix, usual) in suffixes.items() if suffix != usual]
    files = {root / FILE: [*lines, *classes], **{root / name: names for name, names in lists.items()}}
    for file in files if not config.overwrite else ():
        if file.exists():
            raise UserError(f"{file} exists: --overwrite replaces it")
    for file, content_lines in files.items():
        write_text(file, "\n".join(content_lines) + "\n")
    print("\n".join(files[root / FILE]))
    spec = dataset_spec("folder", str(root))
    for split in splits:
        pairs = spec.pairs(root, split)
        missing = len(missing_files(pairs))
        print(f"{split}: {len(pairs)} images" + (f", {missing} files missing" if missing else ""))
    check = f"python scripts/data/check_data.py --dataset folder --data {shlex.quote(config.data)}"
    print(f"written: {root / FILE}; after correcting it: {check}")


if __name__ == "__main__":
    run_main(main)
