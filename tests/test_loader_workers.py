"""Loader workers that never start, hang, or cannot send their batches."""

import errno
import faulthandler
import multiprocessing
import os
import signal
import tempfile
import time

import pytest
import torch

from engine import loader
from engine.loader import load_eval_batches
from engine.runtime import Runtime
from utils.errors import UserError

FORKS = {"hang": 0}  # how many of the next forked processes hang at their start


def hang_after_fork():
    """Hang for ever, like a worker that waits for an inherited lock which nobody releases."""
    if FORKS["hang"]:
        signal.pthread_sigmask(signal.SIG_BLOCK, loader.STOP_SIGNALS)
        while True:
            time.sleep(60)


def count_fork():
    """Count in the parent that one process was forked."""
    FORKS["hang"] = max(0, FORKS["hang"] - 1)


os.register_at_fork(after_in_child=hang_after_fork, after_in_parent=count_fork)


@pytest.fixture(autouse=True)
def check_that_no_process_is_left():
    """Check that a test leaves no child process behind."""
    before = {child.pid for child in multiprocessing.active_children()}
    yield
    assert {child.pid for child in multiprocessing.active_children()} <= before


@pytest.fixture(autouse=True)
def limit_the_time_of_a_test():
    """End this process after two minutes, with a traceback of every thread."""
    faulthandler.dump_traceback_later(120, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


class Numbers(torch.utils.data.Dataset):
    """Five samples that hold their own index. Reading one of the ``hanging`` indices takes ten minutes."""

    def __init__(self, hanging=()):
        self.hanging = hanging

    def __len__(self):
        return 5

    def __getitem__(self, index):
        if index in self.hanging:
            time.sleep(600)
        return torch.full((3, 2, 2), index), torch.zeros(2, 2), index


def read_numbers(dataset=None, workers=2):
    """Read all samples and return their indices."""
    return [int(indices) for _, _, indices in load_eval_batches(dataset or Numbers(), workers, Runtime())]


@pytest.mark.parametrize("hanging", [1, 2])
def test_workers_that_do_not_start_are_started_again(monkeypatch, capsys, hanging):
    monkeypatch.setattr(loader, "START_SECONDS", 5)
    monkeypatch.setitem(FORKS, "hang", hanging)
    assert read_numbers() == [0, 1, 2, 3, 4]
    assert "the 2 loader workers did not begin within 5 s: they are started again" in capsys.readouterr().err


def test_an_interrupt_ends_workers_that_have_not_started(monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setitem(FORKS, "hang", 100)
    monkeypatch.setattr(loader, "_wait_for_start", interrupt)
    with pytest.raises(KeyboardInterrupt):
        read_numbers()


def test_zero_workers_need_no_semaphore(monkeypatch):
    def refuse(*_, **__):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("multiprocessing.synchronize.SemLock.__init__", refuse)
    assert read_numbers(workers=0) == [0, 1, 2, 3, 4]


def test_workers_that_never_start_have_a_message(monkeypatch):
    monkeypatch.setattr(loader, "START_SECONDS", 0.5)
    monkeypatch.setitem(FORKS, "hang", 100)
    with pytest.raises(UserError, match=r"the 2 loader workers did not begin within 0.5 s, 3 times"):
        read_numbers()


def test_a_worker_that_hangs_ends_with_the_loader(monkeypatch):
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.2)  # the default is 5 s
    batches = load_eval_batches(Numbers(hanging=[1]), 2, Runtime())
    next(batches)
    batches.close()


def test_a_worker_killed_while_holding_a_lock_does_not_block_the_end():
    batches = load_eval_batches(Numbers(), 2, Runtime())
    next(batches)
    iterator = batches.gi_frame.f_locals["iterator"]
    iterator._workers_done_event._cond.acquire()  # a worker that dies while it holds this lock never releases it
    os.kill(iterator._workers[0].pid, signal.SIGKILL)
    iterator._workers[0].join()
    batches.close()


def test_a_temporary_folder_with_too_long_a_path_has_a_message(monkeypatch, tmp_path):
    folder = tmp_path / ("long" * 30)
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    with pytest.raises(UserError, match=r"AF_UNIX path too long\): set TMPDIR to a folder with a short path"):
        read_numbers()
    assert list(folder.iterdir()) == []
    assert read_numbers(workers=0) == [0, 1, 2, 3, 4]


def test_a_missing_temporary_folder_has_the_same_message(monkeypatch):
    def find_none():
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found")

    monkeypatch.setattr(tempfile, "gettempdir", find_none)
    with pytest.raises(UserError, match=r"No usable temporary directory found\): set TMPDIR .*, or give --workers 0"):
        read_numbers()
