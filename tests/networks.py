"""Write checkpoints of small untrained networks."""

from pathlib import Path

import torch

from datasets.base import DatasetSpec
from datasets.toy import TOY
from models import build_model
from models.checkpoints.card import Card
from models.label_noise import LabelNoise
from tests.conftest import BACKBONE
from utils import checkpoint


def write_checkpoint(path: Path, arch: str = "fcn", codes: str = "", spec: DatasetSpec = TOY, **changes: object) -> str:
    """Save an untrained network for the classes of ``spec`` and return the path of its checkpoint.

    With ``codes`` the network is a label-assisted teacher. ``changes`` replace entries of its card.
    """
    torch.manual_seed(0)
    noise = LabelNoise(len(spec.names), codes, 0.03, 100.0) if codes else None
    model = build_model(arch, BACKBONE, len(spec.names), 3 + (noise.planes if noise else 0))
    model.main.classifier.weight.data.mul_(100)  # so that the predicted class differs from pixel to pixel
    noise_config = dict(noise.config) if noise else None
    card = Card(dict(model.config), spec.names, spec.palette, "toy", "", "bgr_mean", noise_config, "random")
    path.parent.mkdir(exist_ok=True)
    checkpoint.save({**card.entries(), **changes, "model": model.state_dict()}, path)
    return str(path)
