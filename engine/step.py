"""The interface between an entry script and the engine."""

from typing import Any

from torch import nn


class Step(nn.Module):
    """Compute the losses of one training step. The step holds the network ``model`` that is trained, and the losses.

    ``forward(image, label, generator, avg_factor)`` takes a normalised image ``[B, 3, H, W]``, its label
    ``[B, H, W]``, the ``RowGenerator`` of the label noise, and the divisor that ``losses.task.TaskLoss`` explains. It
    returns ``{"loss": ..., named terms}``. DDP wraps the whole step. So losses with parameters are synchronised and
    optimised with the network.
    """

    model: nn.Module
    task: nn.Module  # a ``losses.task.TaskLoss``
    # Attributes that hold networks: ``model``, and frozen ones, which may be None. All other modules are losses or
    # label noise.
    network_names: tuple[str, ...] = ("model",)

    def __init__(self) -> None:
        super().__init__()
        # Turns labels into input planes of ``model``. A subclass sets it; None is for a network that sees images only.
        self.label_noise: nn.Module | None = None

    def list_networks(self) -> list[nn.Module]:
        """Return ``model`` and the frozen networks that help it."""
        networks = [getattr(self, name) for name in self.network_names]
        return [network for network in networks if network is not None]

    def list_network_prefixes(self) -> tuple[str, ...]:
        """Return the prefixes under which the networks' tensors lie in this module's state dict."""
        return tuple(f"{name}." for name in self.network_names)

    def get_loss_state(self) -> dict[str, Any]:
        """Return the state of everything that is not a network: projectors and queues of the losses."""
        prefixes = self.list_network_prefixes()
        return {key: value for key, value in self.state_dict().items() if not key.startswith(prefixes)}
