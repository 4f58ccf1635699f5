"""A grid of predictions: image | label | noised label | teacher | students | errors, with the palette's legend.

    python scripts/study/visualize.py --teacher runs/quickstart/teacher/last.pth \
        --student runs/quickstart/baseline/last.pth runs/quickstart/student/last.pth --output grid.png

Several students are called by the names of their folders. The error maps are the students', or the teacher's without
one.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.patches import Patch
from torch import Tensor

from datasets import for_network
from models.checkpoints.loading import from_checkpoint
from scripts.study.analysis import style
from utils.colors import ERROR_COLORS, colorize, diverging, error_map, strongest
from utils.errors import UserError, run_main
from utils.options import option, parse_flags
from utils.seeding import derive_seed
from utils.training.evaluation import Predictor
from utils.training.metrics import Metrics, confusion_matrix
from utils.types import IGNORE_INDEX, Draw


@dataclass(frozen=True)
class GridConfig:
    teacher: str = option("", "checkpoint of a teacher, label-assisted or not")
    student: tuple[str, ...] = option((), "checkpoints of image-only networks")
    dataset: str = option("", "data set (default: the checkpoint's)")
    data: str = option("", "root folder of the data set (default: the checkpoint's)")
    split: str = option("val", "part of the data set")
    images: tuple[int, ...] | None = option(None, "indices in the split (default: --count of them, evenly spaced)")
    count: int = option(6, "rows", minimum=1)
    seed: int = option(0, "of the label noise", minimum=0)
    output: str = option("grid.png", "picture to write (.png or .pdf)")


class Column:
    """One network's predictions, and the plane it was shown."""

    def __init__(self, path: str) -> None:
        self.path, self.loaded = path, from_checkpoint(path)
        self.noise = self.loaded.noise
        self.predict = Predictor(self.loaded.model, self.loaded.convention, self.noise)

    def __call__(self, image: Tensor, label: Tensor, draw: Draw) -> np.ndarray:
        return self.predict.classes(image[None], label[None], [draw])[0].numpy()


def called(config: GridConfig) -> dict[str, str]:
    """The files of the networks by the title of their column.

    Raises:
        UserError: a file twice.
    """
    teacher = {"teacher": config.teacher} if config.teacher else {}
    names = [Path(path).absolute().parent.name for path in config.student]
    if len(names) == 1:
        names = ["student"]
    elif len({*names, "teacher"}) <= len(names):  # the same name twice, or the teacher's
        names = list(config.student)
    if len(set(names)) < len(names):
        raise UserError("--student: the same file twice")
    return teacher | dict(zip(names, config.student, strict=True))


def main() -> None:
    config = GridConfig(**parse_flags(GridConfig, __doc__))
    columns = {name: Column(path) for name, path in called(config).items()}
    if not columns:
        raise UserError("give --teacher FILE, --student FILE.. or both")
    card = next(iter(columns.values())).loaded.card
    for column in columns.values():
        if column.loaded.card.num_classes != card.num_classes:
            raise UserError(f"--student {column.path} has other classes than the network before it")
    where = config.dataset or card.dataset, config.data or card.data, config.split
    name, dataset = for_network(card.num_classes, *where, next(iter(columns.values())).path)
    spec = dataset.spec
    chosen = config.images or np.linspace(0, len(dataset) - 1, min(config.count, len(dataset))).round().astype(int)

    rows = []
    for i in map(int, chosen):
        if not 0 <= i < len(dataset):
            raise UserError(f"--images {i}: {name} {config.split} has images 0 to {len(dataset) - 1}")
        sample = dataset[i]
        if isinstance(sample, UserError):
            raise sample
        rows.append(cells(sample[0], sample[1], columns, spec, Draw(derive_seed(config.seed, i))))
    draw_grid(rows, legend(spec, rows), Path(config.output))
    print(f"wrote {config.output}")


def cells(image: Tensor, label: Tensor, columns: dict[str, Column], spec, draw: Draw) -> dict[str, tuple]:
    """Picture and caption by column title, for one image."""
    truth = label.numpy()
    row = {"image": (image.permute(1, 2, 0).numpy(), ""), "label": (colorize(truth, spec.palette), "")}
    predictions = {}
    for name, column in columns.items():
        prediction = column(image, label, draw)
        if column.noise is not None:
            plane = strongest(column.noise(label[None], draw)[0].numpy())
            row["noised label"] = diverging(plane), f"{plane.min():.0f} .. {plane.max():.0f}"
        counts = confusion_matrix(torch.from_numpy(prediction), label, len(spec.names)).numpy()
        caption = f"mIoU {100 * Metrics(counts, 1).miou():.0f} %" + "\nLABEL-ASSISTED" * (column.noise is not None)
        row[name] = colorize(prediction, spec.palette), caption
        predictions[name] = prediction
    students = {name: p for name, p in predictions.items() if name != "teacher"}
    for name, prediction in (students or predictions).items():
        row[f"error ({name})"] = error_map(prediction, truth), ""
    row["classes"] = set(np.unique(truth)).union(*map(np.unique, predictions.values())), ""
    return row


def legend(spec, rows: list[dict]) -> list[Patch]:
    """The classes that occur in the grid, then the colours of the error map."""
    present = set().union(*(row.pop("classes")[0] for row in rows)) - {IGNORE_INDEX}
    patches = [Patch(color=np.array(spec.palette[k]) / 255, label=spec.names[k]) for k in sorted(present)]
    patches.append(Patch(facecolor="white", edgecolor="black", label="ignored (label)"))
    return patches + [Patch(color=np.array(c) / 255, label=f"error map: {name}") for name, c in ERROR_COLORS.items()]


def draw_grid(rows: list[dict], patches: list[Patch], output: Path) -> None:
    titles = list(rows[0])
    height, width = rows[0]["image"][0].shape[:2]
    cell = 2.2
    figure, axes = plt.subplots(
        len(rows),
        len(titles),
        figsize=(cell * len(titles), (cell * height / width + 0.4) * len(rows) + 0.8),
        squeeze=False,
        layout="constrained",
    )
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(style.wrap(title), fontsize=10)
    for axis_row, row in zip(axes, rows, strict=True):
        for axis, title in zip(axis_row, titles, strict=True):
            picture, caption = row[title]
            axis.imshow(picture, interpolation="nearest")
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
            axis.set_xlabel(caption, fontsize=8)
    figure.legend(handles=patches, loc="outside lower center", ncols=min(8, len(patches)), fontsize=8, frameon=False)
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=110)


if __name__ == "__main__":
    run_main(main)
