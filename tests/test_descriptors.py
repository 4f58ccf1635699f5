"""Too few file descriptors for loader workers are one message before the start, not a hang in the middle."""

import errno
import resource

import pytest

from utils import descriptors
from utils.descriptors import require_descriptors
from utils.errors import UserError, explain_error


@pytest.fixture
def limits(monkeypatch):
    """The limits of this process as a dictionary, so that the real ones stay."""
    now = {"soft": 40, "hard": 40}

    def change(kind, values):
        now["soft"], now["hard"] = values

    monkeypatch.setattr(descriptors.resource, "getrlimit", lambda kind: (now["soft"], now["hard"]))
    monkeypatch.setattr(descriptors.resource, "setrlimit", change)
    monkeypatch.setattr(descriptors, "count_open_files", lambda: 10)
    return now


def test_a_limit_that_is_too_low_is_said(limits):
    with pytest.raises(UserError, match=r"--workers 2 need 58 open files, this process may have 40: .*ulimit -n 4096"):
        require_descriptors(2)
    require_descriptors(0)
    assert limits == {"soft": 40, "hard": 40}


@pytest.mark.parametrize("hard", [58, 4096, resource.RLIM_INFINITY])
def test_a_limit_of_ones_own_is_raised(limits, hard):
    limits["hard"] = hard
    require_descriptors(2)
    assert limits == {"soft": 58, "hard": hard}


def test_a_limit_that_is_high_enough_stays(limits):
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
def test_what_fails_for_want_of_descriptors_says_so(error):
    assert "ulimit -n 4096), or fewer --workers" in str(explain_error(error))
