"""Break runs with each fault and check that nothing is lost. Faults by a signal run once for each signal.

Nothing is lost if the run ends as expected after the fault and leaves no process behind. The continued run must also
reach the weights, the optimizer state and the losses of a run without a fault, bit by bit.
"""

import pytest

from tests.breaking.bench import Bench
from tests.breaking.faults import FAULTS, SIGNALS, check_long_run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    """Return the folder for runs and the reference runs to compare them with."""
    return Bench(tmp_path_factory.mktemp("breaking"), seed=0)


@pytest.mark.parametrize("name", FAULTS)
def test_nothing_is_lost(name, bench):
    repeats = len(SIGNALS) if name.startswith("signal") else 1
    for _ in range(repeats):
        FAULTS[name](bench)


def test_a_long_run_does_not_grow_in_memory_or_files(bench):
    check_long_run(bench, iterations=2000)
