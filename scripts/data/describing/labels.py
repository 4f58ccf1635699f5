"""What label files hold: ids or colours with counts, what their classes may be called, which are probably ignored."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from datasets.files import read_label
from datasets.ids import color_codes
from utils.errors import UserError
from utils.types import Rgb

Value = int | Rgb
NAME_FILES = (".txt", ".csv")
MAX_NAME_FILE = 64_000  # bytes
VOID = {(224, 224, 192), (255, 255, 255)}  # VOC's outlines; white is paper
SMALL = 0.15  # share of pixels up to which black is probably "void" rather than "background"
NO_CLASS = r"void|various|ignored?|unlabell?ed|unknown|un(classified|defined)|none|other/?void"
STRAY = 1e-4  # share of pixels below which a colour is probably a blend of two


@dataclass
class Content:
    """``pixels`` and ``files``: counts by id or RGB colour; ``palette``: colour by id, of palette files."""

    colored: bool
    looked_into: int
    pixels: Counter[Value] = field(default_factory=Counter)
    files: Counter[Value] = field(default_factory=Counter)
    palette: dict[int, Rgb] = field(default_factory=dict)
    transparent: int = 0  # files with pixels that are not opaque

    def share(self, value: Value) -> float:
        return self.pixels[value] / self.pixels.total()

    def strays(self) -> list[Value]:
        """Colours of so few pixels that they are probably blends, where there are many colours."""
        if not self.colored or len(self.pixels) <= 32:
            return []
        return sorted(value for value in self.pixels if self.share(value) < STRAY)

    def ignored(self, names: dict[Value, str]) -> list[Value]:
        """What has probably no class: by its name in the list, else by the usual values."""
        by_name = {value for value, name in names.items() if re.fullmatch(NO_CLASS, name.lower())}
        several = len(self.pixels) - len(self.strays()) > (3 if self.colored else 2)
        usual = {*VOID, *([(0, 0, 0)] if self.share((0, 0, 0)) < SMALL else [])} if self.colored else {255}
        return sorted(by_name | ((usual & self.pixels.keys()) - names.keys() if several else set()))


def look_into(labels: Sequence[Path], limit: int) -> Content:
    """Count what ``limit`` label files hold, spread evenly over all of them (0: all files).

    Raises:
        UserError: a file that cannot be read.
    """
    chosen = [labels[i * len(labels) // limit] for i in range(limit)] if 0 < limit < len(labels) else labels
    colored = any(_has_colors(path) for path in chosen)
    content = Content(colored, len(chosen))
    for path in tqdm(chosen, "labels", disable=None):
        array = read_label(path, indexed=not colored, colored=colored)
        if colored:
            content.transparent += bool(array[..., 3].min() < 255)
            array = color_codes(array)
        elif not content.palette:
            content.palette = _palette(path)
        for code, count in zip(*(x.tolist() for x in np.unique(array, return_counts=True)), strict=True):
            value = (code & 255, code >> 8 & 255, code >> 16) if colored else code
            content.pixels[value] += count
            content.files[value] += 1
    return content


def names_in(root: Path, colored: bool) -> tuple[dict[Value, str], Path | None]:
    """Class names from a list that lies in ``root`` or one folder below it, as annotation tools write them.

    Read are lines of a name and a colour in any order and with any marks between them (CVAT's labelmap.txt, CamVid's
    label_colors.txt, class_dict.csv), or of an id and a name (Roboflow's _classes.csv).
    """
    files = sorted(p for pattern in ("*", "*/*") for p in root.glob(pattern) if p.suffix.lower() in NAME_FILES)
    for path in files:
        if path.is_file() and path.stat().st_size <= MAX_NAME_FILE:
            found = dict(_entries(path, colored))
            if len(found) >= 2:
                return found, path
    return {}, None


def _entries(path: Path, colored: bool) -> Iterator[tuple[Value, str]]:
    """Nothing where a line other than the first is of another form."""
    entries = []
    lines = [line.strip() for line in path.read_text(encoding="utf-8-sig", errors="replace").splitlines()]
    for number, line in enumerate(line for line in lines if line and not line.startswith("#")):
        values = [int(word) for word in re.findall(r"(?<![\w.])\d+(?![\w.])", line)]
        name = " ".join(re.sub(r"(?<![\w.])\d+(?![\w.])|[^\w\s/-]", " ", line).split())
        if len(values) == (3 if colored else 1) and name and max(values) < 2**16:
            entries.append((tuple(values) if colored else values[0], name))
        elif number:
            return
    yield from entries if len({name for _, name in entries}) == len(entries) else ()


def _has_colors(path: Path) -> bool:
    try:
        with Image.open(path) as file:
            return file.mode in ("RGB", "RGBA", "LA", "PA")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error


def _palette(path: Path) -> dict[int, Rgb]:
    with Image.open(path) as file:
        flat = file.getpalette() or [] if file.mode == "P" else []
    return {k: tuple(flat[3 * k : 3 * k + 3]) for k in range(len(flat) // 3)}
