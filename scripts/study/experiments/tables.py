"""The tables of an experiment, from the records of its runs. No table has more than five columns.

A run that is not there says "not run".
"""

import re
import zipfile
from collections.abc import Iterable, Sequence
from itertools import chain

import numpy as np

from scripts.study.analysis.paired import compute_p_over_seeds
from scripts.study.analysis.record_files import Folder, list_runs
from scripts.study.analysis.runs import Run, View, read_run
from scripts.study.analysis.text import format_mean_std
from scripts.study.experiments.definition import Arm, Experiment
from utils.errors import lookup

MIOU = "mIoU % (seeds)"  # heading of what format_scores shows
NOT_RUN = "not run"
GAINS_HEADER = ["training", "compared with", "gain in points", "gain by seed", "p over seeds"]
Table = tuple[list[str], list[list[str]]]


def read_records(experiment: Experiment, folder: Folder) -> dict[str, list[Run]]:
    """Return the runs of each arm below ``folder``, sorted by seed: name-0, name-1, ... An arm may have none."""
    found = list_runs(folder)
    records = {}
    for name in experiment.arms:
        folders = [path for path in found if re.fullmatch(rf"{name}-\d+", path.name)]
        records[name] = sorted((read_run(path, path.name) for path in folders), key=lambda run: run.seed)
    return records


def find_view(run: Run, checkpoint: str) -> View | None:
    """Return the view of a run's last or best checkpoint in which eval.py scored it; None where it did not."""
    return next((view for view in run.scores if view.checkpoint == checkpoint and view in run.areas), None)


def get_scores_by_seed(runs: Sequence[Run], checkpoint: str) -> dict[int, float]:
    """Return the mIoU of one kind of checkpoint by seed."""
    scores = {}
    for run in runs:
        view = find_view(run, checkpoint)
        if view is not None:
            scores[run.seed] = run.scores[view]["miou"]
    return scores


def compute_training_minutes(run: Run) -> float | None:
    """Return the time of a training from the speeds in its log; None where the log has none.

    Validation, and iterations that an interruption lost, do not count. For a run on one thread of a CPU it is the
    processor's time, which other work on the machine does not lengthen.
    """
    starts = run.curves.get("start", ())
    on_one_thread = all(start.get("threads") == 1 and str(start.get("device")).startswith("cpu") for start in starts)
    seconds = 0.0
    before = 0
    for record in run.curves.get("train", ()):
        iteration = record["iteration"]
        speed = record.get("images_per_second")
        if not speed:
            return None
        if on_one_thread and "cpu_seconds" in record:
            seconds += record["cpu_seconds"]
            continue
        for start in starts:  # a speed is measured from the last restart on
            if before < start["iteration"] < iteration:
                before = start["iteration"]
        seconds += (iteration - before) * run.config["batch_size"] / speed
        before = iteration
    return seconds / 60


def compute_gains_by_seed(runs: Sequence[Run], base: Sequence[Run]) -> list[float]:
    """Return the difference of the last checkpoints' mIoU for each seed that both sides have."""
    own = get_scores_by_seed(runs, "last")
    other = get_scores_by_seed(base, "last")
    return [own[seed] - other[seed] for seed in sorted(own.keys() & other.keys())]


def make_students_table(experiment: Experiment, folder: Folder) -> Table:
    """List the networks that see the image only, with the scores of their last and best checkpoints."""
    records = read_records(experiment, folder)
    rows = []
    for arm in experiment.arms.values():
        if arm.role == "student":
            runs = records[arm.name]
            shown = [format_scores(get_scores_by_seed(runs, checkpoint)) for checkpoint in ("last", "best")]
            rows.append([link_records(experiment, arm.name, runs), arm.title, *shown, format_minutes(runs)])
    return ["run", "training", f"last {MIOU}", f"best {MIOU}", make_minutes_heading(records)], rows


def make_published_table(experiment: Experiment, folder: Folder) -> Table:
    """List the rows of a published table: what was printed there, and what the runs of this experiment score."""
    records = read_records(experiment, folder)
    rows = []
    for arm in experiment.arms.values():
        if arm.row:
            runs = records[arm.name]
            printed = "none" if arm.published is None else f"{arm.published:.2f}"
            shown = [format_scores(get_scores_by_seed(runs, checkpoint)) for checkpoint in ("last", "best")]
            rows.append([", ".join(arm.row), printed, *shown, link_records(experiment, arm.name, runs)])
    header = [", ".join(experiment.columns), "published mIoU %", f"our last {MIOU}", f"our best {MIOU}", "run"]
    return header, rows


