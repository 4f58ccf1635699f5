"""The one owner of device, ranks, precision, memory layout and compilation."""

import os
import socket
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from engine.norms import ExactNorm, SyncedNorm, replace_norms
from engine.step import Step
from utils.distributed import is_launched
from utils.errors import UserError, explain_error

PRECISIONS = {"none": None, "bf16": torch.bfloat16, "fp16": torch.float16}
OPTIONS = ("amp", "channels_last", "tf32", "deterministic", "compile")
TIMEOUT = timedelta(minutes=30)  # how long ranks wait for each other
T = TypeVar("T")


@dataclass(frozen=True)
class Runtime:
    """Hold the device, the ranks and the precision of this process. Without arguments: one rank on the CPU, float32.

    size: the world size. amp: a key of PRECISIONS. channels_last: the memory layout of networks. tf32: for float32
    convolutions on CUDA.
    """

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    rank: int = 0
    size: int = 1
    amp: str = "none"
    channels_last: bool = False
    tf32: bool = True
    deterministic: bool = False
    compile: bool = False

    @property
    def is_main(self) -> bool:
        """Return whether this is rank 0, which writes and prints for all ranks."""
        return self.rank == 0

    @property
    def precision(self) -> torch.dtype | None:
        """The dtype that autocast computes in, or None without autocast."""
        return PRECISIONS[self.amp]

    def to_device(self, module: nn.Module) -> nn.Module:
        """Move a module to the device and give its networks their memory layout.

        A module with a weight of five dimensions keeps its layout, because torch has no channels-last form of it.
        """
        if any(tensor.ndim == 5 for tensor in (*module.parameters(), *module.buffers())):
            return module.to(self.device)
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        return module.to(self.device, memory_format=layout)

    def prepare(self, step: Step) -> nn.Module:
        """Move, lay out and compile a step, and wrap it in DDP. Return what the loop calls.

        BatchNorm statistics are shared by ranks on CUDA only, since torch has no such layer elsewhere. On the CPU they
        are exact. DDP does not broadcast buffers: it would send all of them in each forward pass, also those of frozen
        networks and the large queues of losses. ``Trainer.save`` gives every rank the values of rank 0, in the buffers
        that a forward pass changes.
        """
        if self.size > 1 and self.device.type == "cuda":
            replace_norms(step, SyncedNorm)
        if self.channels_last and self.device.type == "cpu" and not self.compile:  # compiled BatchNorm is exact
            replace_norms(step, ExactNorm)
        self.to_device(step)
        if self.compile:
            for network in step.list_networks():
                network.compile()
        if not dist.is_initialized():
            return step
        device_ids = [self.device.index] if self.device.type == "cuda" else None
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "`broadcast_buffers`")  # its new name is not known to every torch
            return DistributedDataParallel(step, device_ids=device_ids, broadcast_buffers=False)

    def autocast(self) -> AbstractContextManager:
        """Return the context in which networks compute."""
        return torch.autocast(self.device.type, dtype=self.precision, enabled=self.precision is not None)

    def make_scaler(self) -> torch.amp.GradScaler:
        """Return the loss scaler, which is enabled in fp16 only."""
        return torch.amp.GradScaler(self.device.type, enabled=self.amp == "fp16")

    def on_rank0(self, function: Callable[..., T], *arguments: Any) -> T:
        """Call a function on rank 0 alone, and return its result on every rank. Its error is raised on every rank.

        An error that ``explain_error`` does not know is raised on rank 0 only.
        """
        result = failure = None
        if self.is_main:
            try:
                result = function(*arguments)
            except Exception as error:
                failure = explain_error(error)
                if failure is None:
                    raise
                if failure is not error:
                    failure.__cause__ = error  # for LAD_TRACEBACK
        if dist.is_initialized():
            answer: list[Any] = [result, failure]
            dist.broadcast_object_list(answer, 0)
            result, failure = answer
        if failure is not None:
            raise failure
        return result

    def broadcast(self, value: T) -> T:
        """Return rank 0's value on every rank."""
        return self.on_rank0(lambda: value)

    def barrier(self) -> None:
        """Wait for the other ranks."""
        if dist.is_initialized():
            dist.barrier()

    def describe(self) -> dict[str, Any]:
        """Return the options in plain values. TF32 is False where it does not apply, on the CPU."""
        return {key: getattr(self, key) for key in OPTIONS} | {"tf32": self.tf32 and self.device.type == "cuda"}


