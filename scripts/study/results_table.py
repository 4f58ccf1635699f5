"""Tables from the JSON files of eval.py.

    python scripts/study/results_table.py runs/quickstart/*/eval.json      # one table of these files
    python scripts/study/results_table.py --readme README.md               # rewrite the tables of README.md in place
    python scripts/study/results_table.py --readme README.md --check       # exit 1 if they are not what the files say

A table of a README stands between ``<!-- table: NAME -->`` and ``<!-- end -->``; NAME is a key of results/tables.yaml,
which lists the rows, their published numbers and commands, and where in results/ their files are, or names an
experiment of scripts/study/experiments, whose records are in results/<experiment>. A row without files says "not run".
"""

import argparse
import json
import os
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from utils.environment import require_packages

require_packages()

from scripts.study.analysis.runs import KINDS, read_score
from scripts.study.analysis.style import markdown, percent, spread
from scripts.study.experiments.definition import read_experiment
from scripts.study.experiments.losses_table import losses
from scripts.study.experiments.tables import gains, students, summary
from scripts.study.experiments.teachers_table import teachers
from utils.errors import UserError, lookup, run_main
from utils.files import read_yaml, write_text

TABLES = {"summary": summary, "students": students, "gains": gains, "teachers": teachers, "losses": losses}
RESULTS = Path(__file__).resolve().parents[2] / "results"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path, help="written by eval.py --json")
    parser.add_argument("--readme", type=Path, help="Markdown file whose marked tables are rewritten")
    parser.add_argument("--check", action="store_true", help="change nothing, exit 1 where something would change")
    args = parser.parse_args(argv)
    if args.files:
        print(markdown(*files_table(args.files)), end="")
    if args.readme:
        old = args.readme.read_text(encoding="utf-8")
        tables = read_yaml(RESULTS / "tables.yaml")
        new = rewrite(old, tables, RESULTS, os.path.relpath(RESULTS, args.readme.resolve().parent))
        if args.check and new != old:
            raise UserError(f"{args.readme} does not show what results/ holds: run this without --check")
        if not args.check:
            write_text(args.readme, new)


def files_table(files: list[Path]) -> tuple[list[str], list[list[str]]]:
    """A row for each file, named after its folder."""
    rows = []
    for file in files:
        result = read(file, KINDS.keys() - {"checkpoint", "iou"})
        seen = "image + label (LABEL-ASSISTED)" if result["label_assisted"] else "image"
        where = f"{result['dataset']} {result['split']}, {result['images']} images, {result['protocol']}"
        network = f"{result['model']['arch']} {result['model']['backbone']}"
        scores = [percent(result[key]) for key in ("miou", "pixel_accuracy")]
        rows.append([file.parent.name, network, seen, str(result["iteration"]), *scores, where])
    return ["run", "network", "input", "iterations", "mIoU %", "pixel accuracy %", "protocol"], rows


def rewrite(text: str, tables: dict[str, Any], results: Path, link: str = "results") -> str:
    """``text`` with every marked table made anew; ``link`` leads from its folder to ``results``."""

    def table(match: re.Match[str]) -> str:
        spec = lookup(tables, match["name"], "table in results/tables.yaml")
        rows = markdown(*declared_table(spec, results)).replace("](results/", f"]({link}/")
        return f"<!-- table: {match['name']} -->\n{rows}<!-- end -->"

    return re.sub(r"<!-- table: (?P<name>[\w-]+) -->\n.*?<!-- end -->", table, text, flags=re.DOTALL)


def declared_table(spec: dict[str, Any], results: Path) -> tuple[list[str], list[list[str]]]:
    """columns: headings of each row's ``cells``; then published, ours (mean ± std), n, command, log (files).

    Or of an experiment: its students, their gains or its teachers.
    """
    if "experiment" in spec:
        experiment = read_experiment(spec["experiment"])
        return lookup(TABLES, spec["show"], "table of an experiment")(experiment, results / experiment.name)
    rows = []
    for row in spec["rows"]:
        files = sorted(results.glob(row["files"])) if row.get("files") else []
        scores = [score for file in files if (score := read(file, ["miou"])["miou"]) is not None]
        published = "-" if row.get("published") is None else f"{row['published']:.2f}"
        ours = spread(scores) if scores else "not run"
        log = ", ".join(f"[{file.stem}](results/{file.relative_to(results)})" for file in files) or "-"
        rows.append([*row["cells"], published, ours, str(len(scores)), f"`{row['command']}`", log])
    return [*spec["columns"], "published mIoU %", "ours mIoU %", "n", "command", "log"], rows


def read(file: Path, keys: Iterable[str]) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file} is no result of eval.py: {error}") from error
    return read_score(content, file, keys)


if __name__ == "__main__":
    run_main(main)