def make_summary_table(experiment: Experiment, folder: Folder) -> Table:
    """List the students that were run: score, gain over two baselines, and time.

    The second baseline is the one that was trained for as long as a teacher and its student. The time includes all
    that a run starts from.
    """
    records = read_records(experiment, folder)
    rows = []
    times = {}
    bases = (experiment.baseline, experiment.equal_time)
    for arm in experiment.arms.values():
        scores = get_scores_by_seed(records[arm.name], "last")
        if arm.role == "student" and scores:
            times[arm.name] = format_total_minutes(experiment, records, arm.name, scores)
            gains = [format_gain(records, arm.name, base) for base in bases]
            rows.append([arm.title, format_scores(scores), *gains, times[arm.name]])
    over = [f"points over the {times.get(base, 'unknown')}-minute baseline" for base in bases]
    total = make_minutes_heading(records).replace("minutes", "minutes, teacher included", 1)
    return _add_placeholder_row(["student", MIOU, *over, total], rows)


def find_arms(experiment: Experiment, names: Sequence[str]) -> list[Arm]:
    """Return the runs of an experiment that have these names.

    Raises:
        UserError: a name is no run of the experiment.
    """
    return [lookup(experiment.arms, name, f"run of {experiment.name}") for name in names]


def make_brief_table(experiment: Experiment, folder: Folder, names: Sequence[str]) -> Table:
    """Return scores and times, all that a run starts from included, of the runs with these names that were run.

    Raises:
        UserError: a name is no run of the experiment.
    """
    records = read_records(experiment, folder)
    rows = []
    for arm in find_arms(experiment, names):
        scores = get_scores_by_seed(records[arm.name], "last")
        if scores:
            minutes = format_total_minutes(experiment, records, arm.name, scores)
            rows.append([arm.title, format_scores(scores), minutes])
    return _add_placeholder_row(["training", MIOU, "minutes of one core, teacher included"], rows)


def make_progress_table(experiment: Experiment, folder: Folder, names: Sequence[str]) -> Table:
    """List what the runs with these names score on the way: at each quarter of their length, mean over the seeds.

    The scores are those of the validations in training. A quarter at which a run was not validated has a dash.

    Raises:
        UserError: a name is no run of the experiment.
    """
    records = read_records(experiment, folder)
    rows = []
    for arm in find_arms(experiment, names):
        runs = [run for run in records[arm.name] if run.curves.get("val")]
        if runs:
            shown = [format_score_on_the_way(runs, quarter / 4) for quarter in (1, 2, 3, 4)]
            rows.append([f"{arm.title} ({len(runs)})", *shown])
    header = ["training (seeds)", "mIoU % after a quarter", "after half", "after three quarters", "at the end"]
    return _add_placeholder_row(header, rows)


def format_score_on_the_way(runs: Sequence[Run], share: float) -> str:
    """Show mean and spread of the validations after a share of each run's iterations; a dash where one is missing."""
    values = []
    for run in runs:
        on_the_way = {record["iteration"]: record["miou"] for record in run.curves["val"]}
        values.append(on_the_way.get(share * run.config["max_iterations"]))
    return "-" if None in values else format_mean_std(values)


def format_total_minutes(experiment: Experiment, records: dict[str, list[Run]], name: str, seeds: Iterable[int]) -> str:
    """Show the mean time of a run with all that it starts from."""
    minutes = [compute_total_minutes(experiment, records, name, seed) for seed in seeds]
    known = [value for value in minutes if value is not None]
    return f"{np.mean(known):.0f}" if known else NOT_RUN


def compute_total_minutes(experiment: Experiment, records: dict[str, list[Run]], name: str, seed: int) -> float | None:
    """Return the time of a run and of every run it starts from, each counted once; None where one is not there."""
    total = 0.0
    for needed_name, needed_seed in _list_with_origins(experiment, name, seed):
        run = next((run for run in records[needed_name] if run.seed == needed_seed), None)
        minutes = None if run is None else compute_training_minutes(run)
        if minutes is None:
            return None
        total += minutes
    return total


def _list_with_origins(experiment: Experiment, name: str, seed: int) -> list[tuple[str, int]]:
    """List a run and all that it starts from, directly or through others, by name and seed. Each is listed once."""
    found: list[tuple[str, int]] = []
    waiting = [(name, seed)]
    while waiting:
        current = waiting.pop()
        if current in found:  # a teacher and its student may start from the same run
            continue
        found.append(current)
        current_name, current_seed = current
        for origin in experiment.arms[current_name].origins.values():
            waiting.append((origin.run, experiment.shift_seed(current_seed, origin.shift)))
    return found


