"""The numbers of scripts/study/models_table.py against an independent count."""

import pytest
import torch
from torch import nn

from models import build_model
from scripts.study import models_table
from utils.errors import UserError


def make_table(capsys, *flags):
    """Run the script and return its table, a list of cells for each line."""
    models_table.main(flags)
    return [line.split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("|")]


def test_parameters_and_operations_equal_an_independent_count(capsys):
    flags = ("--only", "stdc1", "--crop-size", "64", "128", "--num-classes", "7", "--repeats", "1")
    header, _, student, teacher = make_table(capsys, *flags)
    assert "images/s" in header[-1]
    assert (student[2], teacher[2]) == ("student", "assisted teacher")
    assert int(teacher[3].replace(",", "")) - int(student[3].replace(",", "")) == 32 * 9
    assert student[5] == "8"
    assert float(student[6].rstrip(" |")) > 0

    model = build_model("stdc", "stdc1", 7).eval()
    operations = 0

    def count_operations(conv, _, output):
        nonlocal operations
        operations += 2 * output.numel() * conv.weight[0].numel()

    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(count_operations)
    with torch.inference_mode():
        model(torch.zeros(1, 3, 64, 128), with_aux=False)
    assert student[4] == f"{operations / 1e9:.1f}"


def test_an_unknown_network_is_refused(capsys):
    with pytest.raises(UserError, match="--only vgg: no such network"):
        make_table(capsys, "--only", "vgg")
