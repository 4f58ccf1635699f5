"""Test teacher_robustness.py: labels are wrong as often as asked, and the first condition has eval.py's score."""

import json

import numpy as np
import pytest
import torch

import eval as evaluation
from models.checkpoints.loading import from_checkpoint
from scripts.study import teacher_robustness
from scripts.study.analysis.robustness import Tally, corrupt_label
from tests.networks import write_checkpoint
from utils.errors import UserError

LABEL = np.repeat(np.repeat(np.array([[0, 1, 2], [3, 255, 0]], np.uint8), 40, 0), 50, 1)  # six regions of 40x50 pixels


def corrupt(kind, share, seed=0, num_classes=4):
    """Return a copy of LABEL in which a share of the pixels or regions has another class."""
    return corrupt_label(LABEL, kind, share, num_classes, np.random.default_rng(seed))


@pytest.mark.parametrize("kind", ["wrong pixels", "wrong regions"])
def test_the_asked_share_of_the_pixels_gets_a_wrong_label(kind):
    valid = LABEL != 255
    assert np.array_equal(corrupt(kind, 0.0), LABEL)
    everywhere = corrupt(kind, 1.0)
    assert (everywhere[valid] != LABEL[valid]).all()
    assert everywhere[valid].max() < 4
    assert (everywhere[~valid] == 255).all()
    shares = [(corrupt(kind, 0.3, seed) != LABEL).sum() / valid.sum() for seed in range(100)]
    assert np.mean(shares) == pytest.approx(0.3, abs=0.06)
    # all other classes are equally likely
    counts = np.bincount(np.concatenate([corrupt(kind, 1.0, s)[LABEL == 1] for s in range(300)]), minlength=4)
    assert counts[1] == 0
    assert counts[[0, 2, 3]] / counts.sum() == pytest.approx(1 / 3, abs=0.1)


def test_wrong_regions_are_whole():
    corrupted = corrupt("wrong regions", 0.5, seed=1)
    assert not np.array_equal(corrupted, LABEL)
    for top in (0, 40):
        for left in (0, 50, 100):
            assert len(np.unique(corrupted[top : top + 40, left : left + 50])) == 1
    corners = [corrupt("wrong regions", 1.0, s)[[0, 79], [0, 149]] for s in range(20)]
    assert any(a != b for a, b in corners)  # the two regions of class 0 are drawn independently


def test_tally_matches_a_hand_computation():
    # probability of class 0 in two draws, for an image of 1x4 pixels
    probability = torch.tensor([[[0.9, 0.2, 0.5, 0.5]], [[0.6, 0.6, 0.5, 0.5]]])
    logits = torch.stack([probability, 1 - probability], 1).log()
    label = np.array([[0, 1, 255, 1]], np.uint8)
    shown = np.array([[0, 0, 255, 1]], np.uint8)
    tally = Tally(2, 2)
    tally.add(logits, label, shown)
    result = tally.compute_results()
    # draw 0 predicts 0 1 _ 0 and draw 1 predicts 0 0 _ 0; the teacher was shown class 0 at the second pixel
    assert result["miou"] == pytest.approx([(1 / 2 + 1 / 2) / 2, (1 / 3 + 0) / 2])
    assert result["agreement"] == pytest.approx(2 / 3)
    assert result["wrong_share"] == pytest.approx(1 / 3)
    assert result["follows_wrong"] == pytest.approx(1 / 2)
    assert result["sees_through_wrong"] == pytest.approx(1 / 2)

    def compute_kl(p, q):
        return p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))

    expected = sum(compute_kl(p, q) + compute_kl(q, p) for p, q in ((0.9, 0.6), (0.2, 0.6))) / 2 / 3
    assert result["kl"] == pytest.approx(expected, rel=1e-5)


