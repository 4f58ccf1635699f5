"""A segmentation network: a backbone, a main branch, and auxiliary branches for training."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from utils.bilinear import resize
from utils.errors import UserError
from utils.types import Output, Supervision


class Branch(nn.Module):
    """Compute one logit map: take maps of the backbone, run a head, and classify each position."""

    def __init__(
        self, head: nn.Module, index: int | tuple[int, ...], num_classes: int, supervision: Supervision
    ) -> None:
        """Build a branch with a new classifier.

        head: a module with the attribute ``out_channels``. index: which of the backbone's maps to read. Several are
        resized to the size of the first and concatenated.
        """
        super().__init__()
        self.index = (index,) if isinstance(index, int) else index
        self.supervision = supervision
        self.head = head
        self.classifier = nn.Conv2d(head.out_channels, num_classes, 1)

    def forward(self, features: Sequence[Tensor], *coarse: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits ``[B, K, h, w]`` and the classifier's input ``[B, C, h, w]``.

        features: the backbone's maps. coarse: the coarse logits, for the head of a ``CascadeSegmentor`` alone.
        """
        maps = [features[i] for i in self.index]
        if len(maps) == 1:
            joined = maps[0]
        else:
            size = maps[0].shape[-2:]
            joined = torch.cat([resize(x, size) for x in maps], 1)
        feat = self.head(joined, *coarse)
        return self.classifier(feat), feat


def set_dropout(modules: Iterable[nn.Module], probability: float | None) -> None:
    """Set the probability of every dropout layer among modules. None leaves each layer as it is.

    Raises:
        UserError: the probability is not 0, and there is no dropout layer.
    """
    if probability is None:
        return
    layers = [module for module in modules if isinstance(module, nn.modules.dropout._DropoutNd)]
    if probability and not layers:
        raise UserError(f"--dropout {probability:g}: there is no dropout layer for it: leave it out, or give 0")
    for layer in layers:
        layer.p = probability


class Segmentor(nn.Module):
    """Segment images ``[B, C, H, W]``. The result is an ``Output``, each of its maps at the resolution of its head.

    Attributes:
        config: the arguments of ``build_model`` that build this network again; a checkpoint stores them.
    """

    def __init__(self, backbone: nn.Module, main: Branch, aux: Sequence[Branch] = ()) -> None:
        super().__init__()
        self.backbone = backbone
        self.main = main
        self.aux = nn.ModuleList(aux)
        self.config: dict[str, str | int] = {}

    @property
    def supervision(self) -> tuple[Supervision, ...]:
        """Return how the main logits are supervised, then how each auxiliary map is."""
        return tuple(branch.supervision for branch in (self.main, *self.aux))

    @property
    def feature_channels(self) -> int:
        """Return the number of channels of ``Output.feat``, the classifier's input."""
        return self.main.classifier.in_channels

    def set_dropout(self, probability: float | None) -> None:
        """Set the probability of the dropout layers of the heads. Raises: as the function ``set_dropout``."""
        set_dropout([module for branch in (self.main, *self.aux) for module in branch.modules()], probability)

    def forward(self, x: Tensor, with_aux: bool = True) -> Output:
        """Return the logits of all branches. ``with_aux=False`` leaves out auxiliary maps that only training needs."""
        features = self.backbone(x)
        aux = tuple(branch(features)[0] for branch in self.aux) if with_aux else ()
        logits, feat = self.main(features)
        return Output(logits, aux, feat)
