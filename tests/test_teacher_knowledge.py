"""Test the measures of a teacher's knowledge against hand-made probabilities, and their table and plot."""

import json
import math
from dataclasses import replace

import pytest
import torch
import yaml

from datasets.toy import TOY
from scripts.study.experiments.definition import read_experiment
from scripts.study.experiments.knowledge import draw_knowledge, find_control, make_knowledge_table
from scripts.study.teacher_knowledge import main, sum_over_pixels
from tests.networks import write_checkpoint
from tests.test_compare import make_areas, make_run
from utils.errors import UserError


def test_measures_of_hand_made_probabilities():
    p = torch.tensor([0.5, 0.25, 0.25]).view(3, 1, 1).expand(3, 2, 2)
    reference = torch.tensor([0.25, 0.25, 0.5]).view(3, 1, 1).expand(3, 2, 2)
    label = torch.tensor([[0, 1], [2, 255]])  # the last pixel is ignored
    entropy, likelihood, divergence, count = sum_over_pixels(p.log(), reference.log(), label).tolist()
    assert count == 3
    assert entropy / 3 == pytest.approx(1.5 * math.log(2), rel=1e-6)
    assert likelihood == pytest.approx(5 * math.log(2), rel=1e-6)
    assert divergence / 3 == pytest.approx(0.25 * math.log(2), rel=1e-6)


def test_a_missing_reference_is_named():
    with pytest.raises(UserError, match=r"--teacher RUN.. and --reference RUN.. are needed"):
        main(["--teacher", "a.pth"])


def test_measures_are_saved_beside_each_teacher(tmp_path, capsys):
    write_checkpoint(tmp_path / "assisted-0/last.pth", codes="fixed")
    write_checkpoint(tmp_path / "plain-0/last.pth")
    reference = write_checkpoint(tmp_path / "long-0/last.pth")
    teachers = [f"{tmp_path}/assisted-0", f"{tmp_path}/plain-0/last.pth"]
    main(["--teacher", *teachers, "--reference", reference, "--limit", "2", "--save"])
    plain = json.loads((tmp_path / "plain-0/knowledge.json").read_text())
    assert (plain["split"], plain["images"], plain["references"]) == ("train", 2, ["long-0"])
    assert plain["divergence"] == pytest.approx(0, abs=1e-6)  # the reference has the same weights
    assert json.loads((tmp_path / "assisted-0/knowledge.json").read_text())["divergence"] > 0.01
    assert f"| plain-0 | {plain['entropy']:.4f} |" in capsys.readouterr().out


def test_a_teacher_of_one_hot_planes_can_be_measured(tmp_path, capsys):
    teacher = write_checkpoint(tmp_path / "onehot-0/last.pth", codes="onehot")
    reference = write_checkpoint(tmp_path / "long-0/last.pth")
    main(["--teacher", teacher, "--reference", reference, "--limit", "1"])
    assert "| onehot-0 |" in capsys.readouterr().out


def test_a_reference_that_reads_the_label_is_refused(tmp_path):
    teacher = write_checkpoint(tmp_path / "assisted-0/last.pth", codes="fixed")
    with pytest.raises(UserError, match="reads the label: it says nothing"):
        main(["--teacher", teacher, "--reference", teacher])


def test_networks_with_another_order_of_classes_are_refused(tmp_path):
    teacher = write_checkpoint(tmp_path / "plain-0/last.pth")
    reversed_spec = replace(TOY, names=TOY.names[::-1], palette=TOY.palette[::-1])
    reference = write_checkpoint(tmp_path / "long-0/last.pth", spec=reversed_spec)
    with pytest.raises(UserError, match="another order"):
        main(["--teacher", teacher, "--reference", reference])


def write_run(folder, name, seed, share, knowledge=None):
    """Write a run with its evaluation and, if given, its knowledge.json."""
    make_run(folder / f"{name}-{seed}", seed, make_areas(share, seed))
    if knowledge is not None:
        (folder / f"{name}-{seed}" / "knowledge.json").write_text(json.dumps(knowledge))


