"""Short runs stay what they were: a killed run is the whole one, and digests are those in the file FROZEN_RUNS."""

import json
import os
from pathlib import Path

import pytest

from tests.frozen_runs import CASES, run_cases

pytestmark = pytest.mark.slow


def test_a_killed_run_has_the_digest_of_a_whole_one(tmp_path):
    digests = run_cases(["every_loss", "killed"], tmp_path)
    assert digests["every_loss"] == digests["killed"]


@pytest.mark.skipif("FROZEN_RUNS" not in os.environ, reason="FROZEN_RUNS names no file that frozen_runs.py wrote here")
def test_runs_have_the_digests_of_before(tmp_path):
    expected = json.loads(Path(os.environ["FROZEN_RUNS"]).read_text())
    assert run_cases(list(expected.keys() & CASES.keys()), tmp_path) == expected
