"""Break runs and see that nothing is lost: each fault once; signals once for each of them.

Nothing is lost: the run ends as the fault demands, no process is left behind, and what continues it reaches the
weights, the optimizer state and the losses of a run without a fault, to the last bit.
"""

import pytest

from tests.breaking.bench import Bench
from tests.breaking.faults import FAULTS, SIGNALS, soak

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    """A folder for runs, and the runs without a fault that others are compared with."""
    return Bench(tmp_path_factory.mktemp("breaking"), seed=0)


@pytest.mark.parametrize("name", FAULTS)
def test_nothing_is_lost(name, bench):
    _, fault = FAULTS[name]
    for _ in SIGNALS if name.startswith("signal") else (None,):
        fault(bench)


def test_a_long_run_does_not_grow(bench):
    soak(bench, iterations=2000)