def test_the_command_writes_results_that_match_eval(tmp_path):
    teachers = []
    for codes in ("random", "fixed", "onehot"):
        teachers.append(write_checkpoint(tmp_path / f"{codes}/last.pth", codes=codes))
    flags = ["--teacher", *teachers, "--output", f"{tmp_path}/out", "--noise", "0", "--wrong", "0.5", "1"]
    teacher_robustness.main([*flags, "--seed", "4", "--device", "cpu"])
    content = json.loads((tmp_path / "out/robustness.json").read_text())
    assert list(content["results"]) == ["random", "fixed", "onehot"]
    tested_codes = {}
    for name, records in content["results"].items():
        tested_codes[name] = [record["value"] for record in records if record["name"] == "codes"]
    near = ["near 0.1", "near 0.3", "near 1"]
    assert tested_codes == {
        "random": ["random", "fixed", "shuffled", *near],
        "fixed": ["random", "fixed", "shuffled", *near],
        "onehot": ["onehot"],
    }
    for path, records in zip(teachers, content["results"].values(), strict=True):
        by_name = {(r["name"], r["value"]): r for r in records}
        first = records[0]
        evaluation.main(["--pretrained", path, "--json", f"{tmp_path}/eval.json", "--seed", "4", "--device", "cpu"])
        assert first["miou"][0] == json.loads((tmp_path / "eval.json").read_text())["miou"]
        assert by_name["pixel noise", "0.03"]["miou"] == first["miou"]
        assert by_name["codes", first["codes"]]["miou"] == first["miou"]
        assert by_name["no label", "zero plane"]["agreement"] == 1
        assert by_name["wrong pixels", "100 %"]["wrong_share"] == 1
        assert by_name["wrong pixels", "50 %"]["wrong_share"] == pytest.approx(0.5, abs=0.02)
    fixed = {r["value"]: r for r in content["results"]["fixed"] if r["name"] == "pixel noise"}
    assert fixed["0"]["agreement"] == 1  # with fixed codes and no noise, all draws are equal
    assert fixed["0"]["kl"] == 0
    assert "3 of 3 images, 2 draws" in (tmp_path / "out/robustness.md").read_text()
    assert (tmp_path / "out/robustness.png").stat().st_size > 10000


def test_a_part_of_the_images_is_spread_over_the_split(tmp_path, monkeypatch):
    def measure(loaded, dataset, chosen, *_):
        raise UserError(f"{chosen} of {len(dataset)}")

    monkeypatch.setattr(teacher_robustness, "measure_teacher", measure)
    teacher = write_checkpoint(tmp_path / "last.pth", codes="random")
    for limit, expected in (("2", r"\[0, 2\] of 3"), ("1", r"\[0\] of 3"), ("9", r"\[0, 1, 2\] of 3")):
        with pytest.raises(UserError, match=expected):
            teacher_robustness.main(["--teacher", teacher, "--limit", limit, "--device", "cpu"])


def test_images_without_a_labelled_pixel_are_refused(tmp_path):
    loaded = from_checkpoint(write_checkpoint(tmp_path / "last.pth", codes="random"))
    config = teacher_robustness.RobustnessConfig()

    class Unlabelled:
        def load_sample(self, _):
            return torch.zeros(3, 32, 32), torch.full((32, 32), 255, dtype=torch.uint8)

    with pytest.raises(UserError, match="--split val: none of the 1 images has a labelled pixel"):
        teacher_robustness.measure_teacher(loaded, Unlabelled(), [0], config, torch.device("cpu"))


def test_bad_flags_are_refused(tmp_path):
    teacher = write_checkpoint(tmp_path / "t.pth", codes="random")
    student = write_checkpoint(tmp_path / "s.pth")
    for flags, message in (
        ([], "--teacher FILE is missing"),
        (["--teacher", teacher, student], "sees the image only"),
        (["--teacher", teacher, teacher], "the same file twice"),
        (["--teacher", teacher, "--wrong", "1.5"], "--wrong: 1.5 is too large: at most 1"),
        (["--teacher", teacher, "--draws", "1"], "--draws: 1 is too small"),
    ):
        with pytest.raises(UserError, match=message):
            teacher_robustness.main([*flags, "--output", f"{tmp_path}/out"])
    assert not (tmp_path / "out").exists()
