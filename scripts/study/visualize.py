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

import numpy as np
import torch
from matplotlib.patches import Patch
from torch import Tensor

from datasets import for_network
from datasets.base import DatasetSpec
from models.checkpoints.loading import from_checkpoint
from scripts.study.analysis import style
from utils.colors import ERROR_COLORS, IGNORE_COLOR, colorize, diverging, error_map, strongest
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

    rows, present = [], set()
    for i in map(int, chosen):
        if not 0 <= i < len(dataset):
            raise UserError(f"--images {i}: {name} {config.split} has images 0 to {len(dataset) - 1}")
        sample = dataset[i]
        if isinstance(sample, UserError):
            raise sample
        rows.append(cells(sample[0], sample[1], columns, spec, Draw(derive_seed(config.seed, i)), present))
    style.save_figure(style.grid(rows, legend(spec, present)), Path(config.output))


def cells(
    image: Tensor, label: Tensor, columns: dict[str, Column], spec: DatasetSpec, draw: Draw, present: set[int]
) -> dict[str, style.Cell]:
    """Picture and caption by column title, for one image; ``present`` collects the classes."""
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
    present.update(*map(np.unique, (truth, *predictions.values())))
    return row


def legend(spec: DatasetSpec, present: set[int]) -> list[Patch]:
    """The classes that occur in the grid, then the colours of the error map."""
    classes = [(spec.names[k], spec.palette[k]) for k in sorted(present - {IGNORE_INDEX})]
    errors = [(f"error map: {name}", color) for name, color in ERROR_COLORS.items()]
    return style.patches([*classes, ("ignored (label)", IGNORE_COLOR), *errors])


if __name__ == "__main__":
    run_main(main)
