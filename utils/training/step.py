"""What the training loop is given."""

from typing import Any

from torch import Tensor, nn


class Step(nn.Module):
    """One training step as a module: the network ``model`` that is trained, its task loss, and what helps it.

    ``forward(image, label, draw, labelled_per_rank)`` takes a normalised image ``[B, 3, H, W]``, its label
    ``[B, H, W]``, where random numbers come from, and ``count_labelled_per_rank(label)`` of the whole batch, and gives
    ``{"loss": ..., named terms}``. DDP wraps all of it, so that losses that learn are synchronised and optimised with
    the network.
    """

    model: nn.Module
    task: nn.Module

    def count_labelled_per_rank(self, label: Tensor) -> Tensor:
        """Return what the task loss divides its sum over this rank's pixels by; see ``losses.task.TaskLoss``."""
        return self.task.count_labelled_per_rank(label)

    def networks(self) -> list[nn.Module]:
        """``model``, and those that help it and do not learn."""
        return [self.model]

    def beside(self) -> dict[str, Any]:
        """What it learns or remembers besides the networks: projections of losses, memory queues."""
        own = {id(network): name for name, network in self.named_modules()}
        prefixes = tuple(f"{own[id(network)]}." for network in self.networks())
        return {key: value for key, value in self.state_dict().items() if not key.startswith(prefixes)}
