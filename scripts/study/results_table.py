"""Tables of scores: of eval.py's JSON files, and those of the READMEs, from the records of experiments.

    python scripts/study/results_table.py runs/quickstart/*/eval.json      # one table of these files
    python scripts/study/results_table.py --experiment lad_voc             # the tables of an experiment
    python scripts/study/results_table.py --readme README.md               # rewrite the tables of README.md in place
    python scripts/study/results_table.py --readme README.md --check       # fail if they are not what the records say

A table of a README stands between ``<!-- table: EXPERIMENT KIND -->`` and ``<!-- end -->``. EXPERIMENT is a file of
scripts/study/experiments, whose records are in results/EXPERIMENT.zip. KIND is published, summary, students, gains,
teachers or knowledge; or "brief RUN..", the scores and times of a few runs; "progress RUN..", their scores on the way;
or "pairs RUN:RUN..", the differences of a few pairs.
``<!-- table: files quickstart/student/eval.json -->`` is a table of files below results/, ``smp FILE`` that of a record
of compare_with_smp.py there, and ``comparisons FILE`` that of the pairs in a yaml file there. A run without records
says "not run"; in the tables summary, gains, brief, progress and pairs it has no row.
"""

import json
import os
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from utils.environment import require_packages

require_packages()

from engine.metrics import ASSISTED
from scripts.study import compare_with_smp
from scripts.study.analysis.record_files import Folder, open_folder
from scripts.study.analysis.runs import KINDS, read_score
from scripts.study.analysis.text import format_markdown_table, format_percent
from scripts.study.experiments.comparisons import make_comparisons_table
from scripts.study.experiments.definition import Experiment, read_experiment
from scripts.study.experiments.knowledge import make_knowledge_table
from scripts.study.experiments.tables import (
    Table,
    make_brief_table,
    make_gains_table,
    make_pairs_table,
    make_progress_table,
    make_published_table,
    make_students_table,
    make_summary_table,
)
from scripts.study.experiments.teachers_table import make_teachers_table
from utils.entry import run_main
from utils.errors import UserError, lookup
from utils.files import write_text
from utils.options import option, parse_flags

TABLES = {
    "published": make_published_table,
    "summary": make_summary_table,
    "students": make_students_table,
    "gains": make_gains_table,
    "teachers": make_teachers_table,
    "knowledge": make_knowledge_table,
}
# tables of the runs or pairs that a mark names
CHOSEN = {
    "brief": make_brief_table,
    "progress": make_progress_table,
    "pairs": make_pairs_table,
}
RESULTS = Path(__file__).resolve().parents[2] / "results"


@dataclass(frozen=True)
class ResultsTableConfig:
    """Hold the settings of results_table.py."""

    files: tuple[str, ...] = option((), "results of eval.py --json, for one table of them", positional=True)
    experiment: str = option("", "name of an experiment whose tables are printed")
    records: str = option("", "its record file or folder of runs (default: results/NAME.zip)")
    readme: str = option("", "Markdown file whose marked tables are rewritten")
    check: bool = option(False, "change nothing, and exit 2 where --readme would change")


def main(argv: Sequence[str] | None = None) -> None:
    config = ResultsTableConfig(**parse_flags(ResultsTableConfig, __doc__, argv))
    if config.files:
        print(format_markdown_table(*make_files_table(map(Path, config.files))), end="")
    if config.records and not Path(config.records).exists():
        raise UserError(f"--records {config.records}: no such file or folder")
    if config.experiment:
        experiment = read_experiment(config.experiment)
        records = Path(config.records or RESULTS / f"{experiment.name}.zip")
        print(format_tables(experiment, open_folder(records)), end="")
    if config.readme:
        update_readme(Path(config.readme), config.check)


def update_readme(readme: Path, check: bool) -> None:
    """Rewrite the tables of a Markdown file, or check only that they show what the records say.

    Raises:
        UserError: ``check`` is given, and a table shows something else.
    """
    old = readme.read_text(encoding="utf-8")
    new = rewrite_tables(old, RESULTS, os.path.relpath(RESULTS, readme.resolve().parent))
    if not check:
        write_text(readme, new)
    elif new == old:
        print(f"all tables of {readme} show what results/ holds")
    else:
        raise UserError(f"{readme} does not show what results/ holds: run this without --check")


def format_tables(experiment: Experiment, folder: Folder) -> str:
    """Return the main tables of an experiment as markdown: the published one, or students, gains and teachers."""
    kinds = [make_published_table] if experiment.columns else [make_students_table]
    if experiment.baseline:
        kinds.append(make_gains_table)
    if any(arm.role == "teacher" for arm in experiment.arms.values()):
        kinds.append(make_teachers_table)
    return "\n".join(format_markdown_table(*make_table(experiment, folder)) for make_table in kinds)


def make_files_table(files: Iterable[Path]) -> Table:
    """Make a row for each file of eval.py, named after its folder."""
    rows = []
    for file in files:
        result = read_score_file(file, KINDS.keys() - {"checkpoint", "iou"})
        seen = f"image + label ({ASSISTED})" if result["label_assisted"] else "image"
        network = f"{result['model']['arch']} on {result['model']['backbone']}, {result['iteration']} iterations"
        where = f"{result['dataset']} {result['split']}, {result['images']} images, {result['protocol']}"
        scores = [format_percent(result[key]) for key in ("miou", "pixel_accuracy")]
        rows.append([file.parent.name, seen, *scores, f"{network}; {where}"])
    return ["run", "input", "mIoU %", "pixel accuracy %", "network and protocol"], rows


def rewrite_tables(text: str, results: Path, link: str = "results") -> str:
    """Return a text with every marked table made anew. ``link`` leads from the text's folder to ``results``."""

    def make_anew(match: re.Match[str]) -> str:
        header, rows = make_marked_table(match["what"], results)
        table = format_markdown_table(header, rows).replace("](results/", f"]({link}/")
        return f"<!-- table: {match['what']} -->\n{table}<!-- end -->"

    return re.sub(r"<!-- table: (?P<what>[^\n]+?) -->\n.*?<!-- end -->", make_anew, text, flags=re.DOTALL)


def make_marked_table(what: str, results: Path) -> Table:
    """Make the table that a mark asks for. The top of this file lists the forms of a mark.

    Raises:
        UserError: the mark has another form, an unknown experiment, kind or run, or names a file that cannot be read.
    """
    first, *others = what.split()
    if first == "files":
        return make_files_table([results / name for name in others])
    if first == "smp" and len(others) == 1:
        return compare_with_smp.make_table_of_record(results / others[0])
    if first == "comparisons" and len(others) == 1:
        return make_comparisons_table(results / others[0], results)
    if others and others[0] in CHOSEN:
        experiment = read_experiment(first)
        return CHOSEN[others[0]](experiment, open_folder(results / f"{experiment.name}.zip"), others[1:])
    if len(others) != 1:
        kinds = ", ".join((*TABLES, *CHOSEN))
        raise UserError(f"<!-- table: {what} -->: write an experiment and a kind of table ({kinds})")
    experiment = read_experiment(first)
    make_table = lookup(TABLES, others[0], "kind of table")
    return make_table(experiment, open_folder(results / f"{experiment.name}.zip"))


def read_score_file(file: Path, keys: Iterable[str]) -> dict[str, Any]:
    """Read a JSON file of eval.py.

    Raises:
        UserError: the file cannot be read, is no result of eval.py, or lacks a key.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file} is no result of eval.py: {error}") from error
    return read_score(content, file, keys)


if __name__ == "__main__":
    run_main(main)
