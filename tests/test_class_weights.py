"""``--class-weights``: the loss compared with independent formulas, the sources of the weights, and short runs."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml

import train_student
from datasets import build_dataset
from datasets.base import SegmentationDataset
from engine.class_weights import balance_classes, parse_class_weights, read_class_weights
from losses.task import TaskLoss, cross_entropy, ohem_loss
from tests import trees
from tests.conftest import TINY
from tests.test_engine import crash_at, read_losses
from utils import checkpoint
from utils.errors import UserError
from utils.types import Output, Supervision

K = 5
WEIGHTS = torch.tensor([0.2, 1.0, 3.5, 0.0, 1.3], dtype=torch.float64)
NAMES = ("sky", "road", "car", "tree", "person")
BASELINE = [*TINY, "--kd", "none", "--skip-val", "--max-iterations", "4"]
SAME_MATH = ["--freeze-bn", "--dropout", "0", "--lr", "0.001"]  # test_distributed explains these flags


def make_batch(dtype=torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, K, 6, 7, dtype=torch.float64, generator=generator)
    label = torch.randint(0, K, (2, 37, 30), generator=generator)
    label[0, :9] = 255
    return (3 * logits).to(dtype).requires_grad_(), label


def compute_log_softmax(logits: torch.Tensor, label: torch.Tensor) -> np.ndarray:
    """Return the log softmax of the upsampled logits at all labelled pixels: ``[labelled pixels, K]``."""
    upsampled = F.interpolate(logits.detach(), label.shape[-2:], mode="bilinear").permute(0, 2, 3, 1)[label != 255]
    values = upsampled.numpy()
    return values - np.log(np.exp(values).sum(1, keepdims=True))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_is_the_weighted_mean_over_labelled_pixels(smoothing):
    logits, label = make_batch()
    log_p = compute_log_softmax(logits, label)
    y = label[label != 255].numpy()
    w = WEIGHTS.numpy()
    pixel_losses = -(1 - smoothing) * w[y] * log_p[np.arange(len(y)), y] - smoothing / K * (log_p * w).sum(1)
    loss = cross_entropy(logits, label, False, smoothing, class_weights=WEIGHTS)
    assert loss.item() == pytest.approx(pixel_losses.sum() / w[y].sum(), rel=1e-6)  # the denominator is float32


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("deterministic", [True, False])
def test_value_and_gradient_match_pytorch(smoothing, deterministic):
    logits, label = make_batch()
    upsampled = F.interpolate(logits, label.shape[-2:], mode="bilinear")
    expected = F.cross_entropy(upsampled, label, WEIGHTS, ignore_index=255, label_smoothing=smoothing)
    (gradient,) = torch.autograd.grad(expected, logits)
    torch.use_deterministic_algorithms(deterministic)
    loss = cross_entropy(logits, label, False, smoothing, class_weights=WEIGHTS)
    torch.use_deterministic_algorithms(False)
    loss.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(logits.grad, gradient, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize(("threshold", "min_kept"), [(0.7, 1), (0.0, 100)])
def test_ohem_selects_hard_pixels_without_the_weights_and_then_applies_them(threshold, min_kept):
    logits, label = make_batch()
    log_p = compute_log_softmax(logits, label)
    y = label[label != 255].numpy()
    pixel_losses = -log_p[np.arange(len(y)), y]
    hard = pixel_losses > -np.log(0.7) if threshold else pixel_losses >= np.sort(pixel_losses)[-200]
    assert 0 < hard.sum() < len(y)
    loss = ohem_loss(logits, label, False, threshold, min_kept, class_weights=WEIGHTS)
    assert loss.item() == pytest.approx((WEIGHTS.numpy()[y] * pixel_losses * hard).sum() / label.numel(), rel=1e-9)


@pytest.mark.parametrize("criterion", ["ce", "ohem", "ce+dice"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("ignored_in_mean", [False, True])
def test_weights_of_one_give_the_same_bits_as_no_weights(criterion, smoothing, ignored_in_mean):
    results = []
    for weights in (None, [1.0] * K):
        logits, label = make_batch(torch.float32)
        task = TaskLoss([Supervision()], None, smoothing, criterion, ignored_in_mean, weights)
        loss, _ = task(Output(logits, (), logits), label)
        loss.backward()
        results.append((loss, logits.grad))
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


def test_weights_apply_to_auxiliary_outputs_but_not_to_dice():
    logits, label = make_batch()
    maps = Supervision("ce"), Supervision("ce", weight=0.5)
    weights = WEIGHTS.tolist()
    _, terms = TaskLoss(maps, class_weights=weights)(Output(logits, (logits,), logits), label)
    expected = cross_entropy(logits, label, False, class_weights=WEIGHTS)
    torch.testing.assert_close(terms["ce"], expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(terms["aux"], expected, rtol=1e-6, atol=0)
    plain, _ = TaskLoss(maps[:1], criterion="dice")(Output(logits, (), logits), label)
    both, _ = TaskLoss(maps[:1], criterion="ce+dice", class_weights=weights)(Output(logits, (), logits), label)
    torch.testing.assert_close(both, expected + plain, rtol=1e-6, atol=0)


def test_a_batch_of_classes_without_weight_has_loss_zero():
    logits, label = make_batch()
    loss = cross_entropy(logits, torch.full_like(label, 3), False, class_weights=WEIGHTS)
    loss.backward()
    assert loss.item() == 0
    assert not logits.grad.any()


def test_misuse_of_the_task_loss_is_explained():
    logits, label = make_batch()
    with pytest.raises(UserError, match="--class-weights has no effect on the task loss dice: every class"):
        TaskLoss([Supervision()], criterion="dice", class_weights=[1.0] * K)
    with pytest.raises(UserError, match="--label-smoothing has no effect on the task loss dice: leave it out"):
        TaskLoss([Supervision()], criterion="dice", label_smoothing=0.1)
    with pytest.raises(UserError, match="4 class weights for 5 classes"):
        TaskLoss([Supervision()], class_weights=[1.0] * 4)(Output(logits, (), logits), label)


def test_the_averaging_factor_counts_each_pixel_by_the_weight_of_its_class():
    _, label = make_batch()
    count = TaskLoss([Supervision()], class_weights=WEIGHTS.tolist()).compute_avg_factor(label)
    assert count.item() == pytest.approx(WEIGHTS[label[label != 255]].sum().item(), rel=1e-6)
    byte_label = label.to(torch.uint8)  # the type in which the engine counts
    assert torch.equal(count, TaskLoss([Supervision()], class_weights=WEIGHTS.tolist()).compute_avg_factor(byte_label))


def test_the_weights_are_not_in_the_state_dict():
    assert not TaskLoss([Supervision()], class_weights=[1.0] * K).state_dict()


def test_balanced_weights_have_mean_one_over_the_pixels():
    counts = np.array([900, 90, 10, 0])
    weights = balance_classes(counts.tolist())
    frequency = counts[:3] / 1000
    np.testing.assert_allclose(weights[:3], frequency**-0.5 / np.sqrt(frequency).sum(), rtol=1e-5)
    assert weights[3] == 1, "no pixel of this class"
    assert (counts * weights).sum() / counts.sum() == pytest.approx(1, rel=1e-5)
    assert balance_classes([7, 7]) == [1, 1]


@pytest.mark.parametrize("exponent", [0, 0.25, 1])
def test_balanced_weights_with_another_exponent(exponent):
    counts = np.array([1000, 10, 0, 200])
    weights = np.array(balance_classes(counts.tolist(), exponent))
    assert weights[0] / weights[1] == pytest.approx(100**-exponent, rel=1e-4)
    assert weights[2] == 1
    assert (weights * counts).sum() == pytest.approx(counts.sum(), rel=1e-4)


@pytest.mark.parametrize("workers", [0, 3])
@pytest.mark.parametrize("name", ["toy", "voc"])
def test_pixels_are_counted_in_all_labels(tmp_path, name, workers):
    trees.voc(tmp_path)
    dataset = build_dataset(name, str(tmp_path), "train")
    labels = np.concatenate([dataset.read(i)[1].ravel() for i in range(len(dataset))])
    assert (labels < 255).any()
    assert dataset.count_label_pixels(workers).tolist() == [(labels == k).sum() for k in range(len(dataset.spec.names))]


def test_a_bad_label_file_is_named(tmp_path):
    trees.voc(tmp_path)
    dataset = build_dataset("voc", str(tmp_path), "train")
    dataset.pairs[1][1].write_bytes(b"no picture")
    with pytest.raises(UserError, match=dataset.pairs[1][1].name):
        dataset.count_label_pixels(2)


def test_auto_names_classes_without_a_pixel(tmp_path, monkeypatch, capsys):
    counts = np.array([60, 30, 0, 5, 0, 5, 9])
    monkeypatch.setattr(SegmentationDataset, "count_label_pixels", lambda *_: counts)
    train_student.main([*BASELINE, "--class-weights", "auto", "--save-dir", str(tmp_path / "run")])
    assert "no training label has ring, cross: weight 1" in capsys.readouterr().err
    counts[:] = 0
    with pytest.raises(UserError, match="auto: no pixel of the training labels has a class"):
        train_student.main([*BASELINE, "--class-weights", "auto", "--save-dir", str(tmp_path / "other")])


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("w.yaml", "[0.5, 1, 2, 1e-4, 3]"),
        ("w.json", json.dumps([0.5, 1, 2, 1e-4, 3])),
        ("w.txt", "0.5\n1\n2\n1e-4\n3\n"),
        ("w.csv", "0.5, 1, 2, 1e-4, 3"),
        ("names.yaml", "road: 1\nsky: 0.5\nperson: 3\ncar: 2\ntree: 1e-4"),
        ("names.json", json.dumps({"person": 3, "sky": 0.5, "road": 1, "car": 2, "tree": 1e-4})),
    ],
)
def test_weights_are_read_from_files(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    assert read_class_weights(tmp_path / name, NAMES) == [0.5, 1, 2, 1e-4, 3]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1, 2, 3", "w.yaml: 3 numbers for 5 classes"),
        ("5", "1 numbers for 5 classes"),
        ("[1, 2, 3, 4, -5]", "-5 of class person: give a finite number of 0 or more"),
        ("[1, 2, .nan, 4, 5]", "nan of class car"),
        ("[1, 2, .inf, 4, 5]", "inf of class car"),
        ("[1, two, 3, 4, 5]", "'two' of class road"),
        ("[1, true, 3, 4, 5]", "True of class road"),
        ("[1, [2], 3, 4, 5]", r"\[2\] of class road"),
        ("[0, 0, 0, 0, 0]", "all weights are 0"),
        ("sky: 1\nraod: 2\ncar: 1\ntree: 1\nperson: 1", "'raod' is no class; did you mean 'road'"),
        ("sky: 1\ncar: 1\ntree: 1", "no weight for road, person"),
        ("sky: 1\nsky: 2", "the key 'sky' is there twice"),
        ("", "write 5 numbers, or 'class name: number' lines"),
        ("[1, 2", "no plain yaml"),
    ],
)
def test_bad_files_are_explained(tmp_path, text, message):
    (tmp_path / "w.yaml").write_text(text)
    with pytest.raises(UserError, match=message) as raised:
        read_class_weights(tmp_path / "w.yaml", NAMES)
    assert "w.yaml" in str(raised.value)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("weights.yaml", "--class-weights weights.yaml: no such file .or: auto, auto:0.25, or 7 numbers as in 1,2.5,1"),
        ("1,2,3", "--class-weights 1,2,3: 3 numbers for 7 classes"),
        ("1,1,1,1,1,1,x", "'x' of class star"),
        ("auto=1,2", "--class-weights auto=1,2: 2 numbers for 7 classes"),
        ("auto:2", "--class-weights auto:2: give a number from 0 to 1 after the colon"),
        ("auto:", "--class-weights auto:: give a number from 0 to 1 after the colon"),
        ("autos", "--class-weights autos: no such file"),
        ("1.5," * 100, "100 numbers for 7 classes"),
    ],
)
def test_a_bad_setting_is_explained(tmp_path, setting, message):
    with pytest.raises(UserError, match=message):
        train_student.main([*BASELINE, "--save-dir", str(tmp_path / "run"), "--class-weights", setting])


def read_setting(folder) -> str:
    """Return the setting in config.yaml. Check that the checkpoint has the same one."""
    setting = yaml.safe_load((folder / "config.yaml").read_text())["class_weights"]
    assert checkpoint.read(folder / "last.pth")["config"]["class_weights"] == setting
    return setting


def test_numbers_and_a_file_give_the_same_run_and_weights_of_one_change_nothing(tmp_path):
    (tmp_path / "w.txt").write_text("1 2 3 4 5 6 0.5")
    runs = {"none": "", "ones": "1,1,1,1,1,1,1", "numbers": "1, 2,3 4,5,6,.5", "file": str(tmp_path / "w.txt")}
    runs["doubled"] = "2,4,6,8,10,12,1"
    for name, setting in runs.items():
        train_student.main([*BASELINE, "--class-weights", setting, "--save-dir", str(tmp_path / name)])
    assert read_setting(tmp_path / "numbers") == read_setting(tmp_path / "file") == "1.0,2.0,3.0,4.0,5.0,6.0,0.5"
    assert read_losses(tmp_path / "numbers") == read_losses(tmp_path / "file") != read_losses(tmp_path / "none")
    assert read_losses(tmp_path / "ones") == read_losses(tmp_path / "none")
    # a common factor does not change a weighted mean
    np.testing.assert_allclose(read_losses(tmp_path / "doubled"), read_losses(tmp_path / "numbers"), rtol=1e-5)


def test_a_resumed_run_and_a_recipe_take_the_weights_of_auto_from_the_config(tmp_path, monkeypatch):
    flags = [*BASELINE, "--class-weights", "auto"]
    train_student.main([*flags, "--save-dir", str(tmp_path / "whole")])
    setting = read_setting(tmp_path / "whole")
    counts = build_dataset("toy", "", "train").count_label_pixels(1)
    assert parse_class_weights(setting) == balance_classes(counts.tolist())

    flags += ["--save-dir", str(tmp_path / "stopped")]
    with crash_at(3):
        train_student.main(flags)
    monkeypatch.setattr(SegmentationDataset, "count_label_pixels", lambda *_: pytest.fail("counted again"))
    train_student.main([*flags, "--resume", "auto"])
    assert read_setting(tmp_path / "stopped") == setting
    assert read_losses(tmp_path / "stopped") == read_losses(tmp_path / "whole")
    again = ["--recipe", str(tmp_path / "whole/config.yaml"), "--save-dir", str(tmp_path / "again")]
    train_student.main(again)
    assert read_losses(tmp_path / "again") == read_losses(tmp_path / "whole")


def test_auto_with_an_exponent_is_resumed_and_another_one_is_refused(tmp_path):
    flags = [*BASELINE, "--save-dir", str(tmp_path), "--class-weights"]
    with crash_at(3):
        train_student.main([*flags, "auto:0.25"])
    setting = read_setting(tmp_path)
    counts = build_dataset("toy", "", "train").count_label_pixels(1)
    assert setting.startswith("auto:0.25=")
    assert parse_class_weights(setting) == balance_classes(counts.tolist(), 0.25)
    for other in ("auto", "auto:0.5"):
        with pytest.raises(UserError, match=r"class_weights: 'auto:0\.25=.*' -> 'auto="):
            train_student.main([*flags, other, "--resume", "auto"])
    train_student.main([*flags, "auto:0.25", "--resume", "auto"])
    assert read_setting(tmp_path) == setting


def test_damaged_numbers_of_auto_are_counted_again(tmp_path):
    flags = [*BASELINE, "--save-dir", str(tmp_path), "--class-weights", "auto"]
    with crash_at(3):
        train_student.main(flags)
    setting = read_setting(tmp_path)
    file = tmp_path / "config.yaml"
    file.write_text(file.read_text().replace(setting, "auto=a,b,c,d,e,f,g"))
    train_student.main([*flags[:-1], "auto:0.50", "--resume", "auto"])
    assert read_setting(tmp_path) == setting


def test_auto_works_without_the_workers_flag(tmp_path):
    flags = [*BASELINE, "--class-weights", "auto", "--save-dir", str(tmp_path)]
    position = flags.index("--workers")
    del flags[position : position + 2]
    train_student.main(flags)
    assert read_setting(tmp_path).startswith("auto=")


def test_a_run_is_not_resumed_with_other_weights(tmp_path):
    flags = [*BASELINE, "--save-dir", str(tmp_path)]
    train_student.main([*flags, "--class-weights", "1,2,3,4,5,6,7"])
    for other in ("auto", "1,2,3,4,5,6,8", ""):
        with pytest.raises(UserError, match=r"class_weights: '1\.0,2\.0.*' -> "):
            train_student.main([*flags, "--resume", "auto", "--class-weights", other])


@pytest.mark.slow
def test_two_ranks_and_gradient_accumulation_give_the_same_run_as_one_rank(command, tmp_path):
    flags = [*BASELINE, *SAME_MATH, "--class-weights", "auto"]
    train_student.main([*flags, "--save-dir", str(tmp_path / "one")])
    command("train_student.py", *flags, "--save-dir", tmp_path / "two", processes=2)
    train_student.main([*flags, "--save-dir", str(tmp_path / "parts"), "--accumulate", "2"])
    assert read_setting(tmp_path / "one") == read_setting(tmp_path / "two") == read_setting(tmp_path / "parts")
    np.testing.assert_allclose(read_losses(tmp_path / "one"), read_losses(tmp_path / "two"), rtol=1e-5)
    np.testing.assert_allclose(read_losses(tmp_path / "one"), read_losses(tmp_path / "parts"), rtol=1e-5)
