"""Test the recipes: they load for every role, name their sources, and get the values that they require."""

import pytest
import yaml

from datasets import DATASETS
from engine.recipes import RECIPES, load_recipe
from engine.settings import TRAINED
from losses import parse_losses
from scripts.study.experiments.definition import read_experiment
from utils.errors import UserError

NAMES = sorted(path.stem for path in RECIPES.glob("*.yaml"))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("role", TRAINED)
def test_a_recipe_loads_for_every_role(name, role):
    values = load_recipe(name, role)
    assert values["dataset"] in DATASETS
    assert {"model", "backbone", "crop_size", "batch_size", "max_iterations", "lr"} <= values.keys()


@pytest.mark.parametrize("name", [name for name in NAMES if name != "toy"])
def test_every_value_has_a_source(name):
    for line in (RECIPES / f"{name}.yaml").read_text().splitlines():
        if line and not line.startswith(("#", "dataset:", "include:")):
            assert line.partition(" # ")[2].strip(), line


@pytest.mark.parametrize("name", NAMES)
def test_the_methods_of_a_recipe_name_valid_losses(name):
    keys = yaml.safe_load((RECIPES / f"{name}.yaml").read_text())
    for method in (key.partition(".")[2] for key in keys if key.startswith("kd.")):
        kd = load_recipe(f"{name}:{method}", "student")["kd"]
        assert kd == keys[f"kd.{method}"] != load_recipe(name, "student")["kd"]
        assert parse_losses(kd)


def test_loss_weights_match_the_comparison_of_cirkd():
    methods = ("skd", "ifvd", "cwd", "dsd", "at", "fitnet")
    weights = {method: load_recipe(f"cityscapes:{method}", "student")["kd"] for method in methods}
    assert weights["skd"] == "kd=1,skd=10,adv=0.001"
    assert weights["ifvd"] == "kd=1,ifvd=20,adv=0.001"
    assert weights["cwd"] == "kd=1,cwd_feat=50,cwd=3,adv=0.001"
    assert weights["dsd"] == "dsd=1:psd=1000:csd=10"
    assert (weights["at"], weights["fitnet"]) == ("kd=1,at=10000", "kd=1,fitnet=10")
    assert "cirkd_pixel=0.01,cirkd_region=0.01" in load_recipe("voc:cirkd", "student")["kd"]


def test_every_data_set_of_the_paper_has_a_recipe():
    assert {"cityscapes", "ade20k", "voc", "coco_stuff_10k", "coco_stuff_164k", "camvid", "folder"} <= set(NAMES)


def test_voc_recipe_matches_the_lad_release():
    teacher, student, baseline = (load_recipe("voc", role) for role in ("teacher", "student", "baseline"))
    assert (teacher["lr"], teacher["aux_weight"], teacher["consistency"]) == (0.001, 0.4, "cwd=5")
    assert (student["lr"], student["aux_weight"], student["kd"], student["pretrained"]) == (0.001, 0.02, "cwd=3", "?")
    assert (baseline["lr"], baseline["max_iterations"], baseline["batch_size"]) == (0.02, 40000, 16)
    assert "pretrained" not in baseline
    assert teacher["crop_size"] == (512, 512)


def test_the_paper_has_five_data_sets_by_five_models():
    arms = read_experiment("lad_paper").arms.values()
    assert len(arms) == 75
    rows = {(arm.dataset, arm.settings["model"]) for arm in arms}
    assert len(rows) == 25
    assert len({dataset for dataset, _ in rows}) == len({model for _, model in rows}) == 5


@pytest.mark.parametrize("table", ["lad_voc", "cirkd", "lad_paper"])
def test_every_run_of_a_published_table_sets_what_its_recipe_requires(table):
    for arm in read_experiment(table).arms.values():
        role = "baseline" if arm.settings.get("kd") == "none" else arm.role
        for name, value in load_recipe(arm.recipe, role).items():
            is_set = name in arm.settings or name in arm.origins
            assert value != "?" or is_set, f"{arm.name}: {name} is asked for by the recipe"


def test_a_recipe_may_include_another():
    """The recipe `folder` includes the recipe `light`. Its own lines win."""
    own = {"dataset": "folder", "fit_to_data": True}
    for role in TRAINED:
        assert load_recipe("folder", role) == load_recipe("light", role) | own


def test_a_line_for_all_roles_replaces_the_included_one_for_a_role(tmp_path):
    (tmp_path / "base.yaml").write_text("student.kd: dist=1\nlr: 0.5\nlr.cwd: 0.1\nteacher.lr: 0.3\n")
    (tmp_path / "own.yaml").write_text("include: base\nkd: kd=1\nstudent.lr: 0.25\n")
    assert load_recipe(f"{tmp_path}/own.yaml", "student") == {"kd": "kd=1", "lr": 0.25}
    assert load_recipe(f"{tmp_path}/own.yaml", "teacher") == {"lr": 0.3}


def test_an_included_recipe_is_looked_for_beside_the_file(tmp_path):
    (tmp_path / "base.yaml").write_text("lr: 0.5\nmodel: fcn\n")
    (tmp_path / "own.yaml").write_text("include: base\nlr: 0.25\n")
    (tmp_path / "twice.yaml").write_text("include: own\n")
    (tmp_path / "missing.yaml").write_text("include: coco\n")
    (tmp_path / "with_suffix.yaml").write_text("include: base.yaml\n")
    (tmp_path / "short.yml").write_text("lr: 0.125\n")
    (tmp_path / "of_short.yml").write_text("include: short.yml\n")
    (tmp_path / "with_method.yaml").write_text("include: voc:cwd\n")
    assert load_recipe(f"{tmp_path}/own.yaml", "teacher") == {"lr": 0.25, "model": "fcn"}
    with pytest.raises(UserError, match="include: own includes another recipe itself"):
        load_recipe(f"{tmp_path}/twice.yaml", "teacher")
    with pytest.raises(UserError, match=r"recipe not found: .*coco"):
        load_recipe(f"{tmp_path}/missing.yaml", "teacher")
    assert load_recipe(f"{tmp_path}/with_suffix.yaml", "teacher") == {"lr": 0.5, "model": "fcn"}
    assert load_recipe(f"{tmp_path}/of_short.yml", "teacher") == {"lr": 0.125}
    with pytest.raises(UserError, match="include: voc:cwd: leave out the colon and the method after it"):
        load_recipe(f"{tmp_path}/with_method.yaml", "teacher")


def test_a_recipe_of_ones_own_may_include_one_of_the_project(tmp_path):
    (tmp_path / "own.yaml").write_text("include: toy\nlr: 0.25\n")
    assert load_recipe(f"{tmp_path}/own.yaml", "teacher") == {**load_recipe("toy", "teacher"), "lr": 0.25}
