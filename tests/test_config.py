import dataclasses

import pytest

from engine.recipes import load_recipe
from engine.settings import (
    IGNORED_WHEN_GROUPING,
    LABEL_CODES,
    PIXELS,
    StudentConfig,
    TeacherConfig,
    list_file_settings,
    list_resumable_settings,
    save_yaml,
)
from eval import EvalConfig
from models.label_noise import CODES
from tests.conftest import parse_settings
from utils.errors import UserError
from utils.options import option, parse_flags
from utils.pixels import CONVENTIONS


@pytest.fixture
def recipe(tmp_path):
    """Return a function that writes a recipe file and returns its path."""

    def write(text: str) -> str:
        path = tmp_path / "recipe.yaml"
        path.write_text(text)
        return str(path)

    return write


def test_the_config_of_a_run_is_a_recipe_without_overwrite_and_resume(recipe, tmp_path):
    settings = parse_settings(TeacherConfig, "teacher", ["--overwrite", "--lr", "0.25"])
    save_yaml(settings, tmp_path / "config.yaml")
    again = parse_settings(TeacherConfig, "teacher", ["--recipe", str(tmp_path / "config.yaml")])
    assert (again.lr, again.overwrite, again.resume) == (0.25, False, "")
    old = recipe("lr: 0.5\noverwrite: false\nresume: ''\n")  # older versions wrote these keys
    assert parse_settings(TeacherConfig, "teacher", ["--recipe", old]).lr == 0.5


def test_a_min_lr_above_lr_is_refused():
    with pytest.raises(UserError, match=r"--min-lr 5 is above --lr 0\.1"):
        parse_settings(TeacherConfig, "teacher", ["--lr", "0.1", "--min-lr", "5"])


def test_flag_over_recipe_over_default(recipe):
    path = recipe("lr: 0.5\nmomentum: 0.1\n")
    settings = parse_settings(TeacherConfig, "teacher", ["--recipe", path, "--lr", "0.25"])
    assert (settings.lr, settings.momentum, settings.power) == (0.25, 0.1, 0.9)


def test_a_key_may_be_for_one_role(recipe):
    path = recipe("lr: 1\nstudent.lr: 2\nbaseline.lr: 3\nteacher.aux_weight: 0.4\nkd: cwd=3\n")
    assert parse_settings(TeacherConfig, "teacher", ["--recipe", path]).lr == 1
    assert parse_settings(TeacherConfig, "teacher", ["--recipe", path]).aux_weight == 0.4
    student = parse_settings(StudentConfig, "student", ["--recipe", path])
    assert (student.lr, student.kd, student.aux_weight) == (2, "cwd=3", None)
    assert parse_settings(StudentConfig, "student", ["--recipe", path, "--kd", "none"]).lr == 3


