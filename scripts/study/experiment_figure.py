"""Plot an experiment from its records, as far as they are there.

    python scripts/study/experiment_figure.py camvid_lite        # figures/camvid_lite_dial.png
    python scripts/study/experiment_figure.py camvid_fpn_short   # figures/camvid_fpn_short_knowledge.png, and the other

The first picture, "dial", is of teachers with different label noise: their scores, and their students' gains. The
second, "knowledge", shows each student's gain against the divergence that teacher_knowledge.py --save measured of its
teacher. For curves and classes see scripts/study/compare.py, which takes the same record files.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from utils.environment import require_packages

require_packages()

from scripts.study.analysis import style
from scripts.study.analysis.record_files import open_folder
from scripts.study.experiments.definition import read_experiment
from scripts.study.experiments.figures import draw_dial
from scripts.study.experiments.knowledge import draw_knowledge
from utils.entry import run_main
from utils.errors import UserError
from utils.options import option, parse_flags

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class ExperimentFigureConfig:
    """Hold the settings of experiment_figure.py."""

    experiment: str = option("", "name of a file in scripts/study/experiments, or a path", positional=True)
    records: str = option("", "record file, or folder of runs (default: results/<experiment>.zip)")
    output: str = option("", "folder of the pictures (default: figures)")


def main(argv: Sequence[str] | None = None) -> None:
    config = ExperimentFigureConfig(**parse_flags(ExperimentFigureConfig, __doc__, argv))
    experiment = read_experiment(config.experiment)
    records = Path(config.records).expanduser() if config.records else ROOT / f"results/{experiment.name}.zip"
    output = Path(config.output).expanduser() if config.output else ROOT / "figures"
    folder = open_folder(records)
    figures = {"dial": draw_dial(experiment, folder), "knowledge": draw_knowledge(experiment, folder)}
    for name, figure in figures.items():
        if figure is not None:
            style.save_figure(figure, output / f"{experiment.name}_{name}.png")
    if not any(figures.values()):
        raise UserError(f"{records} holds no scored runs of {experiment.name} that there is a picture of")


if __name__ == "__main__":
    run_main(main)
