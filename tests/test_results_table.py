import json
import re

import pytest

from scripts.study import results_table
from tests.conftest import ROOT
from utils.errors import UserError

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
    assert "| a | 75.00 | 55.00 ± 7.07 | 2 | `run a` | [a0](results/a0.json), [a1](results/a1.json) |" in lines
    assert "| b | - | not run | 0 | `run b` | - |" in lines
    again = results_table.rewrite("\n".join(lines), TABLES, tmp_path)
    assert again.splitlines() == lines


@pytest.mark.parametrize("content", ["[]", "{}", "{", "3", '{"miou": 0.5}'])
def test_a_file_of_something_else_is_named(content, tmp_path):
    (tmp_path / "robustness.json").write_text(content)
    with pytest.raises(UserError, match=r"robustness.json is no result of eval.py"):
        results_table.files_table([tmp_path / "robustness.json"])


def test_an_unknown_table_is_named(tmp_path):
    with pytest.raises(UserError, match="unknown table"):
        results_table.rewrite("<!-- table: u -->\n<!-- end -->", TABLES, tmp_path)


@pytest.mark.parametrize("readme", ["README.md", "results/README.md"])
def test_the_readmes_show_what_the_results_hold(command, readme):
    command("scripts/study/results_table.py", "--readme", readme, "--check")


@pytest.mark.parametrize("readme", ["README.md", "results/README.md"])
def test_files_that_the_readmes_link_are_there(readme):
    text = (ROOT / readme).read_text(encoding="utf-8")
    linked = re.findall(r"\]\((?!https?:)([^)#]+)", text)
    assert linked
    assert not [path for path in linked if not (ROOT / readme).parent.joinpath(path).exists()]


def test_links_lead_from_the_readmes_own_folder(tmp_path):
    (tmp_path / "a0.json").write_text('{"miou": 0.5}')
    text = results_table.rewrite("<!-- table: t -->\n<!-- end -->\n", TABLES, tmp_path, ".")
    assert "[a0](./a0.json)" in text
