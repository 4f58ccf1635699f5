"""When the training labels are checked for classes; tests/test_cli.py has what is then said."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from engine.label_watch import LabelWatch
from engine.settings import TrainConfig


class Labels:
    """A data set of five images, of which one has two labelled pixels; counts how often the labels are read."""

    def __init__(self):
        self.readings = 0

    def __len__(self):
        return 5

    def count_label_pixels(self, workers):
        self.readings += 1
        return np.array([0, 2])


def watch(first_iteration=0, length=10):
    settings = TrainConfig(batch_size=2, max_iterations=length, workers=0)
    runtime = SimpleNamespace(device=torch.device("cpu"), on_rank0=lambda function: function())
    data = SimpleNamespace(train=SimpleNamespace(dataset=Labels()))
    return LabelWatch(data, settings, runtime, first_iteration)


@pytest.mark.parametrize(
    ("first_iteration", "length", "iteration", "is_due"),
    [
        (0, 10, 2, False),  # four of the five images
        (0, 10, 3, True),
        (0, 2, 2, True),  # the whole run is shorter than an epoch
        (4, 10, 6, False),  # a resumed run: this process has seen four images
        (4, 10, 7, True),
        (4, 5, 5, False),  # what was seen before is not known
    ],
)
def test_the_check_waits_for_an_epoch(first_iteration, length, iteration, is_due):
    assert watch(first_iteration, length).is_check_due(iteration) is is_due


def test_labels_are_read_once_and_only_if_no_crop_had_a_class():
    seen = watch()
    seen.add(torch.tensor(0.5))
    assert seen.check(3) is None
    unseen = watch()
    unseen.add(torch.tensor(0.0))
    assert unseen.check(2) is None
    assert unseen.dataset.readings == 0
    assert "no crop has shown a class so far, but labels have some" in unseen.check(3)
    assert unseen.check(6) is None
    assert (seen.dataset.readings, unseen.dataset.readings) == (0, 1)