@contextmanager
def start_runtime(settings: Any) -> Iterator[Runtime]:
    """Join the process group that torchrun describes, with one process too, and leave it at the end.

    settings: a record with ``device`` (auto, cpu, cuda) and any of backend, amp, channels_last, tf32, deterministic,
    compile. NCCL carries what is on GPUs, gloo what is not; ``backend="gloo"`` lets processes share a GPU.

    Raises:
        UserError: cuda is asked for and not there, or there are more processes on this host than GPUs.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # huge pages: else Linux clears large tensors slowly
    backend = getattr(settings, "backend", None)
    shares_gpus = backend == "gloo"
    runtime = Runtime(_choose_device(settings.device, backend), **_read_options(settings))
    uses_nccl = runtime.device.type == "cuda" and not shares_gpus
    _configure_torch(runtime)
    if is_launched():
        _join_group("cpu:gloo,cuda:nccl" if uses_nccl else "gloo")
    has_failed = False
    try:
        if dist.is_initialized():
            runtime = replace(runtime, rank=dist.get_rank(), size=dist.get_world_size())
        yield runtime
    except SystemExit:  # all ranks stop together
        raise
    except BaseException:
        has_failed = True
        raise
    finally:
        # leaving NCCL's group waits for the other ranks, which wait for this one where it has failed: ``run_main`` ends
        # the process instead
        if dist.is_initialized() and not (has_failed and uses_nccl):
            dist.destroy_process_group()
        torch.use_deterministic_algorithms(False)


def _read_options(settings: Any) -> dict[str, Any]:
    """Return the options of a runtime that the settings have. Networks are channels-last unless they say otherwise."""
    options = {"channels_last": True}
    for name in OPTIONS:
        value = getattr(settings, name, None)
        if value is not None:
            options[name] = value
    return options


def _configure_torch(runtime: Runtime) -> None:
    """Give torch's global switches the values of a runtime."""
    if runtime.device.type == "cuda":
        torch.cuda.set_device(runtime.device)
    torch.backends.cudnn.allow_tf32 = runtime.tf32
    torch.backends.cudnn.benchmark = False  # it would search for every image size anew; ``Trainer`` switches it on
    if runtime.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(runtime.deterministic)


def _join_group(backend: str) -> None:
    """Join the process group.

    After a restart on one host, the group takes a prefix of its own in torchrun's store. The store still has the
    addresses of the processes that ended.
    """
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    is_on_one_host = os.environ.get("LOCAL_WORLD_SIZE") == os.environ["WORLD_SIZE"]
    if not is_on_one_host and os.environ.get("LOCAL_RANK", "0") == "0":
        warn_about_loopback()
    if attempt == "0" or not is_on_one_host:
        dist.init_process_group(backend, timeout=TIMEOUT)
        return
    store, rank, size = next(dist.rendezvous("env://", timeout=TIMEOUT))
    store = dist.PrefixStore(f"attempt {attempt}", store)
    dist.init_process_group(backend, timeout=TIMEOUT, store=store, rank=rank, world_size=size)


def warn_about_loopback() -> None:
    """Warn where the name of this host leads to the host itself: gloo would give other hosts that address."""
    if "GLOO_SOCKET_IFNAME" in os.environ:
        return
    name = socket.gethostname()
    try:
        address = socket.gethostbyname(name)
    except OSError:  # an unknown name: gloo takes the same address
        address = "127.0.0.1"
    if address.startswith("127."):
        advice = "set GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME to its network interface, such as eth0"
        print(
            f"warning: the name of host {name} leads to {address}, where no other host finds it: {advice}",
            file=sys.stderr,
        )


def _get_local_rank(gpus: int) -> int:
    """Return the number of this process on its host. Under srun without torchrun, SLURM says it.

    gpus: how many this process sees. If SLURM gives each process one GPU, that is number 0 for each of them.
    """
    if "LOCAL_RANK" in os.environ:
        return int(os.environ["LOCAL_RANK"])
    if not is_launched() or gpus == 1:
        return 0
    return int(os.environ.get("SLURM_LOCALID", 0))


def _choose_device(name: str, backend: str | None) -> torch.device:
    """Return the device of this process. With the backend gloo, processes beyond the number of GPUs share them.

    backend: the value of ``--backend``, or None if the script has no such flag.

    Raises:
        UserError: there is no GPU, or none for this process.
    """
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise UserError("--device cuda: torch finds no CUDA GPU; use --device cpu")
    count = torch.cuda.device_count()
    local_rank = _get_local_rank(count)
    if local_rank >= count and backend != "gloo":
        processes = os.environ.get("LOCAL_WORLD_SIZE", local_rank + 1)
        advice = f"start {count} (NGPUS={count})"
        if backend is not None:
            advice += ", or let them share with --backend gloo"
        raise UserError(f"there are {processes} processes on this host, but {count} GPUs: {advice}")
    return torch.device("cuda", local_rank % count)
