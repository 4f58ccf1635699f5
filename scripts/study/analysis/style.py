"""One look for all plots, and files that are written or complained about."""

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from cycler import cycler
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from utils.errors import UserError
from utils.types import Rgb

Cell = tuple[np.ndarray, str]  # a picture and its caption

# Okabe and Ito's colours, told apart by colour-blind readers; yellow is left out, too light for lines on white.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")

plt.rcParams.update(
    {
        "axes.prop_cycle": cycler(color=COLORS),
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
        "axes.titlesize": 11,
        "font.size": 9,
        "legend.frameon": False,
    }
)


def color(index: int) -> str:
    return COLORS[index % len(COLORS)]


def marker(index: int) -> str:
    return MARKERS[index % len(MARKERS)]


def line(index: int) -> str:
    """A style that tells apart what has the same colour."""
    return ("-", "--", ":")[index // len(COLORS) % 3]


def percent(value: float | None, digits: int = 2) -> str:
    """A fraction as a percentage; a score that is not defined or was not measured is a dash."""
    return "-" if value is None else f"{100 * value:.{digits}f}"


def spread(values: list[float], sign: str = "") -> str:
    """``mean +- std`` in percent; one value has no spread. ``sign="+"`` for differences."""
    mean = sum(values) / len(values)
    if len(values) == 1:
        return f"{100 * mean:{sign}.2f}"
    std = (sum((v - mean) ** 2 for v in values) / (len(values) - 1)) ** 0.5
    return f"{100 * mean:{sign}.2f} ± {100 * std:.2f}"


def wrap(text: str, width: int = 26) -> str:
    """Lines for the title of a narrow column: broken at blanks, hyphens and underscores, else anywhere."""
    lines = [""]
    for word in re.findall(r"[^\s_-]*[\s_-]?", text):
        if len(lines[-1] + word.rstrip()) > width:
            lines.append("")
        lines[-1] += word
        while len(lines[-1].rstrip()) > width:
            lines[-1:] = lines[-1][:width], lines[-1][width:]
    return "\n".join(line.rstrip() for line in lines if line.strip())


def markdown(header: list[str], rows: list[list[str]]) -> str:
    cells = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in cells) + "\n"


def grid(rows: Sequence[Mapping[str, Cell]], *legends: Sequence[Patch]) -> Figure:
    """Pictures with captions below, in columns with titles, above one or two legends."""
    titles, ratio = list(rows[0]), np.divide(*next(iter(rows[0].values()))[0].shape[:2])
    size = 2.2 * len(titles), (2.2 * ratio + 0.4) * len(rows) + 1
    figure, axes = plt.subplots(len(rows), len(titles), figsize=size, squeeze=False, layout="constrained")
    for line, row in zip(axes, rows, strict=True):
        for axis, (title, (picture, caption)) in zip(line, row.items(), strict=True):
            axis.imshow(picture, interpolation="nearest")
            axis.set(xticks=[], yticks=[])
            axis.set_xlabel(wrap(caption), fontsize=8)
            axis.spines[:].set(visible=True, color="0.8")
            if row is rows[0]:
                axis.set_title(wrap(title), fontsize=9)
    places = ("lower center",) if len(legends) == 1 else ("lower left", "lower right")
    for patches, place in zip(legends, places, strict=True):
        columns = 8 if len(legends) == 1 else 4
        figure.legend(handles=patches, loc=f"outside {place}", ncols=min(columns, len(patches)), fontsize=8)
    return figure


def patches(colors: Iterable[tuple[str, Rgb]]) -> list[Patch]:
    """Entries of a legend."""
    return [Patch(facecolor=np.array(c) / 255, edgecolor="0.6", linewidth=0.5, label=name) for name, c in colors]


def save_figure(figure: Figure, path: Path) -> None:
    write(path, lambda: figure.savefig(path, dpi=130))
    plt.close(figure)


def save_text(text: str, path: Path) -> None:
    write(path, lambda: path.write_text(text, encoding="utf-8"))


def save_json(content: Any, path: Path) -> None:
    save_text(json.dumps(content, indent=1) + "\n", path)


def write(path: Path, action: Callable[[], object]) -> None:
    """Raises UserError when the file or its folder cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        action()
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}") from error
    print(f"wrote {path}")
