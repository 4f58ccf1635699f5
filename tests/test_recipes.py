"""Every recipe loads for every role, gives its sources, and every table's command is one that parses."""

import shlex
import subprocess

import pytest
import yaml

from datasets import DATASETS
from engine.settings import ROLES, TRAINED, load_recipe
from losses import parse_losses
from train_student import RECIPES
from utils.options import parse_flags

SCRIPTS = RECIPES.parent
NAMES = sorted(path.stem for path in RECIPES.glob("*.yaml"))
TABLES = sorted(path.name for path in (SCRIPTS / "tables").glob("*.sh") if path.name != "rows.sh")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("role", TRAINED)
def test_a_recipe_loads_for_every_role(name, role):
    values = load_recipe(name, role, RECIPES)
    assert values["dataset"] in DATASETS
    assert {"model", "backbone", "crop_size", "batch_size", "max_iterations", "lr"} <= values.keys()


@pytest.mark.parametrize("name", [name for name in NAMES if name != "toy"])
def test_every_value_has_a_source(name):
    for line in (RECIPES / f"{name}.yaml").read_text().splitlines():
        if line and not line.startswith(("#", "dataset:")):
            assert line.partition(" # ")[2].strip(), line


@pytest.mark.parametrize("name", NAMES)
def test_the_methods_of_a_recipe_are_losses(name):
    keys = yaml.safe_load((RECIPES / f"{name}.yaml").read_text())
    for method in (key.partition(".")[2] for key in keys if key.startswith("kd.")):
        kd = load_recipe(f"{name}:{method}", "student", RECIPES)["kd"]
        assert kd == keys[f"kd.{method}"] != load_recipe(name, "student", RECIPES)["kd"]
        assert parse_losses(kd)


def test_the_published_weights_of_cirkd_s_comparison():
    weights = {
        m: load_recipe(f"cityscapes:{m}", "student", RECIPES)["kd"]
        for m in ("skd", "ifvd", "cwd", "dsd", "at", "fitnet")
    }
    assert weights["skd"] == "kd=1,skd=10,adv=0.001"
    assert weights["ifvd"] == "kd=1,ifvd=20,adv=0.001"
    assert weights["cwd"] == "kd=1,cwd_feat=50,cwd=3,adv=0.001"
    assert weights["dsd"] == "dsd=1:psd=1000:csd=10"
    assert (weights["at"], weights["fitnet"]) == ("kd=1,at=10000", "kd=1,fitnet=10")
    assert "cirkd_pixel=0.01,cirkd_region=0.01" in load_recipe("voc:cirkd", "student", RECIPES)["kd"]


def test_every_data_set_of_the_paper_has_a_recipe():
    assert {"cityscapes", "ade20k", "voc", "coco_stuff_10k", "coco_stuff_164k", "camvid", "folder"} <= set(NAMES)


def test_voc_is_the_lad_release():
    teacher, student, baseline = (load_recipe("voc", role, RECIPES) for role in ("teacher", "student", "baseline"))
    assert (teacher["lr"], teacher["aux_weight"], teacher["consistency"]) == (0.001, 0.4, "cwd=5")
    assert (student["lr"], student["aux_weight"], student["kd"], student["pretrained"]) == (0.001, 0.02, "cwd=3", "?")
    assert (baseline["lr"], baseline["max_iterations"], baseline["batch_size"]) == (0.02, 40000, 16)
    assert "pretrained" not in baseline
    assert teacher["crop_size"] == (512, 512)


def commands(table, *flags):
    shown = subprocess.run(
        ["bash", str(SCRIPTS / "tables" / table), "--dry-run", *flags], capture_output=True, text=True, check=True
    )
    return [shlex.split(line) for line in shown.stdout.splitlines()]


@pytest.mark.parametrize("table", TABLES)
def test_a_table_is_one_command_that_parses_a_line(table):
    lines = commands(table, "--data-root", "/data sets", "--bases", "/image net", "--", "--seed", "3")
    assert len(lines) == len({" ".join(line) for line in lines}) > 3
    outputs = set()
    for _, script, dataset, model, backbone, *flags in lines:
        assert (SCRIPTS.parent / script).stem in ("train_teacher", "train_student")
        role = "teacher" if "teacher" in script else "student"
        given = parse_flags(ROLES[role], "", ["--dataset", dataset, "--model", model, "--backbone", backbone, *flags])
        if role == "student" and given.get("kd") == "none":
            role = "baseline"
        recipe = load_recipe(given.get("recipe", dataset), role, RECIPES)
        assert recipe["dataset"] == given["dataset"]
        for name, value in recipe.items():
            assert value != "?" or name in given, f"{name} is asked for by the recipe"
        assert given["data"] == f"/data sets/{dataset}"
        assert given["pretrained_base"] == f"/image net/{backbone}.pth"
        assert given["seed"] == 3
        needed = {given.get("pretrained"), given.get("teacher_pretrained")} - {None, ""}
        assert needed <= outputs, "what a line starts from is made by a line before it"
        outputs |= {f"{given['save_dir']}/{kind}.pth" for kind in ("best", "last")}


@pytest.mark.parametrize("folder", [".", "scripts", "scripts/tables", "tests"])
def test_a_table_names_its_launchers_from_the_folder_of_the_caller(folder):
    here = SCRIPTS.parent / folder
    line = ["bash", str(SCRIPTS / "tables/lad_voc.sh"), "--dry-run"]
    shown = subprocess.run(line, cwd=here, capture_output=True, text=True, check=True).stdout
    launcher = shlex.split(shown.splitlines()[0])[1]
    assert (here / launcher).resolve() == SCRIPTS / "train_student.sh"
    assert folder != "." or launcher == "scripts/train_student.sh"


def test_the_paper_has_five_data_sets_by_five_models():
    lines = commands("lad_paper.sh")
    assert not any("--pretrained-base" in line for line in lines)
    rows = {tuple(line[2:4]) for line in lines}
    assert len({dataset for dataset, _ in rows}) == 5
    assert len({model for _, model in rows}) == 5
    assert len(rows) == 25


def test_an_unknown_flag_of_a_table_is_refused():
    done = subprocess.run(["bash", str(SCRIPTS / "tables/lad_voc.sh"), "--dry"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "unknown flag --dry" in done.stderr
