"""Test the tables that results_table.py writes into the pages."""

import re
from statistics import mean, stdev

import numpy as np
import pytest

from scripts.study import results_table
from scripts.study.analysis.paired import compute_interval_over_seeds, compute_p_over_seeds
from scripts.study.analysis.record_files import pack_runs
from scripts.study.analysis.runs import compute_miou
from scripts.study.analysis.text import format_mean_std
from scripts.study.experiments.comparisons import make_comparisons_table
from scripts.study.experiments.definition import read_experiment
from scripts.study.experiments.tables import make_progress_table
from tests.conftest import ROOT
from tests.test_compare import make_areas, make_run
from utils.errors import UserError

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES += [ROOT / f"{folder}/README.md" for folder in ("results", "checkpoints", "losses", "models")]
MOST_COLUMNS = 5
EXPERIMENT = """
columns: [network]
source: a paper
recipe: toy
seeds: [0, 1]
settings: {kd: none}
runs:
  a: {row: [first], published: 75.0}
  b: {row: [second]}
  c: {title: not in the table}
"""


def test_a_published_table_has_the_scores_of_the_paper_and_ours(tmp_path):
    (tmp_path / "t.yaml").write_text(EXPERIMENT)
    areas_of_seed = {0: make_areas(0.5), 1: make_areas(0.6)}
    for seed, areas in areas_of_seed.items():
        make_run(tmp_path / f"runs/a-{seed}", seed, areas)
        (tmp_path / f"runs/a-{seed}/eval-last.json").rename(tmp_path / f"runs/a-{seed}/last.json")
    pack_runs(tmp_path / "t.zip", [tmp_path / "runs/a-0", tmp_path / "runs/a-1"])
    text = f"x\n<!-- table: {tmp_path}/t.yaml published -->\nold\n<!-- end -->\ny\n"
    lines = results_table.rewrite_tables(text, tmp_path, ".").splitlines()
    assert (lines[0], lines[-1]) == ("x", "y")
    ours = format_mean_std([float(compute_miou(areas.sum(0))) for areas in areas_of_seed.values()])
    assert f"| first | 75.00 | {ours} (2) | not run | [`a`](./t.zip) |" in lines
    assert "| second | none | not run | not run | `b` |" in lines
    assert len(lines) == 8
    assert results_table.rewrite_tables("\n".join(lines), tmp_path, ".").splitlines() == lines


@pytest.mark.parametrize("content", ["[]", "{}", "{", "3", '{"miou": 0.5}'])
def test_a_file_that_is_no_result_is_refused(content, tmp_path):
    (tmp_path / "robustness.json").write_text(content)
    with pytest.raises(UserError, match=r"robustness.json is no result of eval.py"):
        results_table.make_files_table([tmp_path / "robustness.json"])


@pytest.mark.parametrize(
    ("mark", "message"),
    [
        ("camvit students", "experiment not found: .*camvid"),
        ("camvid studnets", "unknown kind of table 'studnets'; did you mean 'students'"),
        ("camvid", "write an experiment and a kind of table"),
        ("files none.json", r"none\.json is no result of eval.py"),
    ],
)
def test_an_unknown_table_is_named(mark, message, tmp_path):
    with pytest.raises(UserError, match=message):
        results_table.rewrite_tables(f"<!-- table: {mark} -->\n<!-- end -->", tmp_path)


@pytest.mark.parametrize("readme", ["README.md", "results/README.md"])
def test_the_tables_of_the_readmes_are_up_to_date(readme, monkeypatch):
    monkeypatch.chdir(ROOT)
    results_table.main(["--readme", readme, "--check"])


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_table_has_at_most_five_columns_and_rows_of_equal_length(page):
    for table in re.findall(r"(?:^\|.*\n)+", page.read_text(encoding="utf-8"), re.M):
        widths = {len(re.split(r"(?<!\\)\|", line.strip())) - 2 for line in table.splitlines()}
        assert len(widths) == 1, f"rows of different lengths below {table.splitlines()[0]}"
        assert max(widths) <= MOST_COLUMNS, table.splitlines()[0]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_files_and_headings_that_a_page_links_exist(page):
    for path, heading in re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", page.read_text(encoding="utf-8")):
        target = page.parent / path if path else page
        assert target.exists(), f"{page}: {path}"
        if heading:
            titles = re.findall(r"^#+ (.*)", target.read_text(encoding="utf-8"), re.M)
            anchors = [re.sub(r"[^\w\- ]", "", title).lower().replace(" ", "-") for title in titles]
            assert heading in anchors, f"{page}: {path}#{heading}"


