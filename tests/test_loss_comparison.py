"""The comparison of losses: its runs, and equal training time."""

import json

import pytest
import yaml

from scripts.study import equal_time
from scripts.study.experiments.definition import Origin, read_experiment
from utils.errors import UserError

TINY = {
    "recipe": "toy",
    "seeds": [0, 1],
    "baseline": "base",
    "settings": {"model": "fcn", "backbone": "resnet10t", "crop_size": [32, 32], "batch_size": 2, "max_iterations": 30},
    "runs": {
        "base": {"settings": {"kd": "none"}},
        "teacher": {"train": "teacher"},
        "teacher_plain": {"settings": {"kd": "none"}},
        "kd_plain": {"settings": {"kd": "kd=1", "teacher_pretrained": "teacher_plain+1"}},
        "kd_lad": {"settings": {"kd": "kd=1", "teacher_pretrained": "teacher+1"}},
        "at_plain": {"settings": {"kd": "kd=1,at=9", "teacher_pretrained": "base+1"}},
        "at_lad": {"settings": {"kd": "kd=1,at=9", "teacher_pretrained": "teacher+1"}},
    },
}
COSTS = {"base": (1.0, 100), "kd_plain": (1.5, 130), "at_plain": (2.0, 90)}


@pytest.fixture
def study(tmp_path):
    """An experiment, and a folder with the costs of its losses."""
    file, records = tmp_path / "tiny.yaml", tmp_path / "records"
    records.mkdir()
    file.write_text(yaml.safe_dump(TINY, sort_keys=False))
    costs = {name: dict(zip(("seconds", "megabytes"), cost, strict=True)) for name, cost in COSTS.items()}
    (records / "cost.json").write_text(json.dumps({"costs": costs}))
    return file, records


def test_equal_time_gives_each_student_the_iterations_that_its_cost_allows(study, tmp_path):
    file, records = study
    equal_time.main([str(file), "--costs", str(records / "cost.json")])
    found = read_experiment(str(tmp_path / "tiny_time.yaml"))
    iterations = {name: arm.settings["max_iterations"] for name, arm in found.arms.items() if name.endswith("_time")}
    assert iterations == {"base_time": 45, "at_plain_time": 22, "at_lad_time": 22}, "kd's own time is not run again"
    assert found.arms["teacher"].settings["max_iterations"] == 30, "a teacher is trained as before"
    assert found.arms["at_lad_time"].origins["teacher_pretrained"] == Origin("teacher", 1)
    assert found.baseline == "base_time"
    equal_time.main([str(file), "--costs", str(records / "cost.json"), "--tolerance", "9"])
    assert list(read_experiment(str(tmp_path / "tiny_time.yaml")).arms) == ["base_time"]
    equal_time.main([str(file), "--costs", str(records / "cost.json")])


def test_equal_time_without_costs(study, tmp_path):
    file, records = study
    with pytest.raises(UserError, match=r"nothing/cost.json cannot be read: No such file"):
        equal_time.main([str(file), "--costs", str(tmp_path / "nothing/cost.json")])
    (records / "cost.json").write_text(json.dumps({"costs": {"base": {"seconds": 1, "megabytes": 2}}}))
    with pytest.raises(UserError, match=r"has no cost of kd_plain: run scripts/study/loss_cost.py first"):
        equal_time.main([str(file), "--costs", str(records / "cost.json")])
    (records / "cost.json").write_text('{"costs": {"base": 1}}')
    with pytest.raises(UserError, match=r"holds no costs of runs"):
        equal_time.main([str(file), "--costs", str(records / "cost.json")])


def test_every_loss_is_in_the_comparison_once_with_each_teacher():
    from losses import LOSSES, parse_losses

    arms = read_experiment("losses").arms
    for name in LOSSES:
        for end, teacher in (("plain", "teacher_plain"), ("lad", "teacher_near_01")):
            arm = arms[f"{name}_{end}"]
            assert name in parse_losses(arm.settings["kd"])
            assert arm.origins["teacher_pretrained"] == Origin(teacher, 1)
