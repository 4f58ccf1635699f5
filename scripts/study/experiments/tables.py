"""The tables of an experiment, from the records of its runs: what is not there says "not run"."""

import re
import zipfile
from collections.abc import Sequence

import numpy as np

from scripts.study.analysis import style
from scripts.study.analysis.paired import Gain, align, bootstrap, p_over_seeds
from scripts.study.analysis.record_files import Folder, list_runs
from scripts.study.analysis.runs import Run, View, read_run
from scripts.study.experiments.definition import Experiment
from utils.errors import lookup

SAMPLES = 10000  # of the paired bootstrap
Table = tuple[list[str], list[list[str]]]


def read_records(experiment: Experiment, folder: Folder) -> dict[str, list[Run]]:
    """Return the runs of each arm below ``folder``, by seed: name-0, name-1, ... An arm may have none."""
    found = list_runs(folder)
    records = {}
    for name in experiment.arms:
        folders = [path for path in found if re.fullmatch(rf"{name}-\d+", path.name)]
        records[name] = sorted((read_run(path, path.name) for path in folders), key=lambda run: run.seed)
    return records


def view_of(run: Run, checkpoint: str) -> View | None:
    """Return the view of a run's last or best checkpoint in which eval.py scored it; None where it did not."""
    return next((view for view in run.scores if view.checkpoint == checkpoint and view in run.areas), None)


def scores(runs: Sequence[Run], checkpoint: str) -> dict[int, float]:
    """Return the mIoU of one kind of checkpoint by seed."""
    views = {run.seed: (run, view_of(run, checkpoint)) for run in runs}
    return {seed: run.scores[view]["miou"] for seed, (run, view) in views.items() if view}


def training_minutes(run: Run) -> float | None:
    """Return the time of a training from the speeds in its log; None where the log has none.

    Validation, and iterations that an interruption lost, do not count. For a run on one thread of a CPU it is the
    processor's time, which other work on the machine does not lengthen.
    """
    starts = [record["iteration"] for record in run.curves.get("start", ())]
    alone = all(s.get("threads") == 1 and str(s.get("device")).startswith("cpu") for s in run.curves.get("start", ()))
    seconds, before = 0.0, 0
    for record in run.curves.get("train", ()):
        at, speed = record["iteration"], record.get("images_per_second")
        if not speed:
            return None
        if alone and "cpu_seconds" in record:
            seconds += record["cpu_seconds"]
            continue
        before = max([before, *(start for start in starts if start < at)])
        seconds += (at - before) * run.config["batch_size"] / speed
        before = at
    return seconds / 60


def paired_gain(runs: Sequence[Run], base: Sequence[Run], checkpoint: str) -> tuple[list[float], Gain] | None:
    """Return the difference of each seed that both sides have, and that of their means, tested over the images."""
    own, other = scores(runs, checkpoint), scores(base, checkpoint)
    seeds = sorted(own.keys() & other.keys())
    if not seeds:
        return None
    areas = [{run.seed: run.areas[view] for run in side if (view := view_of(run, checkpoint))} for side in (runs, base)]
    counts, n = align([side[seed] for side in areas for seed in seeds]), len(seeds)
    return [own[seed] - other[seed] for seed in seeds], bootstrap(counts[:n], counts[n:], SAMPLES, seed=0)


def list_students(experiment: Experiment, folder: Folder) -> Table:
    """List the networks that see the image only, with the scores of their last and best checkpoints."""
    records, rows = read_records(experiment, folder), []
    for arm in experiment.arms.values():
        if arm.train == "student":
            runs = records[arm.name]
            last, best = scores(runs, "last"), scores(runs, "best")
            cells = [f"`{arm.name}`", arm.title, str(len(last)), show_scores(last), show_scores(best)]
            rows.append([*cells, show_minutes(runs), link_records(experiment, runs)])
    return ["run", "arm", "n", "last mIoU %", "best mIoU %", name_minutes(records), "records by seed"], rows


def list_published(experiment: Experiment, folder: Folder) -> Table:
    """List the rows of a published table: what was printed there, and what the runs of this experiment score."""
    records, rows = read_records(experiment, folder), []
    for arm in experiment.arms.values():
        if arm.row:
            runs = records[arm.name]
            last, best = scores(runs, "last"), scores(runs, "best")
            printed = "-" if arm.published is None else f"{arm.published:.2f}"
            cells = [*arm.row, printed, show_scores(last), show_scores(best), str(len(last))]
            rows.append([*cells, f"`{arm.name}`", link_records(experiment, runs)])
    header = [*experiment.columns, "published mIoU %", "ours, last checkpoint", "ours, best checkpoint", "n", "run"]
    return [*header, "records by seed"], rows


