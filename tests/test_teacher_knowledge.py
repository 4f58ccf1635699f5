"""What a teacher knows: entropy, likelihood and divergence against hand-made probabilities."""

import math

import pytest
import torch

from scripts.study.teacher_knowledge import main, measure
from utils.errors import UserError


def test_measures_of_hand_made_probabilities():
    p = torch.tensor([0.5, 0.25, 0.25]).view(3, 1, 1).expand(3, 2, 2)
    reference = torch.tensor([0.25, 0.25, 0.5]).view(3, 1, 1).expand(3, 2, 2)
    label = torch.tensor([[0, 1], [2, 255]])  # the last pixel does not count
    entropy, likelihood, divergence, count = measure(p.log(), reference.log(), label).tolist()
    assert count == 3
    assert entropy / 3 == pytest.approx(1.5 * math.log(2), rel=1e-6)
    assert likelihood == pytest.approx(5 * math.log(2), rel=1e-6)
    assert divergence / 3 == pytest.approx(0.25 * math.log(2), rel=1e-6)


def test_nothing_to_compare_is_said():
    with pytest.raises(UserError, match=r"--teacher RUN.. and --reference RUN.. are needed"):
        main(["--teacher", "a.pth"])
