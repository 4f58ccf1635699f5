"""The table that compares pairs of runs in several experiments: mean differences with their 95 % intervals."""

from pathlib import Path
from typing import Any

import numpy as np

from scripts.study.analysis.paired import compute_interval_over_seeds
from scripts.study.analysis.record_files import open_folder
from scripts.study.analysis.runs import Run
from scripts.study.experiments.definition import read_experiment
from scripts.study.experiments.tables import NOT_RUN, Table, compute_gains_by_seed, read_records, split_pair
from utils.errors import UserError
from utils.files import read_yaml


def make_comparisons_table(file: Path, results: Path) -> Table:
    """List mean differences of last checkpoints in points of mIoU, with 95 % intervals over the seeds.

    An interval that excludes zero is shown in bold. Where fewer than two seeds have both runs, the cell says "not run".

    file: yaml with ``columns`` (heading -> experiment) and ``rows`` (heading -> a pair ``RUN:RUN`` for each column, or
    an empty text). results: folder of the record files.

    Raises:
        UserError: the file cannot be read or has another form, or an experiment or run is unknown.
    """
    columns, rows = _read_file(file)
    experiments = [read_experiment(name) for name in columns.values()]
    records = [read_records(experiment, open_folder(results / f"{experiment.name}.zip")) for experiment in experiments]
    table = []
    for title, pairs in rows.items():
        cells = []
        for experiment, runs, pair in zip(experiments, records, pairs, strict=True):
            if pair:
                name, base = split_pair(experiment, pair)
                cells.append(_format_difference(runs, name, base))
            else:
                cells.append(NOT_RUN)
        table.append([title, *cells])
    return ["comparison, by question", *columns], table


def _read_file(file: Path) -> tuple[dict[str, str], dict[str, list[str]]]:
    """Return the columns and the rows.

    Raises:
        UserError: the file cannot be read or has another form.
    """
    content: Any = read_yaml(file)
    try:
        columns = dict(content["columns"])
        rows = {title: list(pairs) for title, pairs in content["rows"].items()}
    except (AttributeError, LookupError, TypeError, ValueError):
        raise UserError(f"{file}: write 'columns' (heading: experiment) and 'rows' (heading: [pair, ..])") from None
    for title, pairs in rows.items():
        if len(pairs) != len(columns):
            raise UserError(f"{file}: row {title!r} has {len(pairs)} pairs for {len(columns)} columns")
    return columns, rows


def _format_difference(records: dict[str, list[Run]], name: str, base: str) -> str:
    """Show the mean difference of a pair with its interval, in points."""
    differences = compute_gains_by_seed(records[name], records[base])
    interval = compute_interval_over_seeds(differences)
    if interval is None:
        return NOT_RUN
    low, high = interval
    text = f"{100 * np.mean(differences):+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"
    return f"**{text}**" if low > 0 or high < 0 else text