def summarise_students(experiment: Experiment, folder: Folder) -> Table:
    """Those students once more that were run: gains over the baseline and over the one that had a teacher's time too,
    time with all they start from."""
    records, rows, times = read_records(experiment, folder), [], {}
    bases = experiment.baseline, experiment.equal_time
    for arm in experiment.arms.values():
        if arm.train == "student" and (found := scores(records[arm.name], "last")):
            minutes = [total_minutes(experiment, records, arm.name, seed) for seed in found]
            known = [value for value in minutes if value is not None]
            times[arm.name] = f"{np.mean(known):.0f}" if known else "-"
            over = [_gain(records, arm.name, base) for base in bases]
            rows.append([arm.title, str(len(found)), show_scores(found), *over, times[arm.name]])
    over = [f"gain over the baseline of {times.get(base, '-')} minutes" for base in bases]
    total = name_minutes(records).replace("minutes", "minutes, teacher included", 1)
    return _filled(["student", "n", "mIoU %", *over, total], rows)


def list_briefly(experiment: Experiment, folder: Folder, names: Sequence[str]) -> Table:
    """Return scores and times, all that a run starts from included, of the runs with these names.

    Raises:
        UserError: a name is no run of the experiment.
    """
    records, rows = read_records(experiment, folder), []
    for name in names:
        arm = lookup(experiment.arms, name, f"run of {experiment.name}")
        found = scores(records[name], "last")
        minutes = [total_minutes(experiment, records, name, seed) for seed in found]
        known = [value for value in minutes if value is not None]
        title = re.sub(r"^\w['\d]*\. ", "", arm.title)  # without the letter that longer tables call it by
        rows.append([title, show_scores(found), f"{np.mean(known):.0f}" if known else "not run"])
    return ["training", "mIoU %", "minutes of one core, teacher included"], rows


def total_minutes(experiment: Experiment, records: dict[str, list[Run]], name: str, seed: int) -> float | None:
    """Return the time of a run and of every run it starts from; None where one is not there."""
    run = next((run for run in records[name] if run.seed == seed), None)
    own = run and training_minutes(run)
    origins = experiment.arms[name].origins.values()
    below = [total_minutes(experiment, records, o.run, experiment.next_seed(seed, o.shift)) for o in origins]
    return None if own is None or None in below else own + sum(below)


def _gain(records: dict[str, list[Run]], name: str, base: str) -> str:
    """Show the mean gain and its spread over the seeds that both have, with the p of a paired t-test."""
    own, other = scores(records[name], "last"), scores(records[base], "last") if base else {}
    differences = [own[seed] - other[seed] for seed in sorted(own.keys() & other.keys())]
    if name == base or not differences:
        return "-"
    return style.spread(differences, "+") + (f" (p {p:.2g})" if (p := p_over_seeds(differences)) is not None else "")


def list_gains(experiment: Experiment, folder: Folder) -> Table:
    """Differences of last checkpoints: of every student to the baseline, to the one that had the teacher's time too,
    and of the pairs the experiment asks for; where both were run."""
    arms, records, rows = experiment.arms, read_records(experiment, folder), []
    bases = filter(None, (experiment.baseline, experiment.equal_time))
    pairs = [(name, base) for base in bases for name in arms if arms[name].train == "student"]
    for name, base in dict.fromkeys((*pairs, *experiment.compare)):
        if name != base and (found := paired_gain(records[name], records[base], "last")):
            differences, gain = found
            by_seed = ", ".join(f"{100 * value:+.2f}" for value in differences)
            interval = f"{100 * gain.low:+.2f} .. {100 * gain.high:+.2f}"
            cells = [str(len(differences)), style.spread(differences, "+"), by_seed]
            p = p_over_seeds(differences)
            cells += ["-" if p is None else f"{p:.2g}", interval, f"{gain.p:.2g}"]
            rows.append([arms[name].title, arms[base].title, *cells])
    header = ["arm", "minus", "n", "gain", "by seed", "p over seeds", "95 % interval over images", "p over images"]
    return _filled(header, rows)


def _filled(header: list[str], rows: list[list[str]]) -> Table:
    return header, rows or [["not run", *["-"] * (len(header) - 1)]]


def show_scores(values: dict[int, float]) -> str:
    return style.spread(list(values.values())) if values else "not run"


def name_minutes(records: dict[str, list[Run]]) -> str:
    """Return the heading of the training times, which says where they were measured."""
    places = set()
    for run in (run for runs in records.values() for run in runs):
        for start in run.curves.get("start", ()):
            threads = f", {start['threads']} thread(s)" if str(start.get("device")).startswith("cpu") else ""
            places.add(f"{start.get('device', 'unknown device')}{threads}")
    return f"minutes ({' / '.join(sorted(places))})" if places else "minutes"


def show_minutes(runs: Sequence[Run]) -> str:
    """Show the mean training time."""
    known = [minutes for run in runs if (minutes := training_minutes(run)) is not None]
    return f"{np.mean(known):.1f}" if known else "-"


def link_records(experiment: Experiment, runs: Sequence[Run]) -> str:
    """Return the seeds of the runs, as a link from the repository's root where their records are in a record file."""
    seeds = ", ".join(str(run.seed) for run in runs)
    if any(isinstance(run.folder, zipfile.Path) for run in runs):
        return f"[{seeds}](results/{experiment.name}.zip)"
    return seeds or "-"
