"""Notice that the training crops, or the labels themselves, show no class that can be learned."""

import torch
from torch import Tensor

from datasets import Data
from engine.class_weights import parse_class_weights
from engine.loader import choose_worker_count
from engine.runtime import Runtime
from engine.settings import TrainConfig
from utils.errors import UserError

COUNT_PIXELS = "scripts/data/check_data.py counts the pixels of each"  # the advice of a message on labels


class LabelWatch:
    """Check once in a run that a pixel of the crops had a class, or with ``--class-weights`` one with a weight above 0.

    Labels are read again only where no crop of an epoch had such a pixel. Whether one had is counted on the device, so
    that the host does not wait for it at every step.
    """

    def __init__(self, data: Data, settings: TrainConfig, runtime: Runtime, first_iteration: int) -> None:
        """first_iteration: the number of iterations that were done before this process."""
        self.dataset = data.train.dataset
        self.settings = settings
        self.runtime = runtime
        self.first_iteration = first_iteration
        self.weight_seen = torch.zeros((), device=runtime.device)
        self.is_checked = False

    def add(self, weight: Tensor) -> None:
        """Note the weight of the labelled pixels of a batch, a scalar. It is the same on every rank."""
        self.weight_seen.add_(weight)

    def is_check_due(self, iteration: int) -> bool:
        """Return whether as many images as an epoch has were seen, or a run that was not resumed is over."""
        if self.is_checked:
            return False
        is_epoch_over = iteration >= self.first_iteration + len(self.dataset) / self.settings.batch_size
        is_whole_run_over = iteration == self.settings.max_iterations and self.first_iteration == 0
        return is_epoch_over or is_whole_run_over

    def check(self, iteration: int) -> str | None:
        """Check what was seen until this iteration, once and where that is due. Every rank takes part.

        Return a warning if no crop had a class, though the labels have some.

        Raises:
            UserError: no pixel of the labels has a class, or a label cannot be read.
        """
        if not self.is_check_due(iteration):
            return None
        self.is_checked = True
        if self.weight_seen:
            return None
        weights = self.settings.class_weights
        kind = f"a class with a weight above 0 (--class-weights {weights})" if weights else "a class"
        if not self.runtime.on_rank0(self._sum_label_weight):
            raise UserError(f"no pixel of the training labels has {kind}: {COUNT_PIXELS}")
        return f"no crop has shown {kind} so far, but labels have some: raise --crop-size"

    def _sum_label_weight(self) -> float:
        """Read the training labels. Return the number of their labelled pixels, weighted by ``--class-weights``.

        Raises:
            UserError: a label cannot be read.
        """
        counts = self.dataset.count_label_pixels(choose_worker_count(self.settings.workers))
        weights = parse_class_weights(self.settings.class_weights)
        return float(counts.sum() if weights is None else counts @ weights)
