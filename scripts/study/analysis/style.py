"""Give all plots one look, and write them."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from cycler import cycler
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from scripts.study.analysis.text import wrap_text
from utils.errors import require_known
from utils.files import write
from utils.types import Rgb

Cell = tuple[np.ndarray, str]  # a picture and its caption

# Okabe and Ito's colours, told apart by colour-blind readers; yellow is left out, too light for lines on white.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LINES = ("-", "--", ":", "-.")

plt.rcParams.update(
    {
        "axes.prop_cycle": cycler(color=COLORS),
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
        "axes.titlesize": 11,
        "font.size": 9,
        "legend.frameon": False,
        "text.parse_math": False,  # a "$" in the name of a run or class is a character
    }
)


def choose_color(index: int) -> str:
    """Return the colour of a group, by its number."""
    return COLORS[index % len(COLORS)]


def choose_marker(index: int) -> str:
    """Return the marker of a group, by its number."""
    return MARKERS[index % len(MARKERS)]


def choose_line_style(index: int) -> str:
    """Return the line style of a curve: curves of one colour differ in it."""
    return LINES[index // len(COLORS) % len(LINES)]


def draw_picture_table(rows: Sequence[Mapping[str, Cell]], *legends: Sequence[Patch]) -> Figure:
    """Draw a table of pictures: rows by column title, each picture with its caption below, above the legends."""
    titles = list(rows[0])
    first, _ = next(iter(rows[0].values()))
    ratio = first.shape[0] / first.shape[1]
    size = (2.2 * len(titles), (2.2 * ratio + 0.4) * len(rows) + 1)
    figure, axes = plt.subplots(len(rows), len(titles), figsize=size, squeeze=False, layout="constrained")
    for axes_of_row, row in zip(axes, rows, strict=True):
        for axis, title in zip(axes_of_row, row, strict=True):
            picture, caption = row[title]
            axis.imshow(picture, interpolation="nearest")
            axis.set(xticks=[], yticks=[])
            axis.set_xlabel(wrap_text(caption), fontsize=8)
            axis.spines[:].set(visible=True, color="0.8")
            if row is rows[0]:
                axis.set_title(wrap_text(title), fontsize=9)
    places = ("lower left", "lower right")
    columns = 4
    if len(legends) == 1:
        places = ("lower center",)
        columns = 8
    for patches, place in zip(legends, places, strict=True):
        figure.legend(handles=patches, loc=f"outside {place}", ncols=min(columns, len(patches)), fontsize=8)
    return figure


def make_legend_entries(colors: Iterable[tuple[str, Rgb]]) -> list[Patch]:
    """Make the entries of a legend."""
    return [Patch(facecolor=np.array(c) / 255, edgecolor="0.6", linewidth=0.5, label=name) for name, c in colors]


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure in the format of the path's suffix, and close it.

    Raises:
        UserError: the file cannot be written, or there is no such format.
    """
    kind = path.suffix[1:].lower() or "png"
    require_known(kind, figure.canvas.get_supported_filetypes(), f"kind of picture for {path}:")
    write(path, lambda file: figure.savefig(file, dpi=130, format=kind))
    plt.close(figure)
    print(f"wrote {path}")
