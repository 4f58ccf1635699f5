"""A segmentation network: backbone, head, classifier and auxiliary branches."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from utils.bilinear import resize
from utils.types import Output, Supervision


class Branch(nn.Module):
    """One logit map: take backbone maps, run a head, classify each position.

    ``index`` picks the backbone map(s); several are resized to the size of the first and concatenated. A head whose
    ``coarse_to_fine`` is true also receives the logits of the first auxiliary branch (OCRNet's soft regions).
    """

    def __init__(
        self, head: nn.Module, index: int | tuple[int, ...], num_classes: int, supervision: Supervision
    ) -> None:
        super().__init__()
        self.index = (index,) if isinstance(index, int) else index
        self.supervision = supervision
        self.head = head
        self.classifier = nn.Conv2d(head.out_channels, num_classes, 1)

    def forward(self, features: Sequence[Tensor], *coarse: Tensor) -> tuple[Tensor, Tensor]:
        """Backbone maps -> logits ``[B, K, h, w]`` and the classifier's input ``[B, C, h, w]``."""
        maps = [features[i] for i in self.index]
        size = maps[0].shape[-2:]
        maps = [resize(m, size) for m in maps]
        feat = self.head(torch.cat(maps, 1) if len(maps) > 1 else maps[0], *coarse)
        return self.classifier(feat), feat


class Segmentor(nn.Module):
    """``image [B, C, H, W] -> Output``, every map at its head's resolution.

    ``config`` holds the arguments of ``build_model`` that rebuild this network; a checkpoint stores it.
    """

    def __init__(self, backbone: nn.Module, main: Branch, aux: Sequence[Branch] = ()) -> None:
        super().__init__()
        self.backbone = backbone
        self.main = main
        self.aux = nn.ModuleList(aux)
        self.config: dict[str, str | int] = {}

    @property
    def supervision(self) -> tuple[Supervision, ...]:
        """Of the main logits, then of each auxiliary map."""
        return tuple(branch.supervision for branch in (self.main, *self.aux))

    @property
    def feature_channels(self) -> int:
        """Channels of ``Output.feat``, the classifier's input."""
        return self.main.classifier.in_channels

    def set_dropout(self, probability: float | None) -> None:
        """Replace the probability of every dropout layer; None leaves them as the architecture has them."""
        for module in self.modules():
            if probability is not None and isinstance(module, nn.modules.dropout._DropoutNd):
                module.p = probability

    def forward(self, x: Tensor, with_aux: bool = True) -> Output:
        """``with_aux=False`` leaves out auxiliary maps that only training looks at."""
        features = self.backbone(x)
        coarse_to_fine = getattr(self.main.head, "coarse_to_fine", False)
        aux = tuple(branch(features)[0] for branch in self.aux) if with_aux or coarse_to_fine else ()
        logits, feat = self.main(features, *(aux[:1] if coarse_to_fine else ()))
        return Output(logits, aux, feat)
