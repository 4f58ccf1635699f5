"""Test the Runtime, which owns the device and the process group, and failures that occur only on a cluster."""

import errno
import fcntl
import os
import socket
import subprocess
import sys
from collections import OrderedDict
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from mmengine.logging import MMLogger

import train_teacher
from datasets import cache
from engine import machine, run_folder, runtime
from engine.finite import FiniteWatch
from engine.lockstep import Stopped
from engine.runtime import Runtime
from engine.settings import TeacherConfig
from models.layers import make_conv_norm_act
from tests.conftest import ENVIRONMENT, ROOT, TINY
from utils import checkpoint
from utils.entry import run_main
from utils.errors import UserError, explain_error


def test_a_function_runs_on_rank_0_and_its_error_is_raised():
    assert Runtime().on_rank0(pow, 2, 3) == 8
    assert Runtime().broadcast(3) == 3

    def fail():
        raise UserError("no such file")

    with pytest.raises(UserError, match="no such file"):
        Runtime().on_rank0(fail)


def test_an_explained_error_of_rank_0_keeps_its_cause():
    full = OSError(errno.ENOSPC, "No space left on device")

    def fail():
        raise full

    with pytest.raises(UserError, match="No space left") as raised:
        Runtime().on_rank0(fail)
    assert raised.value.__cause__ is full


@pytest.mark.parametrize(("backend", "destroyed_after_failure"), [("auto", 0), ("gloo", 1)])
def test_an_nccl_group_is_not_destroyed_after_a_failure_of_one_rank(backend, destroyed_after_failure, monkeypatch):
    """Destroying an NCCL group waits for the other ranks, which may wait for the failed one.

    All ranks stop together, so after a stop the group is destroyed. The test only pretends to have a GPU.
    """
    destroyed = []
    monkeypatch.setattr(runtime, "_choose_device", lambda *given: torch.device("cuda", 0))
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(runtime, "_join_group", lambda backend: None)
    for name, value in (("is_initialized", True), ("get_rank", 0), ("get_world_size", 2)):
        monkeypatch.setattr(dist, name, lambda value=value: value)
    monkeypatch.setattr(dist, "destroy_process_group", lambda: destroyed.append(1))
    for key in ("RANK", "WORLD_SIZE"):
        monkeypatch.setenv(key, "1")
    settings = SimpleNamespace(device="cuda", backend=backend)
    with pytest.raises(UserError), runtime.start_runtime(settings):
        raise UserError("a disk is full")
    assert len(destroyed) == destroyed_after_failure
    with pytest.raises(SystemExit), runtime.start_runtime(settings):
        raise Stopped(3)  # all ranks stop together
    with runtime.start_runtime(settings):
        pass
    assert len(destroyed) == destroyed_after_failure + 2


@pytest.mark.parametrize(("error", "status"), [(UserError("a disk is full"), 2), (ZeroDivisionError("bug"), 1)])
def test_a_failed_rank_prints_its_error_and_exits_at_once(error, status, monkeypatch, capsys):
    def fail():
        raise error

    class ExitCalled(BaseException):
        """Raised in place of os._exit(). Code that catches Exception does not catch it."""

    def raise_exit_called(status):
        raise ExitCalled(f"at once, {status}")

    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(os, "_exit", raise_exit_called)
    with pytest.raises(ExitCalled, match=f"at once, {status}"):
        run_main(fail)
    stderr = capsys.readouterr().err
    if status == 2:
        assert stderr == "error: a disk is full\n"
    else:
        assert "ZeroDivisionError: bug" in stderr


EXIT_SCRIPT = """
import atexit, sys
from utils.entry import run_main

class LivesOn:
    def __del__(self):
        print("the interpreter is taken down")

kept = LivesOn()
atexit.register(print, "exit functions ran")
status = int(sys.argv[1])
run_main(lambda: sys.exit(status) if status else print("done"))
"""


@pytest.mark.parametrize("status", [0, 3])
def test_a_rank_exits_before_the_interpreter_is_shut_down(status):
    """Gloo threads outlive the process group. Such a thread aborts the process if it needs the interpreter too late."""
    environment = ENVIRONMENT | {"RANK": "0", "WORLD_SIZE": "1"}
    line = [sys.executable, "-c", EXIT_SCRIPT, str(status)]
    result = subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True)
    lines = ["done", "exit functions ran"] if status == 0 else ["exit functions ran"]
    assert (result.returncode, result.stdout.splitlines(), result.stderr) == (status, lines, "")


@pytest.mark.parametrize("is_launched", [False, True])
@pytest.mark.parametrize("status", [0, 3])
def test_the_exit_status_when_nobody_reads_the_output(status, is_launched):
    environment = dict(ENVIRONMENT)
    if is_launched:
        environment |= {"RANK": "0", "WORLD_SIZE": "1"}
    environment.pop("PYTHONUNBUFFERED", None)
    code = f"""
import sys
from utils.entry import run_main
def main():
    sys.stdout.write("this stays in the buffer")
    if {status}:
        sys.exit({status})
run_main(main)
"""
    reader, writer = os.pipe()
    os.close(reader)
    line = [sys.executable, "-c", code]
    result = subprocess.run(line, cwd=ROOT, env=environment, stdout=writer, stderr=writer, check=False)
    os.close(writer)
    assert result.returncode == (status or 141)