def test_a_table_shows_only_the_chosen_runs_and_pairs(tmp_path):
    runs = "{one: {settings: {kd: none}}, two: {settings: {kd: none}}, later: {settings: {kd: none}}}"
    (tmp_path / "t.yaml").write_text(f"recipe: toy\nseeds: [0, 1]\nbaseline: one\nequal_time: two\nruns: {runs}\n")
    for seed in (0, 1):
        for name, quality in (("one", 0.5), ("two", 0.6)):
            make_run(tmp_path / f"runs/{name}-{seed}", seed, make_areas(quality, seed))
            (tmp_path / f"runs/{name}-{seed}/eval-last.json").rename(tmp_path / f"runs/{name}-{seed}/last.json")
    pack_runs(tmp_path / "t.zip", sorted((tmp_path / "runs").iterdir()))

    def first_cells(kind):
        text = results_table.rewrite_tables(f"<!-- table: {tmp_path}/t.yaml {kind} -->\n<!-- end -->", tmp_path)
        return [tuple(cell.strip() for cell in line.split("|")[1:3]) for line in text.splitlines()[3:-1]]

    # a run without results has no row
    assert [cells[0] for cells in first_cells("brief later two one")] == ["two", "one"]
    assert first_cells("brief later")[0][0] == "not run"
    assert first_cells("pairs one:two later:one") == [("one", "two")]
    assert first_cells("gains") == [("two", "one")]  # the reverse, ("one", "two"), is not listed as well
    with pytest.raises(UserError, match="unknown run of t 'twoo'; did you mean 'two'"):
        first_cells("pairs one:twoo")


def test_comparisons_table_of_an_experiment(tmp_path):
    runs = "{one: {settings: {kd: none}}, two: {settings: {kd: none}}, later: {settings: {kd: none}}}"
    (tmp_path / "t.yaml").write_text(f"recipe: toy\nseeds: [0, 1, 2]\nruns: {runs}\n")
    differences = []
    for seed in (0, 1, 2):
        scores = []
        for name, quality in (("one", 0.5), ("two", 0.7)):
            areas = make_areas(quality, seed)
            folder = tmp_path / f"runs/{name}-{seed}"
            make_run(folder, seed, areas)
            (folder / "eval-last.json").rename(folder / "last.json")
            scores.append(float(compute_miou(areas.sum(0))))
        differences.append(100 * (scores[0] - scores[1]))
    pack_runs(tmp_path / "t.zip", sorted((tmp_path / "runs").iterdir()))
    file = tmp_path / "c.yaml"
    file.write_text(f"columns: {{here: {tmp_path}/t.yaml}}\nrows: {{q: ['one:two'], r: [''], s: ['later:two']}}\n")
    half_width = 4.302653 * stdev(differences) / 3**0.5  # the 97.5 % quantile of Student's t with 2 degrees of freedom
    center = mean(differences)
    cell = f"**{center:+.1f} ({center - half_width:+.1f} to {center + half_width:+.1f})**"
    head = ["comparison, by question", "here"]
    assert make_comparisons_table(file, tmp_path) == (head, [["q", cell], ["r", "not run"], ["s", "not run"]])
    for text, message in (
        ("columns: 3", "write 'columns'"),
        (f"columns: {{here: {tmp_path}/t.yaml}}\nrows: {{q: ['one:two', '']}}", "row 'q' has 2 pairs for 1 columns"),
        (f"columns: {{here: {tmp_path}/t.yaml}}\nrows: {{q: ['one:twoo']}}", "unknown run of t 'twoo'"),
    ):
        file.write_text(text)
        with pytest.raises(UserError, match=message):
            make_comparisons_table(file, tmp_path)


def test_an_interval_excludes_zero_where_p_is_below_5_percent():
    rng = np.random.default_rng(0)
    for shift in np.linspace(0, 3, 20):
        differences = list(rng.normal(shift, 1, 3))
        low, high = compute_interval_over_seeds(differences)
        assert (low > 0 or high < 0) == (compute_p_over_seeds(differences) < 0.05)
    assert compute_interval_over_seeds([0.5]) is None


def test_the_progress_table_has_the_scores_at_each_quarter(tmp_path):
    """Two seeds are validated at each quarter: make_run() writes validations after 10, 20 and 30 iterations."""
    (tmp_path / "t.yaml").write_text("recipe: toy\nseeds: [0, 1]\nruns: {one: {settings: {kd: none}}}\n")
    for seed in (0, 1):
        make_run(tmp_path / f"runs/one-{seed}", seed, max_iterations=40)
    log = tmp_path / "runs/one-1/metrics.jsonl"
    text = log.read_text().replace('"miou": 0.4,', '"miou": 0.6,')  # after 10 and after 30 iterations
    lines = text.splitlines()[:-1]
    lines.append('{"event": "val", "iteration": 20, "miou": 0.3}')  # a resumed run may validate once more
    log.write_text("\n".join(lines))
    _, rows = make_progress_table(read_experiment(f"{tmp_path}/t.yaml"), tmp_path / "runs", ["one"])
    assert rows == [["one (2)", "50.00 ± 14.14", "40.00 ± 14.14", "50.00 ± 14.14", "-"]]


def test_a_missing_record_file_is_named(tmp_path):
    with pytest.raises(UserError, match="no such file or folder"):
        results_table.main(["--experiment", "camvid_fpn", "--records", f"{tmp_path}/none.zip"])


def test_results_hold_few_files():
    assert len([path for path in (ROOT / "results").rglob("*") if path.is_file()]) <= 150
