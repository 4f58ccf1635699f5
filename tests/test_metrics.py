"""Scores against independent counts: IoU, precision, recall, F1, and classes that do not occur."""

import numpy as np
import pytest
import torch

from engine.metrics import Metrics, count_confusions


def make_prediction_and_label(classes=5, seed=0):
    """Draw labels, a fifth of them ignored, and predictions that are more often right than wrong."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, classes, (3, 17, 23))
    prediction = np.where(rng.random(label.shape) < 0.6, label, rng.integers(0, classes, label.shape))
    label[rng.random(label.shape) < 0.2] = 255
    return prediction, label


def test_confusion_matrix_equals_a_count():
    prediction, label = make_prediction_and_label()
    counts = count_confusions(torch.from_numpy(prediction), torch.from_numpy(label).to(torch.uint8), 5).numpy()
    expected = [[((label == a) & (prediction == b)).sum() for b in range(5)] for a in range(5)]
    assert counts.dtype == np.int64
    assert counts.tolist() == expected


def test_scores_equal_those_of_pixel_sets():
    prediction, label = make_prediction_and_label()
    metrics = Metrics(count_confusions(torch.from_numpy(prediction), torch.from_numpy(label), 5).numpy(), 3)
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
    scores = metrics.as_dict(("a", "b", "c"))
    assert scores["iou"] == {"a": 1.0, "b": None, "c": 1.0}
    assert scores["absent"] == ["b"]
    lines = metrics.format_table(("a", "b", "c")).splitlines()
    assert "absent" in lines[2]
    assert len({len(line) for line in lines}) == 1


def test_a_class_only_predicted_counts_as_zero():
    metrics = Metrics(np.array([[2, 2], [0, 0]]), 1)
    assert metrics.iou.tolist() == [0.5, 0.0]


def test_scores_are_defined_without_a_labelled_pixel():
    counts = count_confusions(torch.zeros(1, 4, 4, dtype=torch.long), torch.full((1, 4, 4), 255), 3)
    metrics = Metrics(counts.numpy(), 1)
    assert np.isnan(metrics.miou())
    scores = metrics.as_dict(("a", "b", "c"))
    assert scores["miou"] is None
    assert scores["pixel_accuracy"] is None
    assert len(scores["absent"]) == 3


def test_counts_beyond_float_precision_stay_exact():
    assert Metrics(np.diag([2**53 + 1, 1]), 1).as_dict(("a", "b"))["confusion"][0][0] == 2**53 + 1


def test_torchmetrics_agrees_where_every_class_occurs():
    from torchmetrics.classification import MulticlassJaccardIndex

    prediction, label = (torch.from_numpy(x) for x in make_prediction_and_label())
    torchmetrics_iou = MulticlassJaccardIndex(5, average=None, ignore_index=255)
    metrics = Metrics(count_confusions(prediction, label, 5).numpy(), 3)
    np.testing.assert_allclose(metrics.iou, torchmetrics_iou(prediction, label).numpy(), rtol=1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_precision_recall_and_f1_equal_counts_of_right_and_wrong_pixels(seed):
    prediction, label = make_prediction_and_label(seed=seed)
    metrics = Metrics(count_confusions(torch.from_numpy(prediction), torch.from_numpy(label), 5).numpy(), 3)
    valid = label != 255
    for k in range(5):
        right = int(((prediction == k) & (label == k)).sum())
        false_alarms = int(((prediction == k) & (label != k) & valid).sum())
        missed = int(((prediction != k) & (label == k)).sum())
        precision = right / (right + false_alarms)
        recall = right / (right + missed)
        assert metrics.precision[k] == pytest.approx(precision, rel=1e-15)
        assert metrics.recall[k] == pytest.approx(recall, rel=1e-15)
        assert metrics.f1[k] == pytest.approx(2 * precision * recall / (precision + recall), rel=1e-14)
        assert metrics.f1[k] == pytest.approx(2 * metrics.iou[k] / (1 + metrics.iou[k]), rel=1e-14)
    scores = metrics.as_dict(tuple("abcde"))
    assert scores["recall"]["c"] == metrics.recall[2]
    assert scores["mean_f1"] == pytest.approx(np.mean(metrics.f1), rel=1e-15)


def test_precision_and_recall_are_undefined_for_absent_classes_only():
    # class 1 is only predicted, class 2 is only labelled, class 3 does not occur
    counts = np.array([[2, 2, 0, 0], [0, 0, 0, 0], [3, 0, 0, 0], [0, 0, 0, 0]])
    metrics = Metrics(counts, 1)
    np.testing.assert_array_equal(metrics.precision, [0.4, 0.0, 0.0, np.nan])
    np.testing.assert_array_equal(metrics.recall, [0.5, 0.0, 0.0, np.nan])
    np.testing.assert_allclose(metrics.f1, [4 / 9, 0.0, 0.0, np.nan])
    scores = metrics.as_dict(("a", "b", "c", "d"))
    assert scores["precision"] == {"a": 0.4, "b": 0.0, "c": 0.0, "d": None}
    assert scores["mean_recall"] == pytest.approx(0.5 / 3)
    assert metrics.as_dict(("a", "b", "c", "d"), absent_as_zero=True)["mean_recall"] == pytest.approx(0.5 / 4)
    line = metrics.format_table(("a", "b", "c", "d")).splitlines()[1]
    assert line.split() == ["a", "28.57", "40.00", "50.00", "44.44", "4"]
    assert Metrics(np.zeros((2, 2), np.int64), 0).as_dict(("a", "b"))["mean_f1"] is None