def test_sys_exit_with_a_message_prints_it(monkeypatch, capsys):
    with pytest.raises(SystemExit) as ending:
        run_main(lambda: sys.exit("in words"))
    assert ending.value.code == 1
    assert capsys.readouterr().err == "in words\n"


@pytest.mark.parametrize(
    ("cause", "message"),
    [
        (" \nCuda failure 2 'out of memory'", "NCCL failed (Cuda failure 2 'out of memory')"),
        (
            "\nError while creating /dev/shm/nccl-x (size 9637),\nerror: No space left on device (28)",
            "docker: --shm",
        ),
        ("\nsocketProgress: Connection closed by remote peer host<1>", "another process of the job ended or does not"),
        (None, "another process of the job ended or does not"),
    ],
)
def test_nccl_errors_of_this_rank_and_of_other_ranks_are_distinguished(cause, message, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    text = "NCCL error in: ProcessGroupNCCL.cpp:94, unhandled system error (run with NCCL_DEBUG=INFO for details)"
    if cause is not None:
        text += f"\nncclSystemError: System call failed.\nLast error:{cause}"
    assert message in str(explain_error(dist.DistBackendError(text)))


def test_tensors_that_are_not_finite_are_noticed_when_the_loss_is_finite():
    watch = FiniteWatch(lambda what, iteration, terms: f"{what} at {iteration}")
    watch.watch(4, {"loss": torch.tensor(1.0)})
    watch.check([torch.ones(3), torch.full((2, 2), 1e30)])
    with pytest.raises(UserError, match="the gradient is not finite at 4"):
        watch.check([torch.ones(3), torch.tensor([1.0, torch.nan])])


@pytest.mark.parametrize(
    ("address", "hosts", "interface", "is_warned"),
    [
        ("127.0.1.1", 2, None, True),
        (None, 2, None, True),
        ("10.0.0.7", 2, None, False),
        ("127.0.1.1", 1, None, False),
        ("127.0.1.1", 2, "eth0", False),
    ],
)
def test_a_host_name_that_others_cannot_resolve_gives_a_warning(
    address, hosts, interface, is_warned, monkeypatch, capsys
):
    def resolve(name):
        if address is None:
            raise socket.gaierror("Name or service not known")
        return address

    monkeypatch.setattr(socket, "gethostbyname", resolve)
    monkeypatch.setattr(dist, "init_process_group", lambda *given, **more: None)
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    if interface:
        monkeypatch.setenv("GLOO_SOCKET_IFNAME", interface)
    for key, value in {"LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 2, "WORLD_SIZE": 2 * hosts}.items():
        monkeypatch.setenv(key, str(value))
    runtime._join_group("gloo")
    assert ("set GLOO_SOCKET_IFNAME" in capsys.readouterr().err) == is_warned


@pytest.mark.parametrize("parts", [2, 4])
def test_gradient_accumulation_gives_the_same_weights(tmp_path, parts):
    flags = [*TINY, "--freeze-bn", "--dropout", "0", "--max-iterations", "2"]
    weights = []
    for n in (1, parts):
        train_teacher.main([*flags, "--accumulate", str(n), "--save-dir", str(tmp_path / str(n))])
        weights.append(checkpoint.read(tmp_path / f"{n}/last.pth")["model"]["main.classifier.weight"])
    torch.testing.assert_close(*weights, rtol=1e-3, atol=1e-5)


def test_missing_git_locks_and_shared_memory_are_handled(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FileNotFoundError):
        subprocess.run(["git"], check=False)
    assert machine.describe_environment(torch.device("cpu"))["git"] == "unknown"

    def fail_to_lock(file, flags):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", fail_to_lock)
    run_folder.open_run_folder(TeacherConfig(save_dir=str(tmp_path / "run")), Runtime(), {}).close()
    assert "cannot be locked" in capsys.readouterr().err

    def fail_for_full_memory(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(cache.os, "posix_fallocate", fail_for_full_memory)
    with pytest.raises(UserError, match=r"do not fit in /dev/shm .*No space left"):
        cache._allocate_shared(10)


def test_layers_can_be_built_by_a_rank_without_a_visible_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(MMLogger, "_instance_dict", OrderedDict())
    assert isinstance(make_conv_norm_act(3, 4, 1).bn, torch.nn.BatchNorm2d)
    assert os.environ["LOCAL_RANK"] == "1"


def test_a_network_with_a_weight_of_five_dimensions_is_moved():
    """Torch has no channels-last layout for it."""
    runtime = Runtime(channels_last=True)
    network = torch.nn.Sequential(torch.nn.Conv3d(3, 4, 3), torch.nn.Conv2d(4, 4, 3))
    assert runtime.to_device(network)[1].weight.is_contiguous()
    assert runtime.to_device(torch.nn.Conv2d(4, 4, 3)).weight.is_contiguous(memory_format=torch.channels_last)
