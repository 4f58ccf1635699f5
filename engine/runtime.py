"""The one owner of device, processes, precision, memory layout and compilation."""

import os
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

from engine.step import Step
from utils.distributed import all_reduce
from utils.errors import UserError, named
from utils.norms import ExactNorm, SyncedNorm, replace_norms

PRECISIONS = {"none": None, "bf16": torch.bfloat16, "fp16": torch.float16}
OPTIONS = ("amp", "channels_last", "tf32", "deterministic", "compile")
T = TypeVar("T")


@dataclass(frozen=True)
class Runtime:
    """How and where a process computes; without arguments one process on the CPU, in float32.

    amp: a key of PRECISIONS. channels_last: memory layout of networks. tf32: for float32 convolutions on CUDA.
    """

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    rank: int = 0
    size: int = 1
    amp: str = "none"
    channels_last: bool = False
    tf32: bool = True
    deterministic: bool = False
    compile: bool = False

    reduce = staticmethod(all_reduce)

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @property
    def precision(self) -> torch.dtype | None:
        """The dtype that autocast computes in, or None without autocast."""
        return PRECISIONS[self.amp]

    def place(self, module: nn.Module) -> nn.Module:
        """Move a module to the device and give its networks their memory layout."""
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        return module.to(self.device, memory_format=layout)

    def prepare(self, step: Step) -> nn.Module:
        """What the loop calls: the step moved, laid out, compiled, synchronised over the processes.

        BatchNorm statistics are shared on CUDA only, elsewhere torch has no such layer; on the CPU they are exact.
        Buffers are not broadcast at each forward: a step may run its network twice before one backward, which plain
        BatchNorm under buffer broadcasting does not survive; ``distributed.broadcast_statistics`` aligns them.
        """
        if self.size > 1 and self.device.type == "cuda":
            replace_norms(step, SyncedNorm)
        if self.channels_last and self.device.type == "cpu" and not self.compile:  # whose own BatchNorm is exact
            replace_norms(step, ExactNorm)
        self.place(step)
        for network in step.networks() if self.compile else ():
            network.compile()
        if not dist.is_initialized():
            return step
        device_ids = [self.device.index] if self.device.type == "cuda" else None
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "`broadcast_buffers`")  # its new name is not known to every torch
            return DistributedDataParallel(step, device_ids=device_ids, broadcast_buffers=False)

    def autocast(self) -> AbstractContextManager:
        return torch.autocast(self.device.type, dtype=self.precision, enabled=self.precision is not None)

    def scaler(self) -> torch.amp.GradScaler:
        """Of the loss; it does something in fp16 only."""
        return torch.amp.GradScaler(self.device.type, enabled=self.amp == "fp16")

    def agree(self, value: T | Callable[[], T]) -> T:
        """Rank 0's value, in every process. A function is called by rank 0 alone; its failure is everybody's."""
        answer: list[Any] = [None, None]
        if self.is_main:
            try:
                answer[0] = value() if callable(value) else value
            except Exception as error:
                answer[1] = named(error)
                if answer[1] is None:
                    raise
        if dist.is_initialized():
            dist.broadcast_object_list(answer, 0)
        if answer[1] is not None:
            raise answer[1]
        return answer[0]

    def barrier(self) -> None:
        if dist.is_initialized():
            dist.barrier()

    def describe(self) -> dict[str, Any]:
        """Its settings in plain values; TF32 only where it applies."""
        return {key: getattr(self, key) for key in OPTIONS} | {"tf32": self.tf32 and self.device.type == "cuda"}


@contextmanager
def start(settings: Any) -> Iterator[Runtime]:
    """Join the process group torchrun describes, with one process too; leave it at the end.

    After a failure NCCL's is not left, since that waits for the others, which wait for this process: it ends without
    (``utils.errors.run_main``).

    settings: a record with ``device`` (auto, cpu, cuda) and any of backend, amp, channels_last, tf32, deterministic,
    compile. NCCL carries what is on GPUs, gloo what is not; ``backend="gloo"`` lets processes share a GPU.

    Raises UserError: cuda asked for and not there, or more processes on this host than GPUs.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # huge pages: else Linux clears large tensors slowly
    options = {key: value for key in OPTIONS if (value := getattr(settings, key, None)) is not None}
    gloo = getattr(settings, "backend", "auto") == "gloo"
    runtime = Runtime(_device(settings.device, gloo), **{"channels_last": True} | options)
    nccl = runtime.device.type == "cuda" and not gloo
    if runtime.device.type == "cuda":
        torch.cuda.set_device(runtime.device)
    torch.backends.cudnn.allow_tf32 = runtime.tf32
    torch.backends.cudnn.benchmark = not runtime.deterministic
    if runtime.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(runtime.deterministic)
    if "WORLD_SIZE" in os.environ and "RANK" in os.environ:
        _join("cpu:gloo,cuda:nccl" if nccl else "gloo")
    failed = False
    try:
        joined = dist.is_initialized()
        yield replace(runtime, rank=dist.get_rank(), size=dist.get_world_size()) if joined else runtime
    except Exception:
        failed = True
        raise
    finally:
        if dist.is_initialized() and not (failed and nccl):
            dist.destroy_process_group()
        torch.use_deterministic_algorithms(False)


def _join(backend: str, timeout: timedelta = timedelta(minutes=30)) -> None:
    """After a restart on one host, with a clean slate: torchrun's store still has the addresses of those that ended."""
    attempt, alone = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), {}
    if attempt != "0" and os.environ.get("LOCAL_WORLD_SIZE") == os.environ["WORLD_SIZE"]:
        store, rank, size = next(dist.rendezvous("env://", timeout=timeout))
        alone = {"store": dist.PrefixStore(f"attempt {attempt}", store), "rank": rank, "world_size": size}
    dist.init_process_group(backend, timeout=timeout, **alone)


def _device(name: str, shared: bool) -> torch.device:
    """The device of this process; ``shared`` lets processes beyond the number of GPUs share them."""
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise UserError("--device cuda: torch finds no CUDA GPU; use --device cpu")
    local_rank, count = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()
    if local_rank >= count and not shared:
        raise UserError(f"{local_rank + 1} processes on this host but only {count} GPUs (NGPUS; --backend gloo shares)")
    return torch.device("cuda", local_rank % count)