def make_measures(divergence, images=10):
    """Return the content of a knowledge.json."""
    measures = {"entropy": 0.1, "negative_log_likelihood": 0.25, "divergence": divergence}
    return measures | {"split": "train", "images": images, "references": ["long-0"]}


@pytest.fixture
def experiment(tmp_path):
    """Return an experiment whose student `lad` has the control `base`, and `released` has `further`."""
    runs = {
        "base": {"title": "alone", "settings": {"kd": "none"}},
        "teacher": {
            "train": "teacher",
            "title": "a teacher",
            "settings": {"label_codes": "fixed", "single_path": True},
        },
        "lad": {"title": "taught", "settings": {"teacher_pretrained": "teacher+1"}},
        "further": {"title": "continued", "settings": {"kd": "none", "pretrained": "base"}},
        "released": {
            "title": "both",
            "settings": {"pretrained": "base", "teacher_pretrained": "teacher+1"},
        },
    }
    content = {"recipe": "toy", "seeds": [0, 1], "baseline": "base", "runs": runs}
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    return read_experiment(str(tmp_path / "small.yaml"))


def test_the_table_has_means_over_seeds(experiment, tmp_path):
    for seed, divergence in ((0, 0.5), (1, 0.7)):
        write_run(tmp_path, "teacher", seed, 0.9, make_measures(divergence))
        write_run(tmp_path, "base", seed, 0.5)
    _, rows = make_knowledge_table(experiment, tmp_path)
    assert rows == [["a teacher (2)", "0.100 ± 0.000", "0.250 ± 0.000", "0.600 ± 0.141"]]


def test_without_measurements_the_table_says_not_run(experiment, tmp_path):
    write_run(tmp_path, "base", 0, 0.5)
    assert make_knowledge_table(experiment, tmp_path)[1] == [["not run", "", "", ""]]
    assert draw_knowledge(experiment, tmp_path) is None


def test_a_gain_is_counted_from_the_control(experiment):
    assert find_control(experiment, experiment.arms["lad"]) == "base"
    assert find_control(experiment, experiment.arms["released"]) == "further"


def test_the_plot_has_each_students_gain_at_its_teachers_divergence(experiment, tmp_path):
    for seed in (0, 1):
        write_run(tmp_path, "teacher", seed, 0.9, make_measures(0.5 + seed))
        write_run(tmp_path, "base", seed, 0.5)
        write_run(tmp_path, "lad", seed, 0.6)
        write_run(tmp_path, "further", seed, 0.55)
        write_run(tmp_path, "released", seed, 0.5)
    axis = draw_knowledge(experiment, tmp_path).axes[0]
    lines = {line.get_label(): line for line in axis.get_lines()}
    assert list(lines["taught"].get_xdata()) == [1.5, 0.5]  # the student of seed s has the teacher of seed s + 1
    score = {}
    for name in ("base", "lad", "further", "released"):
        score[name] = json.loads((tmp_path / f"{name}-0/eval-last.json").read_text())["miou"]
    assert lines["taught"].get_ydata()[0] == pytest.approx(100 * (score["lad"] - score["base"]))
    gain = lines["both"].get_ydata()[0]
    assert gain == pytest.approx(100 * (score["released"] - score["further"]))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"teacher-0/knowledge.json is damaged"),
        ("[]", "is no result of teacher_knowledge.py"),
        ('{"entropy": 1}', "is no result of teacher_knowledge.py"),
        (json.dumps(make_measures(float("nan"))), "a number is not finite"),
        (json.dumps(make_measures(0.5, images=20)), "different measurements: 10 images of train.*; 20 images of train"),
    ],
)
def test_bad_knowledge_files_are_refused(experiment, tmp_path, content, message):
    write_run(tmp_path, "teacher", 0, 0.9, {})
    write_run(tmp_path, "teacher", 1, 0.9, make_measures(0.5))
    (tmp_path / "teacher-0/knowledge.json").write_text(content)
    with pytest.raises(UserError, match=message):
        make_knowledge_table(experiment, tmp_path)