def test_a_key_may_be_for_one_method(recipe):
    path = recipe("lr: 1\nstudent.kd: cwd=3\nkd.skd: skd=10\nkd.at: at=2\nlr.at: 3\n")

    def student(method, *flags):
        settings = parse_settings(StudentConfig, "student", ["--recipe", path + method, *flags])
        return settings.kd, settings.lr

    assert student("") == ("cwd=3", 1)
    assert student(":skd") == ("skd=10", 1)
    assert student(":at") == ("at=2", 3)
    assert student(":at", "--kd", "none") == ("none", 3)
    assert parse_settings(TeacherConfig, "teacher", ["--recipe", f"{path}:at"]).lr == 3
    with pytest.raises(UserError, match=r"unknown method of .* 'sdk'; did you mean 'skd'\? \(choices: skd, at\)"):
        student(":sdk")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learning_rate: 1", "unknown key 'learning_rate'"),
        ("weightdecay: 1", "did you mean 'weight_decay'"),
        ("studnet.lr: 1", "did you mean 'student.lr'"),
        ("lrr.at: 1", "unknown key 'lrr.at'"),
        ("lr: fast", r"lr: 'fast' is not a float"),
        ("batch_size: 2.5", "is not a int"),
        ("batch_size: 0", "at least 1"),
        ("lr: .nan", "nan is no finite number"),
        ("skip_val: 3", "true or false"),
        ("lr: true", "is not a float"),
        ("seed: 99999999999999999999", "does not fit into 64 bits"),
        ("save_dir:", "save_dir: None is not a str"),
        ("model: [fcn]", r"model: \['fcn'\] is not a str"),
        ("crop_size: 512", "is not 2 values"),
        ("crop_size: [512, 512, 3]", "is not 2 values"),
        ("crop_size: [8, 8]", "at least 32"),
        ("scale_range: [0.5, 100]", "at most 16"),
        ("overwrite: true", "overwrite is for a single start of a run: give the flag"),
        ("resume: auto", "resume is for a single start of a run: give the flag"),
        ("eval.scales: []", r"\[\] is not a list of one or more values"),
        ("eval.scales: 0.5", "0.5 is not a list"),
        ("pixels: imagnet", "did you mean 'imagenet'"),
        ("- a", "a recipe is a list"),
        ("a: [", "no plain yaml"),
        ("a: !!python/object/apply:os.getcwd []", "no plain yaml"),
    ],
)
def test_a_bad_recipe_is_explained(recipe, text, message):
    with pytest.raises(UserError, match=message):
        load_recipe(recipe(text), "eval" if text.startswith("eval") else "teacher")


def test_numbers_that_yaml_reads_as_text_are_converted(recipe):
    assert load_recipe(recipe("weight_decay: 1e-4"), "teacher") == {"weight_decay": 1e-4}


def test_a_question_mark_in_a_recipe_asks_the_user_for_the_flag(recipe):
    path = recipe('student.pretrained: "?"')
    with pytest.raises(UserError, match=r"needs --pretrained \(--pretrained '' does without\): checkpoint to start"):
        parse_settings(StudentConfig, "student", ["--recipe", path])
    given = ["--recipe", path, "--pretrained", "x.pth"]
    assert parse_settings(StudentConfig, "student", given).pretrained == "x.pth"
    assert parse_settings(TeacherConfig, "teacher", ["--recipe", path]).pretrained == ""
    assert parse_settings(TeacherConfig, "teacher", ["--data", "?"]).data == "?"
    with pytest.raises(UserError, match="--batch-size: '\\?' is not a int"):
        parse_settings(TeacherConfig, "teacher", ["--batch-size", "?"])


def test_a_recipe_without_distillation_uses_the_keys_of_the_baseline(recipe):
    path = recipe("kd: none\nbaseline.lr: 0.5\nstudent.lr: 0.1")
    config = parse_settings(StudentConfig, "student", ["--recipe", path])
    assert (config.kd, config.lr) == ("none", 0.5)
    assert config.save_dir.startswith("runs/baseline-")
    assert parse_settings(StudentConfig, "student", ["--recipe", path, "--kd", "kd=1"]).lr == 0.1
    only = recipe("baseline.lr: 0.7")
    assert parse_settings(StudentConfig, "student", ["--recipe", only, "--kd", "none"]).lr == 0.7
    path = recipe("student.kd: none\nkd.student: at=2")
    assert parse_settings(StudentConfig, "student", ["--recipe", path]).kd == "none"


@pytest.mark.parametrize(
    ("config_class", "role", "flag", "script"),
    [
        (StudentConfig, "student", "--label-dropout", "train_teacher.py"),
        (StudentConfig, "student", "--single-path", "train_teacher.py"),
        (TeacherConfig, "teacher", "--teacher-pretrained", "train_student.py"),
        (TeacherConfig, "teacher", "--kd=none", "train_student.py"),
    ],
)
def test_a_flag_of_the_other_script_is_refused_with_the_name_of_that_script(config_class, role, flag, script):
    with pytest.raises(UserError, match=rf"^{flag.partition('=')[0]} is a flag of {script};"):
        parse_settings(config_class, role, [flag, "0.5"])


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--batchsize", "3"], "unknown flag --batchsize; did you mean '--batch-size'"),
        (["--batch-size", "many"], "--batch-size: 'many' is not a int"),
        (["--batch_size", "3"], "unknown flag --batch_size: it is written --batch-size"),
        (["--no-lr"], "unknown flag --no-lr: --lr has no such form"),
        ([""], "an argument is empty: a variable in the command may not be set"),
        (["--recipe", "tony"], "did you mean 'toy'"),
        (["--device", "gpu"], "choices: auto, cpu, cuda"),
        (["--crop-size", "512"], "expected 2 arguments"),
    ],
)
def test_a_bad_flag_is_explained(argv, message):
    with pytest.raises(UserError, match=message):
        parse_settings(TeacherConfig, "teacher", argv)


