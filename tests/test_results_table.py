import importlib.util
import json

import pytest

from tests.conftest import ROOT
from utils.errors import UserError

spec = importlib.util.spec_from_file_location("results_table", ROOT / "scripts/results_table.py")
results_table = importlib.util.module_from_spec(spec)
spec.loader.exec_module(results_table)

TABLES = {
    "t": {
        "columns": ["network"],
        "rows": [
            {"cells": ["a"], "published": 75.0, "command": "run a", "files": "a*.json"},
            {"cells": ["b"], "command": "run b", "files": "b*.json"},
        ],
    }
}


def test_rows_are_the_mean_over_files_or_not_run(tmp_path):
    for i, miou in enumerate((0.5, 0.6)):
        (tmp_path / f"a{i}.json").write_text(json.dumps({"miou": miou}))
    text = "x\n<!-- table: t -->\nold\n<!-- end -->\ny\n"
    lines = results_table.rewrite(text, TABLES, tmp_path).splitlines()
    assert lines[0] == "x"
    assert lines[-1] == "y"
    assert "| a | 75.00 | 55.00 +- 7.07 | 2 | `run a` | [a0](results/a0.json), [a1](results/a1.json) |" in lines
    assert "| b | - | not run | 0 | `run b` | - |" in lines
    again = results_table.rewrite("\n".join(lines), TABLES, tmp_path)
    assert again.splitlines() == lines


def test_an_unknown_table_is_named(tmp_path):
    with pytest.raises(UserError, match="unknown table"):
        results_table.rewrite("<!-- table: u -->\n<!-- end -->", TABLES, tmp_path)


def test_the_readme_shows_what_the_results_hold(command):
    command("scripts/results_table.py", "--readme", "README.md", "--check")
