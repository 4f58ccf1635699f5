"""The figures of scripts/study/models_table.py against an independent count."""

import pytest
import torch
from torch import nn

from models import build_model
from scripts.study import models_table
from utils.errors import UserError


def run(capsys, *flags):
    models_table.main(flags)
    return [line.split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("|")]


def test_rows(capsys):
    flags = ("--only", "stdc1", "--crop-size", "64", "128", "--num-classes", "7", "--repeats", "1")
    header, _, student, teacher = run(capsys, *flags)
    assert "images/s" in header[-1]
    assert (student[2], teacher[2]) == ("student", "assisted teacher")
    assert int(teacher[3].replace(",", "")) - int(student[3].replace(",", "")) == 32 * 9
    assert student[5] == "8"
    assert float(student[6].rstrip(" |")) > 0

    model, total = build_model("stdc", "stdc1", 7).eval(), 0

    def count(conv, _, output):
        nonlocal total
        total += 2 * output.numel() * conv.weight[0].numel()

    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(count)
    with torch.inference_mode():
        model(torch.zeros(1, 3, 64, 128), with_aux=False)
    assert student[4] == f"{total / 1e9:.1f}"


def test_unknown_network(capsys):
    with pytest.raises(UserError, match="--only vgg: no such network"):
        run(capsys, "--only", "vgg")
