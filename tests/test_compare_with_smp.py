"""The comparison with a plain loop around segmentation_models_pytorch: its command line, its record and its table."""

import json
import os
import subprocess
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from scripts.study import compare_with_smp, plain_smp, results_table
from scripts.study.compare_with_smp import ROOT, SmpComparisonConfig, Trained, make_table, make_table_of_record
from utils.errors import UserError
from utils.options import parse_flags


class DamagedStream:
    """Training samples. The last sample of the first batch cannot be read."""

    def __getitem__(self, position):
        if position == plain_smp.BATCH_SIZE - 1:
            return UserError("photo.jpg is damaged")
        return torch.zeros(3, 32, 32, dtype=torch.uint8), torch.zeros(32, 32, dtype=torch.uint8)


def test_the_plain_loop_names_a_file_that_cannot_be_read():
    with pytest.raises(UserError, match=r"photo\.jpg is damaged"):
        plain_smp.read_batch(DamagedStream(), 0)


@pytest.fixture
def scripts(monkeypatch):
    """Replace the two training scripts by a stand-in. Return the list of its calls."""
    calls = []

    def run(script, *flags):
        options = {flag: value for flag, value in pairwise(flags) if str(flag).startswith("--")}
        calls.append((script, options))
        if script == "train_student.py":
            folder = options["--save-dir"]
            folder.mkdir(parents=True, exist_ok=True)
            records = [{"event": "train", "cpu_seconds": 3.0}] * 2 + [{"event": "val", "miou": 0.6}]
            (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        else:
            result = {"miou": 0.5 + options["--seed"] / 100, "iterations": 40, "seconds": options["--seconds"]}
            options["--json"].write_text(json.dumps(result))

    monkeypatch.setattr(compare_with_smp, "run_script", run)
    return calls


def test_every_decoder_gets_the_processor_time_of_the_recipe(scripts, tmp_path, capsys):
    flags = ["--data", "D", "--decoders", "fpn", "unet", "--seeds", "0", "1", "--output", str(tmp_path / "smp")]
    compare_with_smp.main(flags)
    plain = [options for script, options in scripts if script == "scripts/study/plain_smp.py"]
    assert [(options["--decoder"], options["--seed"]) for options in plain] == [
        *(("fpn", 0), ("unet", 0)),
        *(("fpn", 1), ("unet", 1)),
    ]
    assert {options["--seconds"] for options in plain} == {6.0}
    printed = capsys.readouterr().out
    assert "| plain loop, fpn | 50.50 ± 0.71 (2) | 40 | 0.1 | +9.50 (+10.00, +9.00) |" in printed
    text = "<!-- table: smp smp/record.json -->\nold\n<!-- end -->"
    assert printed in results_table.rewrite_tables(text, tmp_path)

    scripts.clear()
    compare_with_smp.main(flags)
    # train_student.py itself continues a run or ends at once
    assert {script for script, _ in scripts} == {"train_student.py"}


def test_the_shell_script_compares_on_both_data_sets(tmp_path):
    python = tmp_path / "bin/python"
    python.parent.mkdir()
    python.write_text('#!/usr/bin/env bash\necho "$@"\n')
    python.chmod(0o755)
    command = ["bash", ROOT / "scripts/study/compare_with_smp.sh", "--seeds", "4"]
    environment = {**os.environ, "VIRTUAL_ENV": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    settings = []
    for line in done.stdout.splitlines():
        script, *flags = line.split()
        assert ROOT / script == Path(compare_with_smp.__file__)
        settings.append(SmpComparisonConfig(**parse_flags(SmpComparisonConfig, "", flags)))
    assert [one.dataset for one in settings] == ["camvid", "folder"]
    assert [one.seeds for one in settings] == [(4,), (4,)]


def test_one_seed_has_no_deviation():
    _, rows = make_table({"ours": [Trained(0.5, 10, 60.0)], "theirs": [Trained(0.52, 5, 60.0)]})
    assert rows == [["ours", "50.00 (1)", "10", "1.0", ""], ["theirs", "52.00 (1)", "5", "1.0", "-2.00 (-2.00)"]]


RESULT = {"miou": 0.5, "iterations": 1, "seconds": 1.0}
INVALID_RECORDS = [[], {"ways": 5}, {"ways": {}}, {"ways": {"a": []}}, {"ways": {"a": [{"miou": 1}]}}]
INVALID_RECORDS += [{"ways": {"a": [RESULT, RESULT], "b": [RESULT]}}, {"ways": {"a": [{**RESULT, "miou": None}]}}]


@pytest.mark.parametrize("content", ["", *map(json.dumps, INVALID_RECORDS)])
def test_a_file_that_is_no_record_is_refused(tmp_path, content):
    (tmp_path / "record.json").write_text(content)
    with pytest.raises(UserError, match=r"record.json is no record of compare_with_smp.py"):
        make_table_of_record(tmp_path / "record.json")
