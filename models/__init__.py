"""Networks by name, ``build_model("deeplabv3", "resnet18_v1s", num_classes=21)``, or ``from_checkpoint(file)``."""

from models.architectures import ARCHITECTURES, build_model
from models.checkpoints.loading import LoadedNetwork, from_checkpoint

__all__ = ["ARCHITECTURES", "LoadedNetwork", "build_model", "from_checkpoint"]
