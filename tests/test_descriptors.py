"""A run with too few file descriptors for its loader workers is refused at the start. It does not hang later."""

import errno
import resource

import pytest

from utils import descriptors
from utils.descriptors import require_descriptors
from utils.errors import UserError, explain_error


@pytest.fixture
def limits(monkeypatch):
    """Replace the limits of this process with a dictionary, so that the real limits do not change."""
    fake_limits = {"soft": 40, "hard": 40}

    def set_limits(kind, values):
        fake_limits["soft"], fake_limits["hard"] = values

    monkeypatch.setattr(descriptors.resource, "getrlimit", lambda kind: (fake_limits["soft"], fake_limits["hard"]))
    monkeypatch.setattr(descriptors.resource, "setrlimit", set_limits)
    monkeypatch.setattr(descriptors, "count_open_files", lambda: 10)
    return fake_limits


def test_a_limit_that_is_too_low_is_reported(limits):
    with pytest.raises(UserError, match=r"--workers 2 need 58 open files, this process may have 40: .*ulimit -n 4096"):
        require_descriptors(2)
    require_descriptors(0)
    assert limits == {"soft": 40, "hard": 40}


@pytest.mark.parametrize("hard", [58, 4096, resource.RLIM_INFINITY])
def test_a_soft_limit_below_the_hard_limit_is_raised(limits, hard):
    limits["hard"] = hard
    require_descriptors(2)
    assert limits == {"soft": 58, "hard": hard}


def test_a_limit_that_is_high_enough_is_not_changed(limits):
    for soft in (58, resource.RLIM_INFINITY):
        limits.update(soft=soft, hard=resource.RLIM_INFINITY)
        require_descriptors(2)
        assert limits["soft"] == soft


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EMFILE, "Too many open files", "a.png"),
        OSError(errno.ENFILE, "Too many open files in system"),
        RuntimeError("received 0 items of ancdata"),
        RuntimeError("Caught X in DataLoader worker process 0.\nTraceback\nOSError: [Errno 24] Too many open files"),
    ],
)
def test_errors_from_too_few_descriptors_suggest_a_remedy(error):
    assert "ulimit -n 4096), or fewer --workers" in str(explain_error(error))