def test_old_launchers_local_rank_is_accepted():
    parse_settings(TeacherConfig, "teacher", ["--local-rank", "0", "--local_rank=1"])


def test_the_saved_settings_are_a_recipe(tmp_path):
    settings = parse_settings(StudentConfig, "student", ["--kd", "cwd=3", "--crop-size", "64", "96", "--lr", "0.3"])
    save_yaml(settings, tmp_path / "config.yaml")
    again = parse_settings(StudentConfig, "student", ["--recipe", str(tmp_path / "config.yaml")])
    assert dataclasses.replace(again, recipe="") == settings


@dataclasses.dataclass(frozen=True)
class BareConfig:
    pretrained: str = option("", "a file", positional=True)
    scales: tuple[float, ...] = option((1.0,), "numbers")
    flip: bool = option(False, "a switch")


def test_the_flag_before_a_positional_value_may_be_left_out():
    read = parse_flags
    assert read(BareConfig, "", []) == {}
    for line in (["f.pth", "--flip"], ["--flip", "f.pth"], ["--pretrained", "f.pth", "--flip"]):
        assert read(BareConfig, "", line) == {"pretrained": "f.pth", "flip": True}
    with pytest.raises(UserError, match="--pretrained is given twice: with the flag and without"):
        read(BareConfig, "", ["a.pth", "--pretrained", "b.pth"])
    with pytest.raises(UserError, match=r"b\.pth is one value too many"):
        read(BareConfig, "", ["a.pth", "b.pth"])
    with pytest.raises(UserError, match="unknown flag --flap; did you mean '--flip'"):
        read(BareConfig, "", ["a.pth", "--flap"])


TOY = ["--recipe", "toy", "--model", "pspnet", "--backbone", "resnet10t"]
VOC = ["--recipe", "voc", "--data", "d", "--pretrained", "runs/baseline-voc-deeplabv3-resnet18_v1s/best.pth"]
NAMES = [
    ("student", [], "student-toy-deeplabv3-resnet18_v1s"),
    ("student", ["--kd", "none"], "baseline-toy-deeplabv3-resnet18_v1s"),
    ("student", [*TOY, "--kd", "cwd=3,kd=1:tau=4"], "student-toy-pspnet-resnet10t-kd=cwd=3,kd=1_tau=4"),
    ("student", [*TOY, "--kd", "kd=1", "--seed", "0", "--workers", "1"], "student-toy-pspnet-resnet10t"),
    ("teacher", [*TOY, "--single-path", "--seed", "2"], "teacher-toy-pspnet-resnet10t-seed=2-single_path"),
    ("teacher", [*TOY, "--crop-size", "64", "96"], "teacher-toy-pspnet-resnet10t-crop_size=64x96"),
    ("student", VOC, "student-voc-deeplabv3-resnet18_v1s"),  # this recipe asks for --pretrained
    ("teacher", VOC, "teacher-voc-deeplabv3-resnet18_v1s-pretrained=baseline"),
    (
        "student",
        [*VOC, "--teacher-pretrained", "runs/teacher-voc-deeplabv3-resnet18_v1s/best.pth"],
        "student-voc-deeplabv3-resnet18_v1s",
    ),
    (
        "student",
        [*VOC, "--teacher-pretrained", "/x/teacher-voc-deeplabv3-resnet18_v1s-single_path/last.pth"],
        "student-voc-deeplabv3-resnet18_v1s-teacher_pretrained=teacher-single_path_last",
    ),
    (
        "teacher",
        ["--recipe", "voc_mmseg", "--data", "d", "--pretrained-base", "bases/r18.pth"],
        "teacher-voc-fcn-resnet18_v1c-voc_mmseg-pretrained_base=r18",
    ),
]


