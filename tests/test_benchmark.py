"""The released code, with which the benchmark compares our speed, computes the same from the same random draws."""

import pytest
import torch

from engine.metrics import Metrics, count_confusions
from models.label_noise import LabelNoise
from scripts.study import as_released
from scripts.study.benchmarks.inputs import make_label_maps, mark_ignored, repeat_draws
from utils.bilinear import upsample_argmax
from utils.seeding import RowGenerator


@pytest.mark.parametrize("codes", ["random", "fixed"])
def test_label_planes(codes):
    label = make_label_maps(3, (24, 32), 21)
    noise = LabelNoise(21, codes, 0.03, 100.0)
    for path in (0, 1):
        plane = as_released.make_noised_label(
            mark_ignored(label), 21, 0.03, *repeat_draws(noise, label, RowGenerator(4), path)
        )
        torch.testing.assert_close(noise(label, RowGenerator(4), path), plane, rtol=1e-5, atol=1e-4)


def test_scores():
    generator = torch.Generator().manual_seed(0)
    score = as_released.Score(5)
    confusion = torch.zeros(5, 5, dtype=torch.int64)
    label = make_label_maps(3, (40, 56), 4)  # the fifth class does not occur
    for truth in label.split(1):
        logits = 3 * torch.randn(1, 5, 6, 8, generator=generator)
        logits[:, 4] = -100
        plain = as_released.score_image(logits, mark_ignored(truth), score)
        confusion += count_confusions(upsample_argmax(logits, truth.shape[-2:], True), truth, 5)
    assert Metrics(confusion.numpy(), 3).miou(absent_as_zero=True) == pytest.approx(plain, abs=1e-6)
