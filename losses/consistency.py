"""The consistency of the teacher's two paths, which makes it robust to label noise (LAD, train_baseline.py:422-434)."""

from torch import Tensor, nn

from losses.weighted import WeightedLosses
from utils.types import Output


class Consistency(nn.Module):
    """Compute D(path 1, stop-gradient path 2) + D(path 2, stop-gradient path 1), where D is a distillation loss.

    The release's D is channel-wise distillation of the logits with tau 4 and weight 5. It is computed at head
    resolution, and ignored pixels take part.
    """

    def __init__(self, distance: WeightedLosses) -> None:
        super().__init__()
        self.distance = distance

    def forward(self, path1: Output, path2: Output, label: Tensor) -> tuple[Tensor, Tensor]:
        """Return the weighted and the unweighted distance. Label ``[B, H, W]``."""
        weighted_1, terms_1 = self.distance(path1, path2, label)
        weighted_2, terms_2 = self.distance(path2, path1, label)
        names = self.distance.weights
        unweighted = sum(terms_1[name] for name in names) + sum(terms_2[name] for name in names)
        return weighted_1 + weighted_2, unweighted
