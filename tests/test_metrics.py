import numpy as np
import pytest
import torch

from engine.metrics import Metrics, confusion_matrix


def pixels(classes=5, seed=0):
    rng = np.random.default_rng(seed)
    label = rng.integers(0, classes, (3, 17, 23))
    prediction = np.where(rng.random(label.shape) < 0.6, label, rng.integers(0, classes, label.shape))
    label[rng.random(label.shape) < 0.2] = 255
    return prediction, label


def test_confusion_matrix_by_counting():
    prediction, label = pixels()
    counts = confusion_matrix(torch.from_numpy(prediction), torch.from_numpy(label).to(torch.uint8), 5).numpy()
    expected = [[((label == a) & (prediction == b)).sum() for b in range(5)] for a in range(5)]
    assert counts.dtype == np.int64
    assert counts.tolist() == expected


def test_scores_by_sets():
    prediction, label = pixels()
    metrics = Metrics(confusion_matrix(torch.from_numpy(prediction), torch.from_numpy(label), 5).numpy(), 3)
    valid = label != 255
    iou = []
    for k in range(5):
        a, b = (prediction == k) & valid, label == k
        iou.append((a & b).sum() / (a | b).sum())
    np.testing.assert_allclose(metrics.iou, iou, rtol=1e-15)
    assert metrics.miou() == pytest.approx(np.mean(iou), rel=1e-15)
    assert metrics.pixel_accuracy == pytest.approx((prediction == label)[valid].mean(), rel=1e-15)


def test_absent_classes_are_left_out_or_count_as_zero():
    metrics = Metrics(np.diag([3, 0, 5]), 1)
    assert metrics.miou() == 1
    assert metrics.miou(absent_as_zero=True) == pytest.approx(2 / 3)
    plain = metrics.as_dict(("a", "b", "c"))
    assert plain["iou"] == {"a": 1.0, "b": None, "c": 1.0}
    assert plain["absent"] == ["b"]
    assert "absent" in metrics.table(("a", "b", "c"))


def test_a_class_only_predicted_counts_as_zero():
    metrics = Metrics(np.array([[2, 2], [0, 0]]), 1)
    assert metrics.iou.tolist() == [0.5, 0.0]


def test_no_labelled_pixel_is_defined():
    counts = confusion_matrix(torch.zeros(1, 4, 4, dtype=torch.long), torch.full((1, 4, 4), 255), 3)
    metrics = Metrics(counts.numpy(), 1)
    assert np.isnan(metrics.miou())
    plain = metrics.as_dict(("a", "b", "c"))
    assert plain["miou"] is None
    assert plain["pixel_accuracy"] is None
    assert len(plain["absent"]) == 3


def test_counts_beyond_float_precision_stay_exact():
    assert Metrics(np.diag([2**53 + 1, 1]), 1).as_dict(("a", "b"))["confusion"][0][0] == 2**53 + 1


def test_torchmetrics_agrees_where_every_class_occurs():
    from torchmetrics.classification import MulticlassJaccardIndex

    prediction, label = (torch.from_numpy(x) for x in pixels())
    oracle = MulticlassJaccardIndex(5, average=None, ignore_index=255)
    metrics = Metrics(confusion_matrix(prediction, label, 5).numpy(), 3)
    np.testing.assert_allclose(metrics.iou, oracle(prediction, label).numpy(), rtol=1e-6)
