"""Networks by name, ``build_model("deeplabv3", "resnet18_v1s", num_classes=21)``, or from a file."""

from pathlib import Path

from models import loading
from models.architectures import ARCHITECTURES, build_model
from models.segmentor import Segmentor

__all__ = ["ARCHITECTURES", "build_model", "from_checkpoint"]


def from_checkpoint(path: str | Path, assisted: bool = False) -> Segmentor:
    """The network of any supported file, in eval mode. ``models.loading.from_checkpoint`` returns its card too."""
    return loading.from_checkpoint(path, assisted).model