@pytest.mark.parametrize(("role", "flags", "name"), NAMES)
def test_a_run_name_lists_the_changed_settings(role, flags, name):
    config_class = {"teacher": TeacherConfig, "student": StudentConfig}[role]
    assert parse_settings(config_class, role, flags).save_dir == f"runs/{name}"
    assert parse_settings(config_class, role, [*flags, "--save-dir", "here"]).save_dir == "here"


def test_a_run_name_that_is_too_long_for_a_file_is_cut_off():
    names = []
    for last in ("1.0", "2.0"):
        weights = ",".join(["1.2345"] * 149 + [last])
        settings = parse_settings(StudentConfig, "student", [*TOY, "--kd", "kd=1", "--class-weights", weights])
        names.append(settings.save_dir.removeprefix("runs/"))
    assert [len(name) for name in names] == [255, 255]
    assert names[0].startswith("student-toy-pspnet-resnet10t-")
    assert names[0] != names[1]


@pytest.mark.parametrize(("config_class", "role"), [(TeacherConfig, "teacher"), (StudentConfig, "student")])
def test_a_code_strength_without_its_codes_is_refused(config_class, role):
    with pytest.raises(UserError, match="--code-std is the strength of --label-codes near"):
        parse_settings(config_class, role, ["--code-std", "0.1"])
    assert parse_settings(config_class, role, ["--code-std", "0.1", "--label-codes", "near"]).code_std == 0.1


def test_lists_of_settings_follow_from_what_each_affects():
    resumable = {
        *("recipe", "data", "workers", "save_dir", "save_per_iters", "val_per_iters", "log_iter", "skip_val", "resume"),
        *("overwrite", "device", "pretrained_base", "pretrained", "cache_gb", "backend", "channels_last", "tf32"),
        *("deterministic", "compile", "fit_to_data"),
    }
    assert list_resumable_settings(TeacherConfig) == resumable
    assert list_resumable_settings(StudentConfig) == resumable | {"other_class_names", "teacher_model"}
    assert list_file_settings(StudentConfig) == {"pretrained_base", "pretrained", "teacher_pretrained"}
    assert {"seed", "workers", "compile", "device"} <= IGNORED_WHEN_GROUPING
    assert not IGNORED_WHEN_GROUPING & {"amp", "lr", "data", "kd", "pretrained", "consistency"}


def test_help_explains_values_that_exist():
    assert LABEL_CODES.keys() == CODES.keys()
    assert PIXELS.keys() == CONVENTIONS.keys()


@pytest.mark.parametrize("config_class", [TeacherConfig, StudentConfig, EvalConfig])
def test_help_has_a_heading_for_every_flag(config_class, capsys):
    with pytest.raises(SystemExit):
        parse_flags(config_class, "what it does", ["--help"])
    text = capsys.readouterr().out
    assert all(field.metadata["group"] for field in dataclasses.fields(config_class))
    assert all(f"\n{heading}:\n" in text for heading in ("data", "network", "output", "machine"))
    if config_class is not EvalConfig:
        assert "  voc                  21 classes: background, aeroplane" in text
        assert "  deeplabv3_cirkd2       dropout=" in text


def test_a_recipes_code_strength_is_dropped_with_its_codes():
    """If a flag sets other codes, the strength in the recipe is dropped. A strength flag is then refused."""
    other = parse_settings(TeacherConfig, "teacher", ["--recipe", "light", "--label-codes", "random"])
    assert other.code_std is None
    with pytest.raises(UserError, match="--code-std is the strength of --label-codes near, not of random"):
        parse_settings(TeacherConfig, "teacher", ["--recipe", "light", "--label-codes", "random", "--code-std", "0.2"])
