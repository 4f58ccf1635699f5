"""The dual-path consistency that makes the teacher robust to the label noise (LAD, train_baseline.py:422-434)."""

from torch import Tensor, nn

from losses import WeightedLosses
from utils.types import Output


class Consistency(nn.Module):
    """D(path 1, stop-gradient path 2) + D(path 2, stop-gradient path 1), D a distillation loss on logits.

    The release's D is channel-wise distillation with tau 4 and weight 5, at head resolution, ignored pixels included.
    """

    def __init__(self, distance: WeightedLosses) -> None:
        super().__init__()
        self.distance = distance

    def forward(self, path1: Output, path2: Output, label: Tensor) -> tuple[Tensor, Tensor]:
        """The weighted and the unweighted distance."""
        both = [self.distance(*paths, label) for paths in ((path1, path2), (path2, path1))]
        plain = [sum(terms[name] for name in self.distance.weights) for _, terms in both]
        return sum(weighted for weighted, _ in both), sum(plain)
