"""What a run saves and continues from."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from engine.inputs import plain
from engine.lockstep import FiniteWatch
from engine.optimizers import OPTIMIZERS
from engine.run_folder import BEST, LAST, LOG, PREVIOUS, Run
from engine.runtime import Runtime
from engine.settings import TrainConfig
from engine.step import Step
from utils import checkpoint
from utils.distributed import broadcast_statistics
from utils.errors import UserError, first_line
from utils.norms import trained_norms


class TrainingState:
    """The network, the optimizer, the loss scale and how far the run is.

    iteration: those that are done. validated: the last one whose validation is finished. best_miou, best_iteration:
    of the best one, None before there is any.
    """

    def __init__(self, step: Step, run: Run, config: TrainConfig, runtime: Runtime) -> None:
        """Continues from the run's state, if it has one.

        Raises UserError: that is of another network or other losses, or its entries are not what they should be.
        """
        self.step, self.run, self.runtime, self.scaler = step, run, runtime, runtime.scaler()
        self.optimizer = OPTIMIZERS[config.optimizer]([p for p in step.parameters() if p.requires_grad], config)
        self.about = {"config": plain(asdict(config)), "inputs": dict(run.inputs), "world_size": runtime.size}
        self.iteration, self.validated, self.best_miou, self.best_iteration = 0, 0, None, None
        if run.state is not None:
            self._restore(run.state)
            self._continue(run.state)
            run.state.clear()  # nothing of it stays in memory
        self.saved = self.iteration

    def _restore(self, state: Mapping[str, Any]) -> None:
        checkpoint.load_weights(self.step.model, state.get("model"), "it")
        try:
            if state["losses"].keys() != self.step.beside().keys():
                raise UserError("it was trained with other losses")
            self.step.load_state_dict(dict(state["losses"]), strict=False)  # strict within: the keys were compared
            self.optimizer.load_state_dict(state["optimizer"])
            for parameter, values in self.optimizer.state.items():  # in the layout of the weights, whatever it was
                for key, value in values.items():
                    if isinstance(value, Tensor) and value.shape == parameter.shape:
                        values[key] = torch.empty_like(parameter).copy_(value)
                    elif value is not None and not (isinstance(value, Tensor) and value.ndim == 0):  # a count of steps
                        raise ValueError(f"{key} does not fit its parameter")
            self.scaler.load_state_dict(state["scaler"])
        except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            raise UserError(f"it is damaged: {first_line(error)}") from error

    def _continue(self, state: dict[str, Any]) -> None:
        self.iteration, self.best_miou = state.get("iteration"), state.get("best_miou")
        self.best_iteration = state.get("best_iteration")
        # files that do not say it were written after the validation of their iteration
        self.validated = state.get("validated", self.iteration if self.best_miou is not None else 0)
        counts = (self.iteration, self.validated, self.best_iteration or 0)
        known = type(self.best_miou) in (float, type(None)) and type(state.get("start")) is str
        if not (known and all(type(n) is int and n >= 0 for n in counts)):
            raise UserError("it is damaged: it does not say how its run began and how far it was")

    def tensors(self) -> list[Tensor]:
        """What must be finite in a checkpoint: what is learned, its running statistics, the optimizer's memory."""
        learned = [p.detach() for p in self.step.parameters() if p.requires_grad]
        statistics = [b for norm in trained_norms(self.step).values() for b in norm.buffers(False)]
        memory = [v for values in self.optimizer.state.values() for v in values.values() if isinstance(v, Tensor)]
        return [value for value in (*learned, *statistics, *memory) if value.is_floating_point()]

    def save(self, finite: FiniteWatch, name: str = LAST) -> None:
        """Every process takes part: running statistics are rank 0's from here on. The checkpoint before is kept.

        Raises:
            NotFinite: there is nothing to be saved.
            UserError: the file cannot be written, or what the run had written is gone; in every process.
        """
        finite.check(self.tensors())
        broadcast_statistics(self.step)
        progress = {key: getattr(self, key) for key in ("iteration", "validated", "best_miou", "best_iteration")}
        content = {**self.run.card, **progress, **self.about}

        def write() -> None:
            # in the plain memory layout, whatever the network's is
            model = {key: value.contiguous() for key, value in self.step.model.state_dict().items()}
            whole = {**content, "model": model}
            if name == LAST:
                whole |= {"optimizer": self.optimizer.state_dict(), "scaler": self.scaler.state_dict()}
                whole["losses"] = self.step.beside()
            previous = self.run.folder / PREVIOUS if name == LAST and self.saved != self.iteration else None
            if self.run.lock is not None:
                self.run.lock.hold()
            checkpoint.save(whole, self.run.folder / name, previous)
            if not (self.run.folder / LOG).exists():
                lost = f"--save-dir {self.run.folder} was emptied while its run went on, the log is lost"
                raise UserError(f"{lost}; {name} was written again: --resume auto continues from {LAST}")

        self.runtime.agree(write)
        if name == LAST:
            self.saved = self.iteration

    def score(self, miou: float | None, finite: FiniteWatch) -> None:
        """Note a validation of the present weights, and save them where they are the best."""
        self.validated = self.iteration
        if miou is not None and (self.best_miou is None or miou > self.best_miou):
            self.best_miou, self.best_iteration = miou, self.iteration
            self.save(finite, BEST)
