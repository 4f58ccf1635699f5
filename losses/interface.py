"""What a distillation loss is, and what it may say of itself.

A loss is a ``torch.nn.Module``:

- It is built as ``Loss(student_channels, teacher_channels, num_classes, **options)``. The channels are those of
  ``feat`` in both networks, and options are numbers.
- It is called as ``loss(student, teacher, label)``, with two ``utils.types.Output`` and the label ``[B, H, W]`` at
  image size. It returns a number, or a dict of parts by name.

Three attributes may say more. The functions below read them.
"""

from collections.abc import Mapping

from torch import nn

Loss = nn.Module | type[nn.Module]


def reads_features(loss: Loss) -> bool:
    """Return whether a loss reads ``feat``: it does unless it says ``reads_feat = False``."""
    return getattr(loss, "reads_feat", True)


def reads_auxiliary_logits(loss: Loss) -> bool:
    """Return whether a loss reads ``aux``: it does not unless it says ``reads_aux = True``."""
    return getattr(loss, "reads_aux", False)


def get_part_weights(loss: nn.Module) -> Mapping[str, float]:
    """Return ``part_weights``, the inner weights of a loss with parts by name; empty for a loss without parts."""
    return getattr(loss, "part_weights", None) or {}
