"""The comparison of losses: table, scatter, equal training time, and the cost of a step."""

import json

import pytest
import yaml
from matplotlib import image as pictures

from scripts.study import equal_time, experiment_figure, loss_cost
from scripts.study.experiments.definition import read_experiment
from scripts.study.experiments.losses_table import losses
from tests.test_compare import make_areas, make_run
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
QUALITY = {"base-0": 0.5, "base_time-0": 0.6, "kd_plain-0": 0.7, "kd_lad-0": 0.4}
QUALITY |= {"teacher_plain-0": 0.6}  # no loss of its own: neither a row nor cut to a time
COSTS = {"base": (1.0, 100), "kd_plain": (1.5, 130), "at_plain": (2.0, 90)}


@pytest.fixture
def study(tmp_path):
    """An experiment, and a folder with some of its records."""
    file, records = tmp_path / "tiny.yaml", tmp_path / "records"
    file.write_text(yaml.safe_dump(TINY, sort_keys=False))
    for name, quality in QUALITY.items():
        make_run(records / name, areas=make_areas(quality))
    costs = {name: dict(zip(("seconds", "megabytes"), cost, strict=True)) for name, cost in COSTS.items()}
    (records / "cost.json").write_text(json.dumps({"costs": costs}))
    return file, records


def score(records, name: str) -> float:
    return 100 * json.loads((records / name / "eval-last.json").read_text())["miou"]


def test_the_table_says_gains_by_teacher_and_budget_and_what_was_not_run(study):
    file, records = study
    header, (kd, at) = losses(read_experiment(str(file)), records)
    assert header[2].endswith("(1 seed(s))")
    assert kd[:2] == ["kd", "`kd=1`"]
    difference = (
        score(records, "kd_plain-0") - score(records, "base-0"),
        score(records, "kd_lad-0") - score(records, "base-0"),
    )
    assert kd[2:4] == [f"{x:+.2f}" for x in difference]
    assert kd[4:6] == ["not run"] * 2, "equal_time.py has not written what is to be trained"
    assert kd[6:] == ["1.50", "+30"]
    assert at == ["at", "`kd=1,at=9`", *["not run"] * 4, "2.00", "-10"]


def test_without_records_everything_is_not_run(study, tmp_path):
    _, rows = losses(read_experiment(str(study[0])), tmp_path / "nothing")
    assert [set(row[2:]) for row in rows] == [{"not run"}] * 2


def test_the_scatter_is_drawn(study, tmp_path):
    file, records = study
    flags = [str(file), "--records", str(records), "--output", str(tmp_path)]
    experiment_figure.main(flags)
    assert pictures.imread(tmp_path / "tiny_costs.png")[..., :3].std() > 0.02
    (tmp_path / "tiny_costs.png").unlink()
    (records / "cost.json").unlink()
    experiment_figure.main(flags)  # of label noise alone
    assert not (tmp_path / "tiny_costs.png").exists()
    with pytest.raises(UserError, match="no scored runs of tiny"):
        experiment_figure.main([*flags, "--records", str(tmp_path / "nothing")])


def test_equal_time_gives_each_student_the_iterations_that_its_cost_allows(study, tmp_path):
    file, records = study
    equal_time.main([str(file), "--costs", str(records / "cost.json")])
    found = read_experiment(str(tmp_path / "tiny_time.yaml"))
    iterations = {name: arm.settings["max_iterations"] for name, arm in found.arms.items() if name.endswith("_time")}
    assert iterations == {"base_time": 45, "at_plain_time": 22, "at_lad_time": 22}, "kd's own time is not run again"
    assert found.arms["teacher"].settings["max_iterations"] == 30, "a teacher is trained as before"
    assert found.arms["at_lad_time"].origins["teacher_pretrained"] == ("teacher", 1)
    assert found.baseline == "base_time"
    equal_time.main([str(file), "--costs", str(records / "cost.json"), "--tolerance", "9"])
    assert list(read_experiment(str(tmp_path / "tiny_time.yaml")).arms) == ["base_time"]
    equal_time.main([str(file), "--costs", str(records / "cost.json")])

    _, (kd, at) = losses(read_experiment(str(file)), records)
    assert kd[4] == f"{score(records, 'kd_plain-0') - score(records, 'base_time-0'):+.2f}"
    assert kd[5] == f"{score(records, 'kd_lad-0') - score(records, 'base_time-0'):+.2f}"
    assert at[4] == "not run"
    make_run(records / "at_plain_time-0", areas=make_areas(0.8))
    _, (_, at) = losses(read_experiment(str(file)), records)
    assert at[4] == f"{score(records, 'at_plain_time-0') - score(records, 'base_time-0'):+.2f}"


def test_equal_time_without_costs(study, tmp_path):
    file, records = study
    with pytest.raises(UserError, match=r"nothing/cost.json cannot be read: No such file .*; loss_cost.py --json"):
        equal_time.main([str(file), "--costs", str(tmp_path / "nothing/cost.json")])
    (records / "cost.json").write_text(json.dumps({"costs": {"base": {"seconds": 1, "megabytes": 2}}}))
    with pytest.raises(UserError, match=r"has no cost of kd_plain: run scripts/study/loss_cost.py first"):
        equal_time.main([str(file), "--costs", str(records / "cost.json")])
    (records / "cost.json").write_text('{"costs": {"base": 1}}')
    with pytest.raises(UserError, match=r"is no result of loss_cost\.py"):
        equal_time.main([str(file), "--costs", str(records / "cost.json")])


def test_the_cost_of_a_step_is_measured(study, tmp_path, capsys):
    flags = ["--steps", "1", "--device", "cpu", "--only", "at_plain", "--json", str(tmp_path / "cost.json")]
    loss_cost.main([str(study[0]), *flags])
    (cost,) = json.loads((tmp_path / "cost.json").read_text())["costs"].values()
    assert cost["seconds"] > 0
    assert cost["megabytes"] > 100
    assert "at_plain" in capsys.readouterr().out
    with pytest.raises(UserError, match="unknown student in --only 'teacher'"):
        loss_cost.main([str(study[0]), "--only", "teacher"])


def test_every_loss_is_in_the_comparison_once_with_each_teacher():
    from losses import LOSSES, parse_losses

    arms = read_experiment("losses").arms
    for name in LOSSES:
        for end, teacher in (("plain", "teacher_plain"), ("lad", "teacher_near_01")):
            arm = arms[f"{name}_{end}"]
            assert name in parse_losses(arm.settings["kd"])
            assert arm.origins["teacher_pretrained"] == (teacher, 1)
