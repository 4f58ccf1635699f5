"""Hold, save and restore everything that training changes: weights, optimizer, loss scale and progress."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from engine.norms import find_norms_of_trained_modules, has_trained_statistics
from engine.optimizers import OPTIMIZERS
from engine.runtime import Runtime
from engine.settings import TrainConfig
from engine.step import Step
from utils import checkpoint
from utils.errors import UserError, get_first_line, print_note
from utils.files import is_list

UNCLEAR_PROGRESS = "it is damaged: it does not say how its run began and how far it was"


class TrainingState:
    """Hold the step, its optimizer and loss scaler, and the progress of the run.

    iteration: the number of iterations that are done.
    validated: the last iteration whose validation is finished.
    best_miou, best_iteration: score and iteration of the best validation; None before the first one.
    initial_weights: the weights that training started from, in words. Checkpoints call this entry "start".
    frozen_norms: the names of the BatchNorm layers that ``--freeze-bn`` keeps in eval mode.
    """

    def __init__(self, step: Step, settings: TrainConfig, runtime: Runtime, initial_weights: str = "") -> None:
        """Make the optimizer and the loss scaler for the parameters that are not frozen.

        Raises:
            UserError: no parameter is left to train, or the optimizer refuses a setting.
        """
        self.step = step
        self.initial_weights = initial_weights
        self.scaler = runtime.make_scaler()
        learnable = [parameter for parameter in step.parameters() if parameter.requires_grad]
        if not learnable:
            raise UserError(f"--model {settings.model}: the network has no parameters to train, or all are frozen")
        self.optimizer = OPTIMIZERS[settings.optimizer](learnable, settings)
        self.iteration = 0
        self.validated = 0
        self.best_miou: float | None = None
        self.best_iteration: int | None = None
        self.freeze_bn = settings.freeze_bn
        self.frozen_norms: list[str] = []

    def freeze_norms(self) -> None:
        """Choose the layers that ``--freeze-bn`` freezes, for a new run. A run that is resumed keeps its own."""
        if self.freeze_bn:
            self.frozen_norms = choose_frozen_norms(self.step)

    def restore(self, content: Mapping[str, Any]) -> None:
        """Continue from the content of a checkpoint.

        A failure leaves this state half loaded: the caller must restore another checkpoint over it, or end the run.

        Raises:
            UserError: the checkpoint is of another network or other losses, or its entries are not what they should be.
                The message calls the checkpoint "it"; the caller names the file.
        """
        checkpoint.load_weights(self.step.model, content.get("model"), "it")
        try:
            self._restore_losses(content["losses"])
            self._restore_optimizer(content["optimizer"])
            self.scaler.load_state_dict(content["scaler"])
        except torch.OutOfMemoryError:  # a RuntimeError, but the checkpoint is not to blame
            raise
        except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            raise UserError(f"it is damaged: {get_first_line(error)}") from error
        self._restore_progress(content)

    def _restore_losses(self, saved: Mapping[str, Any]) -> None:
        """Load the projectors and queues of the losses.

        Raises:
            UserError: the checkpoint has the state of other losses.
        """
        if saved.keys() != self.step.get_loss_state().keys():
            raise UserError("it was trained with other losses")
        self.step.load_state_dict(dict(saved), strict=False)  # not strict: the networks are not in it

    def _restore_optimizer(self, saved: Mapping[str, Any]) -> None:
        """Load the optimizer's state in the memory layout of the weights, whatever it was saved in."""
        self.optimizer.load_state_dict(saved)
        for parameter, values in self.optimizer.state.items():
            for key, value in values.items():
                if isinstance(value, Tensor) and value.shape == parameter.shape:
                    values[key] = torch.empty_like(parameter).copy_(value)
                    continue
                is_step_count = isinstance(value, Tensor) and value.ndim == 0
                if value is not None and not is_step_count:
                    raise ValueError(f"{key} does not fit its parameter")

    def _restore_progress(self, content: Mapping[str, Any]) -> None:
        """Take over the progress of the run, and which layers are frozen. Files of older versions lack some entries.

        Raises:
            UserError: an entry is missing, or has a value that it cannot have.
        """
        self.initial_weights = content.get("start")
        self.iteration = content.get("iteration")
        self.best_miou = content.get("best_miou")
        self.best_iteration = content.get("best_iteration")
        if "validated" in content:
            self.validated = content["validated"]
        else:  # older files were written after the validation of their iteration
            self.validated = 0 if self.best_miou is None else self.iteration
        if "frozen_norms" in content:
            self.frozen_norms = content["frozen_norms"]
        elif self.freeze_bn:  # older files were trained with every norm frozen
            self.frozen_norms = list(find_norms_of_trained_modules(self.step))
        counts = (self.iteration, self.validated, self.best_iteration or 0)
        if not all(type(count) is int and count >= 0 for count in counts):
            raise UserError(UNCLEAR_PROGRESS)
        if type(self.best_miou) not in (float, type(None)) or type(self.initial_weights) is not str:
            raise UserError(UNCLEAR_PROGRESS)
        known_norms = find_norms_of_trained_modules(self.step)
        if not is_list(self.frozen_norms, str) or set(self.frozen_norms) - known_norms.keys():
            raise UserError("it is damaged: the BatchNorm layers that it calls frozen are not those of this network")

    def set_train_mode(self) -> None:
        """Put the step into train mode, except for the frozen BatchNorm layers."""
        self.step.train()
        for name in self.frozen_norms:
            self.step.get_submodule(name).eval()

    def get_progress(self) -> dict[str, Any]:
        """Return the entries of a checkpoint that say how far the run is."""
        return {
            "start": self.initial_weights,
            "iteration": self.iteration,
            "validated": self.validated,
            "best_miou": self.best_miou,
            "best_iteration": self.best_iteration,
        }

    def get_model_weights(self) -> dict[str, Tensor]:
        """Return the network's state dict in the plain memory layout, whatever the network's is."""
        return {key: value.contiguous() for key, value in self.step.model.state_dict().items()}

    def get_resume_entries(self) -> dict[str, Any]:
        """Return the entries of a checkpoint that a resume needs besides the network and the progress."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "losses": self.step.get_loss_state(),
            "frozen_norms": self.frozen_norms,
        }

    def list_buffers_changed_by_forward(self) -> list[Tensor]:
        """List the buffers that a forward pass may change: those of BatchNorm layers, and all outside the networks."""
        prefixes = self.step.list_network_prefixes()
        buffers = self.list_norm_buffers()
        buffers += [buffer for name, buffer in self.step.named_buffers() if not name.startswith(prefixes)]
        return list({id(buffer): buffer for buffer in buffers}.values())  # a BatchNorm layer of a loss is in both

    def list_norm_buffers(self) -> list[Tensor]:
        """List the buffers of the BatchNorm layers of the trained network and the losses."""
        buffers = []
        for norm in find_norms_of_trained_modules(self.step).values():
            buffers += norm.buffers(recurse=False)
        return buffers

    def list_tensors_to_check(self) -> list[Tensor]:
        """List the tensors that must be finite in a checkpoint: learnable parameters, norm buffers, optimizer state."""
        tensors = [parameter.detach() for parameter in self.step.parameters() if parameter.requires_grad]
        tensors += self.list_norm_buffers()
        for entries in self.optimizer.state.values():
            tensors += [entry for entry in entries.values() if isinstance(entry, Tensor)]
        return [tensor for tensor in tensors if tensor.is_floating_point() and tensor.numel()]


def choose_frozen_norms(step: Step) -> list[str]:
    """Choose the BatchNorm layers that ``--freeze-bn`` freezes: those with statistics of an earlier training.

    The layers of a new head or projector have no such statistics, and would normalise nothing if they were frozen. If
    no layer has any, all layers are frozen: then the network is meant to be trained without BatchNorm.
    """
    norms = find_norms_of_trained_modules(step)
    trained_before = [name for name, norm in norms.items() if has_trained_statistics(norm)]
    if norms and not trained_before:
        print_note(
            "note: --freeze-bn freezes BatchNorm at mean 0 and variance 1, because no layer was trained before: "
            "--pretrained or --pretrained-base gives statistics"
        )
    return trained_before or list(norms)


def copy_values(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return copies of tensors, for ``put_back``."""
    return [tensor.clone() for tensor in tensors]


@torch.no_grad()
def put_back(tensors: Sequence[Tensor], copies: Sequence[Tensor]) -> None:
    """Give tensors the values that they had when they were copied."""
    for tensor, value in zip(tensors, copies, strict=True):
        tensor.copy_(value)
