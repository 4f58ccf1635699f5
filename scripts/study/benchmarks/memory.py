"""What a training step holds at most, counted without computing it."""

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from scripts.study.benchmarks import as_released
from scripts.study.benchmarks.steps import teacher_step
from scripts.study.benchmarks.timing import BenchmarkConfig, Comparison
from utils.types import Draw

SHAPE = 2, 512, 512  # images, height, width


class Peak(TorchDispatchMode):
    """Bytes of the storages that operations return and that are alive; what happens inside one is not seen."""

    def __init__(self) -> None:
        super().__init__()
        self.held = self.most = 0
        self.alive: set[int] = set()

    def __torch_dispatch__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, Tensor) and (key := id(storage := value.untyped_storage())) not in self.alive:
                self.alive.add(key)
                self.held += storage.nbytes()
                self.most = max(self.most, self.held)
                weakref.finalize(storage, self._free, key, storage.nbytes())
        return result

    def _free(self, key: int, size: int) -> None:
        self.alive.discard(key)
        self.held -= size


def memory(num_classes: int, config: BenchmarkConfig, device: torch.device) -> Comparison:
    """Maps and gradients of LAD's teacher step besides its weights, on tensors that have shapes and no content."""
    peaks = {}
    for way in ("as released", "ours"):
        with FakeTensorMode():
            step = teacher_step(num_classes)
            image, label = torch.zeros(SHAPE[0], 3, *SHAPE[1:]), torch.zeros(SHAPE, dtype=torch.uint8)
            target, planes = torch.zeros(SHAPE), [torch.zeros(SHAPE).unsqueeze(1) for _ in range(2)]
            with Peak() as peak:
                if way == "ours":
                    loss = step(image, label.long(), _Drawn(0))["loss"]
                else:
                    loss = as_released.teacher_loss(step.model, image, target, planes)
                loss.backward()
            peaks[way] = peak.most / 2**20
    check = {f"MiB, {way}": value for way, value in peaks.items()} | {"share": peaks["ours"] / peaks["as released"]}
    what = f"most memory of a teacher step, DeepLabV3-R18, {SHAPE[0]} images of 512x512, {num_classes} classes"
    return Comparison(what, {}, check)


class _Drawn(Draw):
    """Values that no generator draws: pretended tensors have none."""

    def normal(self, values: Tensor, stream: int) -> Tensor:
        return values.copy_(torch.randn_like(values))
