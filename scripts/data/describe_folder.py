"""Write the dataset.yaml of an unknown folder of images and labels, from what is found there, to be corrected by hand.

    python scripts/data/describe_folder.py --data my_photos

It looks for folders (or one folder) of images and labels that go by the same names, for splits in the names of
folders or in lists, and for the ids or colours of the labels, with their counts; class names come from a list beside
them, such as labelmap.txt or class_dict.csv. Without a validation split every fifth training image is taken out for
it, by two lists that are written. What was guessed is marked in the file. See datasets/folder.py for the keys.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import yaml

from datasets import dataset_spec
from datasets.base import missing_files
from datasets.folder import FILE
from datasets.ids import MAX_CLASSES
from scripts.data.describing.labels import Content, Value, look_into, names_in
from scripts.data.describing.layout import Match, find_matches
from scripts.data.describing.splits import find_splits
from utils.errors import UserError, run_main
from utils.options import option, parse_flags


@dataclass(frozen=True)
class DescribeConfig:
    data: str = option("", "root folder of the images and labels")
    labels: int = option(1000, "label files to look into, spread evenly; 0: all", minimum=0)
    overwrite: bool = option(False, "replace a dataset.yaml (and lists) that are there")


def yaml_text(splits: dict[str, dict[str, str]], match: Match, content: Content, root: Path, remarks: list[str]) -> str:
    """dataset.yaml with a comment on every value that was guessed or counted.

    Raises:
        UserError: fewer than two ids or colours, or more than there can be classes.
    """
    names, source = names_in(root, content.colored)
    kind = "colours" if content.colored else "ids"
    strays, ignored = content.strays(), content.ignored(names)
    found = [value for value in sorted(content.pixels) if value not in (*names, *ignored, *strays)]
    values = [*(value for value in names if value not in ignored), *found]  # a list's order is its author's
    if not 2 <= len(values) <= MAX_CLASSES:
        seen = ", ".join(_flow(value) for value, _ in content.pixels.most_common(8))
        few = "a class alone cannot be learnt" if len(values) < 2 else "instances, depth, or a JPEG's blended colours?"
        raise UserError(
            f"{match.labels.folder} holds {len(content.pixels)} different {kind} (the most frequent: {seen}): {few}"
        )
    called = {v: names.get(v) or _invented(v, values) for v in values}
    if source:
        remarks.append(f"class names from {source.relative_to(root)}")
    if strays:
        pixels = sum(content.pixels[v] for v in strays)
        remarks.append(
            f"{len(strays)} rare colours on {pixels} pixels are no class and will be refused: blended edges?"
        )
    if content.transparent:
        remarks.append(f"{content.transparent} labels have transparent pixels: the colour stored there counts")

    lines = [
        f"# Written by scripts/data/describe_folder.py from {content.looked_into} label files. Correct what is wrong."
    ]
    lines += [f"# {remark}" for remark in remarks]
    lines += ["splits:", *(f"  {name}: {_flow(entry)}" for name, entry in splits.items())]
    suffixes = {"label_suffix": (match.labels.ending, ".png"), "image_suffix": (match.images.ending, "")}
    lines += [f"{key}: {_flow(value)}" for key, (value, default) in suffixes.items() if value != default]
    if content.colored:
        lines += ["colors:", *(f"  {_flow(called[v])}: {_flow(v)}{_count(content, v)}" for v in values)]
    else:
        lines += [
            "names:",
            *(f"  - {_flow(called[v])}  # id {v}{_count(content, v).replace('  # ', ': ')}" for v in values),
        ]
        if values != list(range(len(values))):
            lines.append(f"ids: {_flow({v: k for k, v in enumerate(values)})}  # id in the files: class")
        colors = [content.palette.get(v) for v in values]
        if None not in colors and len({c for c in colors if c and len(set(c)) > 1}) > 1:
            lines.append(f"palette: {_flow(colors)}  # of the label files")
    why = "" if not ignored else "  # a guess" if not names.keys() & set(ignored) else "  # by their names"
    lines += [f"ignore: {_flow(ignored)}{why}", *(f"  # {_flow(v)}{_count(content, v)}" for v in ignored)]
    return "\n".join(lines) + "\n"


def _invented(value: Value, values: list[Value]) -> str:
    if value == (0, 0, 0) or (value == 0 and len(values) == 2):
        return "background"
    if len(values) == 2 and {0, (0, 0, 0)} & set(values):
        return "foreground"
    return f"class_{value}" if isinstance(value, int) else f"class_{bytes(value).hex()}"


def _count(content: Content, value: Value) -> str:
    if value not in content.pixels:
        return "  # in no label that was looked into"
    return f"  # {content.share(value):.2%} of the pixels, in {content.files[value]} of {content.looked_into} files"


def _flow(value: object) -> str:
    """One line of yaml."""
    plain = [list(item) if isinstance(item, tuple) else item for item in value] if isinstance(value, list) else value
    text = yaml.safe_dump(
        list(plain) if isinstance(plain, tuple) else plain,
        default_flow_style=True,
        width=10**9,
        sort_keys=False,
        allow_unicode=True,
    )
    return text.removesuffix("\n").removesuffix("\n...")


def main() -> None:
    config = DescribeConfig(**parse_flags(DescribeConfig, __doc__))
    root = Path(config.data).expanduser()
    if not (config.data and root.is_dir()):
        raise UserError(f"--data {config.data or 'ROOT'}: no such folder")
    path = root / FILE
    matches, others = find_matches(root)
    remarks = [f"not taken: {other}" for other in others]
    content = look_into([label for match in matches for _, label in match.pairs], config.labels)
    splits, more, lists = find_splits(root, matches)
    text = yaml_text(splits, matches[0], content, root, remarks + more)
    files = {path: text, **{root / name: "\n".join(names) + "\n" for name, names in lists.items()}}
    for file in files if not config.overwrite else ():
        if file.exists():
            raise UserError(f"{file} exists: --overwrite replaces it")
    for file, lines in files.items():
        try:
            file.write_text(lines, encoding="utf-8")
        except OSError as error:
            raise UserError(f"{file} cannot be written: {error.strerror}") from error
    print(text, end="")
    spec = dataset_spec("folder", str(root))
    for split in splits:
        pairs = spec.pairs(root, split)
        missing = len(missing_files(pairs))
        print(f"{split}: {len(pairs)} images" + (f", {missing} files missing" if missing else ""))
    print(
        f"written: {path}; after correcting it: python scripts/data/check_data.py --dataset folder --data {config.data}"
    )


if __name__ == "__main__":
    run_main(main)