def format_gain(records: dict[str, list[Run]], name: str, base: str) -> str:
    """Show the mean gain and its spread over the seeds that both have; nothing for a run beside itself."""
    if name == base:
        return ""
    differences = compute_gains_by_seed(records[name], records[base]) if base else []
    return format_mean_std(differences, "+") if differences else NOT_RUN


def make_gains_table(experiment: Experiment, folder: Folder) -> Table:
    """List differences of last checkpoints, where both sides were run. No pair is listed both ways.

    They are of every student to the baseline, to the baseline that had the teacher's time too, and of the pairs that
    the experiment asks for.
    """
    wanted = []
    for base in (experiment.baseline, experiment.equal_time):
        if base:
            wanted += [(arm.name, base) for arm in experiment.arms.values() if arm.role == "student"]
    wanted += experiment.compare
    pairs: dict[tuple[str, str], None] = {}  # a dict, because it keeps the order
    for name, base in wanted:
        if name != base and (base, name) not in pairs:
            pairs[name, base] = None
    return _add_placeholder_row(GAINS_HEADER, _list_differences(experiment, folder, pairs))


def make_pairs_table(experiment: Experiment, folder: Folder, pairs: Sequence[str]) -> Table:
    """List the rows of ``make_gains_table`` for a few pairs, each written as ``RUN:RUN``.

    Raises:
        UserError: a name is no run of the experiment, or a pair has no colon.
    """
    names = [split_pair(experiment, pair) for pair in pairs]
    return _add_placeholder_row(GAINS_HEADER, _list_differences(experiment, folder, names))


def split_pair(experiment: Experiment, pair: str) -> tuple[str, str]:
    """Return the two runs of a pair that is written as ``RUN:RUN``.

    Raises:
        UserError: a name is no run of the experiment, or the pair has no colon.
    """
    name, _, base = pair.partition(":")
    find_arms(experiment, (name, base))  # raises where a name is unknown
    return name, base


def _list_differences(experiment: Experiment, folder: Folder, pairs: Iterable[tuple[str, str]]) -> list[list[str]]:
    """Return a row for each pair of which both sides were run."""
    arms = experiment.arms
    records = read_records(experiment, folder)
    rows = []
    for name, base in pairs:
        differences = compute_gains_by_seed(records[name], records[base])
        if differences:
            by_seed = ", ".join(f"{100 * value:+.2f}" for value in differences)
            p = compute_p_over_seeds(differences)
            cells = [format_mean_std(differences, "+"), by_seed, "one seed" if p is None else f"{p:.2g}"]
            rows.append([arms[name].title, arms[base].title, *cells])
    return rows


def _add_placeholder_row(header: list[str], rows: list[list[str]]) -> Table:
    """Return a table, with one row "not run" where it has none."""
    if rows:
        return header, rows
    empty_cells = [""] * (len(header) - 1)
    return header, [[NOT_RUN, *empty_cells]]


def format_scores(values: dict[int, float]) -> str:
    """Show mean and standard deviation over seeds, and how many seeds there are."""
    return f"{format_mean_std(list(values.values()))} ({len(values)})" if values else NOT_RUN


def make_minutes_heading(records: dict[str, list[Run]]) -> str:
    """Return the heading of the training times, which says where they were measured."""
    places = set()
    for run in chain.from_iterable(records.values()):
        for start in run.curves.get("start", ()):
            kind, _, name = str(start.get("device", "unknown device")).partition(": ")
            place = name or kind
            if kind == "cpu":
                threads = start["threads"]
                place += f", {threads} threads" if threads > 1 else f", {threads} thread"
            places.add(place)
    return f"minutes ({' / '.join(sorted(places))})" if places else "minutes"


def format_minutes(runs: Sequence[Run]) -> str:
    """Show the mean training time."""
    all_minutes = [compute_training_minutes(run) for run in runs]
    known = [minutes for minutes in all_minutes if minutes is not None]
    return f"{np.mean(known):.1f}" if known else NOT_RUN


def link_records(experiment: Experiment, name: str, runs: Sequence[Run]) -> str:
    """Return the name of a run, as a link from the repository's root where its records are in a record file."""
    if any(isinstance(run.folder, zipfile.Path) for run in runs):
        return f"[`{name}`](results/{experiment.name}.zip)"
    return f"`{name}`"
