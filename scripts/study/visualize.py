r"""A grid of predictions: image | label | noised label | teacher | students | errors, with the palette's legend.

    python scripts/study/visualize.py --teacher runs/quickstart/teacher/last.pth \
        --student runs/quickstart/baseline/last.pth runs/quickstart/student/last.pth --output grid.png

Several students are called by the names of their folders. The error maps show the students' errors.
Without a student they show the teacher's.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from utils.environment import require_packages

require_packages()

import numpy as np
from torch import Tensor

from datasets import build_dataset_for_network, choose_evenly
from datasets.base import DatasetSpec
from datasets.network_classes import require_classes
from engine.metrics import ASSISTED, Metrics, count_confusions
from models.checkpoints.loading import LoadedNetwork, load_one_of_several
from models.prediction import Predictor
from scripts.study.analysis import style
from utils.colors import ERROR_COLORS, IGNORE_COLOR, choose_strongest_plane, colorize, draw_error_map, paint_diverging
from utils.entry import run_main
from utils.errors import UserError
from utils.options import option, parse_flags
from utils.seeding import RowGenerator, derive_seed
from utils.types import IGNORE_INDEX


@dataclass(frozen=True)
class GridConfig:
    """Hold the settings of visualize.py."""

    teacher: str = option("", "checkpoint of a teacher, label-assisted or not")
    student: tuple[str, ...] = option((), "checkpoints of image-only networks")
    model: str = option("", "package.module:function, where they hold a network of your own")
    dataset: str = option("", "data set (default: the checkpoint's)")
    data: str = option("", "root folder of the data set (default: the checkpoint's)")
    split: str = option("val", "part of the data set")
    count: int = option(6, "rows: images evenly spaced over the split", minimum=1)
    seed: int = option(0, "of the label noise", minimum=0)
    output: str = option("grid.png", "picture to write (.png or .pdf)")


def load_networks(config: GridConfig) -> dict[str, LoadedNetwork]:
    """Load the networks, by the titles of their columns.

    Raises:
        UserError: no network is given, or a file is given twice.
    """
    titles = [Path(path).absolute().parent.name for path in config.student]
    if len(titles) == 1:
        titles = ["student"]
    elif len({*titles, "teacher"}) <= len(titles):  # the same name twice, or the teacher's
        titles = list(config.student)
    files = {"teacher": config.teacher} if config.teacher else {}
    files |= dict(zip(titles, config.student, strict=True))
    if not files:
        raise UserError("give --teacher FILE, --student FILE.. or both")
    if len(files) < len(config.student) + bool(config.teacher):
        raise UserError("--student: the same file twice")
    networks = {}
    for title, path in files.items():
        networks[title] = load_one_of_several(path, assisted=title == "teacher", model=config.model)
    return networks


def main(argv: Sequence[str] | None = None) -> None:
    config = GridConfig(**parse_flags(GridConfig, __doc__, argv))
    columns = load_networks(config)
    card = next(iter(columns.values())).card
    name, dataset = build_dataset_for_network(
        card,
        dataset=config.dataset or card.dataset,
        data=config.data or card.data,
        split=config.split,
        source=config.teacher or config.student[0],
    )
    for title, loaded in list(columns.items())[1:]:  # the first was checked with the data set
        require_classes(loaded.card, dataset.spec, name, title)
    rows = []
    present = set()  # the classes, for the legend
    for i in choose_evenly(len(dataset), config.count):
        image, label = dataset.load_sample(i)
        generator = RowGenerator(derive_seed(config.seed, i))
        rows.append(make_row(image, label, columns, dataset.spec, generator, present))
    classes = [(dataset.spec.names[k], dataset.spec.palette[k]) for k in sorted(present - {IGNORE_INDEX})]
    errors = [(f"error map: {name}", color) for name, color in ERROR_COLORS.items()]
    legend = style.make_legend_entries([*classes, ("ignored (label)", IGNORE_COLOR), *errors])
    style.save_figure(style.draw_picture_table(rows, legend), Path(config.output).expanduser())


def make_row(
    image: Tensor,
    label: Tensor,
    columns: dict[str, LoadedNetwork],
    spec: DatasetSpec,
    generator: RowGenerator,
    present: set[int],
) -> dict[str, style.Cell]:
    """Make the picture and caption of each column for one image.

    columns: the networks by title. present: takes the classes of the label and the predictions.
    """
    truth = label.numpy()
    row = {"image": (image.permute(1, 2, 0).numpy(), ""), "label": (colorize(truth, spec.palette), "")}
    predictions = {}
    for title, loaded in columns.items():
        caption = ""
        noise = loaded.build_label_noise()
        if noise is not None:
            plane = choose_strongest_plane(noise(label[None], generator)[0].numpy())
            row["noised label"] = (paint_diverging(plane), f"{plane.min():.0f} .. {plane.max():.0f}")
            caption = f"\n{ASSISTED}"
        predictor = Predictor(loaded.model, loaded.convention, noise)
        classes = predictor.predict_classes(image[None], label[None], [generator])[0]
        confusion = count_confusions(classes, label, len(spec.names)).numpy()
        miou = Metrics(confusion, 1).miou()
        predictions[title] = classes.numpy()
        row[title] = (colorize(classes.numpy(), spec.palette), f"mIoU {100 * miou:.0f} %{caption}")
    students = {title: classes for title, classes in predictions.items() if title != "teacher"}
    for title, classes in (students or predictions).items():
        row[f"error ({title})"] = (draw_error_map(classes, truth), "")
    present.update(*map(np.unique, (truth, *predictions.values())))
    return row


if __name__ == "__main__":
    run_main(main)
