"""Estimate how much memory a training step will need, before the first one is taken."""

import copy
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from engine.optimizers import STATES
from engine.runtime import Runtime
from engine.settings import TrainConfig
from engine.step import Step
from utils.distributed import without_peers
from utils.pixels import CONVENTIONS
from utils.seeding import RowGenerator

SMALL = 2**18  # pixels a step: with fewer it fits into any memory, and the estimate would take longer than the step


class EmptyRowGenerator(RowGenerator):
    """A generator for tensors without content: it draws nothing."""

    def normal(self, values: Tensor, stream: int) -> Tensor:
        """Return the values as they are."""
        return values

    def uniform(self, count: int, stream: int, device: torch.device) -> Tensor:
        """Return a number for each row."""
        return torch.empty(count, device=device)


class LiveMemory(TorchDispatchMode):
    """Count the bytes of the tensors that operations return, as long as they live."""

    def __init__(self) -> None:
        super().__init__()
        self.live = 0
        self.peak = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, function: Callable, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        result = function(*arguments, **(keywords or {}))
        for value in tree_leaves(result):
            if isinstance(value, Tensor):
                self.add(value.untyped_storage())
        return result

    def add(self, storage: torch.UntypedStorage) -> None:
        """Count a storage until it is freed; a view's is counted already."""
        key = storage._cdata
        if key in self.known:
            return
        self.known.add(key)
        self.live += storage.nbytes()
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self.remove, key, storage.nbytes())

    def remove(self, key: int, size: int) -> None:
        """Count a storage no longer."""
        self.known.discard(key)
        self.live -= size


class StepMemory(NamedTuple):
    """Hold the bytes of a step."""

    lasting: int  # weights, queues and optimizer state
    passing: int  # images, activations and gradients, at most


def estimate_step_memory(step: Step, settings: TrainConfig, runtime: Runtime) -> StepMemory | None:
    """Return what a step will hold at most on this rank's device, or None where that cannot be told.

    The sizes of weights, queues and optimizer state are added up. For the rest, a copy of the step runs forwards and
    backwards on tensors without content, and the bytes that are alive at a time are counted. Work space of
    convolutions, the allocator's rounding and the program itself are left out.
    """
    by_id: dict[int, Tensor] = {}  # networks may be parts of the step, or share tensors
    for module in (step, *step.list_networks()):
        for tensor in (*module.parameters(), *module.buffers()):
            by_id[id(tensor)] = tensor
    tensors = list(by_id.values())
    learnable = sum(parameter.nbytes for parameter in step.parameters() if parameter.requires_grad)
    lasting = sum(tensor.nbytes for tensor in tensors) + STATES[settings.optimizer] * learnable
    try:
        with without_peers():
            return StepMemory(lasting, measure_passing_bytes(step, tensors, settings, runtime))
    except Exception:  # a loss that looks at values has none to look at; a missing estimate must not end a run
        return None


def measure_passing_bytes(step: Step, tensors: list[Tensor], settings: TrainConfig, runtime: Runtime) -> int:
    """Return the most bytes that a step's gradients, activations and images take at a time."""
    from torch._subclasses.fake_tensor import FakeTensorMode  # costs a second

    without_content = FakeTensorMode(allow_non_fake_inputs=True)
    memo = {id(tensor): without_content.from_tensor(tensor) for tensor in tensors}
    counted = copy.deepcopy(step, memo).train()
    images = settings.batch_size // runtime.size
    memory = LiveMemory()
    with without_content, memory:
        image = torch.empty(images, 3, *settings.crop_size, dtype=torch.uint8, device=runtime.device)
        label = torch.zeros(images, *settings.crop_size, dtype=torch.uint8, device=runtime.device)
        run_first_parts(counted, image, label, settings, runtime)
    return memory.peak


def run_first_parts(counted: nn.Module, image: Tensor, label: Tensor, settings: TrainConfig, runtime: Runtime) -> None:
    """Compute gradients of the first two parts of a batch. Later parts need as much memory as the second."""
    parts = settings.accumulate
    avg_factor = counted.task.compute_avg_factor(label) / parts
    first_parts = list(zip(image.chunk(parts), label.chunk(parts), strict=True))[:2]
    for x, y in first_parts:
        with runtime.autocast():
            inputs = CONVENTIONS[settings.pixels].normalize(x)
            terms = counted(inputs, y.long(), EmptyRowGenerator(0), avg_factor)
        terms["loss"].backward()
