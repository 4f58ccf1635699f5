"""Short training runs give fixed results.

A run that is killed and continued equals an uninterrupted one. All digests equal those in the file that the environment
variable FROZEN_RUNS names.
"""

import json
import os
from pathlib import Path

import pytest

from tests.frozen_runs import CASES, run_cases

pytestmark = pytest.mark.slow


def test_a_killed_and_continued_run_has_the_digest_of_an_uninterrupted_one(tmp_path):
    digests = run_cases(["every_loss", "killed"], tmp_path)
    assert digests["every_loss"] == digests["killed"]


@pytest.mark.skipif("FROZEN_RUNS" not in os.environ, reason="FROZEN_RUNS names no file that frozen_runs.py wrote here")
def test_runs_have_the_digests_of_the_given_file(tmp_path):
    expected = json.loads(Path(os.environ["FROZEN_RUNS"]).read_text())
    assert run_cases(list(expected.keys() & CASES.keys()), tmp_path) == expected
