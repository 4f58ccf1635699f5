"""Checkpoints of small untrained networks."""

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
    """A network for the classes of ``spec``; with ``codes`` an assisted teacher. ``changes`` replace card entries."""
    torch.manual_seed(0)
    noise = LabelNoise(len(spec.names), codes, 0.03, 100.0) if codes else None
    model = build_model(arch, BACKBONE, len(spec.names), 3 + (noise.planes if noise else 0))
    model.main.classifier.weight.data.mul_(100)  # classes differ from pixel to pixel
    shown = dict(noise.config) if noise else None
    card = Card(dict(model.config), spec.names, spec.palette, "toy", "", "bgr_mean", shown, "random")
    path.parent.mkdir(exist_ok=True)
    checkpoint.save({**card.entries(), **changes, "model": model.state_dict()}, path)
    return str(path)
