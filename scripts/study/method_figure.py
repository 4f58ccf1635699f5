"""The method in one picture: how the label-assisted teacher is trained, and how it teaches an image-only student.

    python scripts/study/method_figure.py --output figures/method.png

Images, labels and noised labels are real ones of the built-in data; networks are boxes.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from utils.environment import require_packages

require_packages()

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from datasets.toy import TOY, draw_sample
from models.label_noise import LabelNoise
from scripts.study.analysis import style
from utils.colors import colorize, paint_diverging
from utils.entry import run_main
from utils.options import option, parse_flags
from utils.seeding import RowGenerator

# colours of what is drawn
TEACHER = "#0072B2"
STUDENT = "#009E73"
LOSS = "#D55E00"
NOISE = "#7A5195"
# size of each panel, in the units of its axis
WIDTH = 12.0
HEIGHT = 4.6


@dataclass(frozen=True)
class MethodFigureConfig:
    """Hold the settings of method_figure.py."""

    output: str = option("figures/method.png", "file for the picture")


def draw_picture(axis: Axes, pixels: np.ndarray, x: float, y: float, caption: str, layer: int = 2) -> None:
    """Draw a picture centred at (x, y), with its caption below."""
    place = (x - 0.8, x + 0.8, y - 0.6, y + 0.6)
    axis.imshow(pixels, extent=place, interpolation="nearest", aspect="auto", zorder=layer)
    axis.add_patch(plt.Rectangle((x - 0.8, y - 0.6), 1.6, 1.2, fill=False, linewidth=0.8, zorder=layer))
    axis.text(x, y - 0.7, caption, ha="center", va="top", fontsize=9.5)


def draw_network(axis: Axes, y: float, title: str, output: str, color: str, filled: bool = True) -> None:
    """Draw a network as a box with an arrow from its left and one to its ``output``."""
    draw_arrow(axis, (5.45, y), (6.55, y))
    frame = {"boxstyle": "round,pad=1.1", "facecolor": color if filled else "white", "edgecolor": color}
    text = {"color": "white" if filled else color, "fontsize": 10.5, "linespacing": 1.3}
    axis.text(7.35, y, title, ha="center", va="center", bbox=frame | {"linewidth": 1.6}, **text)
    draw_arrow(axis, (8.15, y), (8.85, y))
    axis.text(9.1, y, output, ha="center", va="center", fontsize=14)


def draw_arrow(
    axis: Axes, start: tuple[float, float], end: tuple[float, float], color: str = "black", **style: Any
) -> None:
    """Draw an arrow from ``start`` to ``end``. style: properties of the arrow that differ from the usual ones."""
    style = {"arrowstyle": "-|>", "linewidth": 1.5, "mutation_scale": 12, "shrinkA": 0, "shrinkB": 0} | style
    axis.annotate("", end, start, arrowprops=style | {"color": color}, zorder=1)


def draw_teacher_input(axis: Axes, image: np.ndarray, plane: np.ndarray, y: float, caption: str) -> None:
    """Draw the input of an assisted teacher: the image, and the noised label in front of it."""
    draw_picture(axis, image, 4.08, y + 0.2, "")
    draw_picture(axis, plane, 4.52, y - 0.2, caption, layer=3)


def prepare_panel(axis: Axes, title: str) -> None:
    """Set the size of a panel, hide its axes, and write its title."""
    axis.set(xlim=(0, WIDTH), ylim=(0, HEIGHT), aspect="equal")
    axis.axis("off")
    axis.text(0.05, HEIGHT - 0.02, title, fontsize=12, fontweight="bold", va="top")


def draw_teacher_panel(axis: Axes, image: np.ndarray, label: np.ndarray, planes: list[np.ndarray]) -> None:
    """Draw how the teacher is trained: on two noised copies of the label, with a consistency loss between them."""
    prepare_panel(axis, "(a) Teacher: one network, two noised copies of the label, one answer")
    middle = 2.15
    draw_picture(axis, colorize(label, TOY.palette), 1.0, middle, "label $y$")
    for y, plane, k, side in ((3.2, planes[0], 1, 1), (1.1, planes[1], 2, -1)):  # side: 1 is up, -1 is down
        draw_arrow(axis, (1.9, middle + 0.12 * side), (3.1, y - 0.15), NOISE)
        axis.text(2.3, middle + 0.82 * side, f"noise $n_{k}$", ha="right", va="center", fontsize=10.5, color=NOISE)
        draw_teacher_input(axis, image, plane, y, f"image $x$, noised label $n_{k}(y)$")
        draw_network(axis, y, "teacher $T$", f"$z_{k}$", TEACHER)
        draw_arrow(axis, (9.35, y), (9.95, y), LOSS)
        axis.text(10.05, y, f"CE$(z_{k},\\, y)$", va="center", fontsize=11.5, color=LOSS)
    axis.text(0.2, 0.25, "noise: a random code\nfor each class and image\n+ pixel noise", fontsize=9.5, color=NOISE)
    draw_arrow(axis, (7.35, 2.65), (7.35, 1.65), TEACHER, arrowstyle="-", linestyle=":", linewidth=2)
    axis.text(7.22, middle, "same\nweights", ha="right", va="center", fontsize=10, color=TEACHER)
    draw_arrow(axis, (9.1, 2.9), (9.1, 1.4), LOSS, arrowstyle="<|-|>")
    terms = "$D(z_1, \\mathrm{sg}\\,z_2) + D(z_2, \\mathrm{sg}\\,z_1)$"
    consistency = f"consistency\n{terms}\n(sg: no gradient)"
    axis.text(9.3, middle, consistency, va="center", fontsize=10.5, color=LOSS, linespacing=1.4)


def draw_student_panel(axis: Axes, image: np.ndarray, label: np.ndarray, plane: np.ndarray) -> None:
    """Draw how the frozen teacher teaches a student that sees the image only."""
    prepare_panel(axis, "(b) Student: sees the image only, learns from the frozen teacher")
    draw_picture(axis, colorize(label, TOY.palette), 1.0, 3.2, "label $y$")
    draw_arrow(axis, (1.9, 3.2), (3.1, 3.2), NOISE)
    axis.text(2.5, 3.3, "fixed codes\n+ pixel noise", ha="center", va="bottom", fontsize=10, color=NOISE)
    draw_teacher_input(axis, image, plane, 3.2, "image $x$, noised label $n(y)$")
    draw_picture(axis, image, 4.3, 1.0, "image $x$")
    draw_network(axis, 3.2, "teacher $T$\nfrozen", "$z_T$", TEACHER, filled=False)
    draw_network(axis, 1.0, "student $S$", "$z_S$", STUDENT)
    draw_arrow(axis, (9.35, 1.0), (9.95, 1.0), LOSS)
    axis.text(10.05, 1.0, "CE$(z_S,\\, y)$", va="center", fontsize=11.5, color=LOSS)
    draw_arrow(axis, (9.1, 2.9), (9.1, 1.3), LOSS)
    axis.text(9.3, 2.1, "distillation\nKD$(z_S,\\, z_T)$", va="center", fontsize=10.5, color=LOSS, linespacing=1.4)


@plt.rc_context({"text.parse_math": True})  # symbols between dollars; the other figures show them as they are
def draw_method() -> Figure:
    """Draw both panels, with an image of the built-in data."""
    image, label = draw_sample("val", 50)
    y = torch.from_numpy(label)[None]
    random = LabelNoise(len(TOY.names), "random", 0.03, 100.0)
    fixed = LabelNoise(len(TOY.names), "fixed", 0.02, 100.0)
    planes = [paint_diverging(random(y, RowGenerator(3), path)[0, 0].numpy()) for path in (0, 1)]
    figure, axes = plt.subplots(2, 1, figsize=(WIDTH * 0.78, 2 * HEIGHT * 0.78), layout="constrained")
    draw_teacher_panel(axes[0], image, label, planes)
    draw_student_panel(axes[1], image, label, paint_diverging(fixed(y, RowGenerator(3))[0, 0].numpy()))
    return figure


def main(argv: Sequence[str] | None = None) -> None:
    config = MethodFigureConfig(**parse_flags(MethodFigureConfig, __doc__, argv))
    style.save_figure(draw_method(), Path(config.output).expanduser())


if __name__ == "__main__":
    run_main(main)
