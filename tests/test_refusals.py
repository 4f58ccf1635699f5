"""Test runs that are refused at the start: the message names the reason, and no file is left behind."""

import re
from dataclasses import asdict
from types import SimpleNamespace

import pytest

import eval as evaluation
import train_student
from datasets.camvid import CAMVID
from datasets.network_classes import require_classes
from datasets.toy import TOY
from engine.folder_lock import FolderLock
from engine.run_inputs import OtherRun, check_same_run, make_plain
from engine.settings import StudentConfig, TeacherConfig
from models import build_model
from models.checkpoints.card import Card
from models.checkpoints.loading import LoadedNetwork
from tests.conftest import BACKBONE, TINY
from tests.networks import write_checkpoint
from utils.errors import UserError

NOISE = {"codes": "fixed", "pixel_std": 0.02, "scale": 100.0}


@pytest.mark.parametrize("flags", [("--resume", "none.pth"), ("--pretrained", "none.pth"), ("--label-std", "0")])
def test_a_refused_start_leaves_no_folder(flags, tmp_path):
    with pytest.raises(UserError, match="none"):
        train_student.main([*TINY, "--kd", "none", "--save-dir", str(tmp_path / "runs/a"), *flags])
    assert not (tmp_path / "runs").exists()


def test_a_refused_start_keeps_existing_files(tmp_path):
    folder = tmp_path / "runs"
    folder.mkdir()
    with pytest.raises(UserError, match="none"):
        train_student.main([*TINY, "--kd", "none", "--save-dir", str(folder), "--resume", "none.pth"])
    assert list(folder.iterdir()) == []
    lock = FolderLock(folder)
    (folder / "notes.txt").touch()
    lock.release()
    assert sorted(path.name for path in folder.iterdir()) == [".lock", "notes.txt"]


RUNS = {
    "teacher": TeacherConfig(),
    "student": StudentConfig(kd="cwd=3", teacher_pretrained="t.pth"),
    "baseline": StudentConfig(kd="none"),
}


@pytest.mark.parametrize("saved_role", RUNS)
@pytest.mark.parametrize("new_role", RUNS)
def test_a_run_of_another_role_is_not_resumed(saved_role, new_role):
    config = RUNS[new_role].__class__(**asdict(RUNS[new_role]) | {"resume": "auto", "save_dir": "runs/a"})
    checkpoint = {"config": make_plain(asdict(RUNS[saved_role]))}
    if saved_role == new_role:
        check_same_run(checkpoint, config, {})
        return
    message = (
        f"--resume auto: runs/a holds the run of a {saved_role}, and this is a {new_role}: "
        "another --save-dir keeps both"
    )
    with pytest.raises(OtherRun, match=re.escape(message)):
        check_same_run(checkpoint, config, {})


def test_changed_settings_are_listed_in_the_message():
    config = StudentConfig(kd="none", lr=0.5, resume="auto", save_dir="runs/a")
    message = "--resume auto: runs/a holds a run with other settings (lr: 0.02 -> 0.5): "
    with pytest.raises(OtherRun, match=re.escape(message)):
        check_same_run({"config": make_plain(asdict(RUNS["baseline"]))}, config, {})


def make_network(names):
    """Return a stand-in for a network, with the attributes that require_classes() reads."""
    return SimpleNamespace(num_classes=len(names), class_names=names, has_single_logit=False)


def test_a_teacher_of_other_classes_is_refused(capsys):
    other = make_network([f"other {k}" for k in range(11)])
    with pytest.raises(UserError, match=r"T and camvid have no class name in common \(0: 'other 0', here 'sky'; "):
        require_classes(other, CAMVID, "camvid", "T", allow_other_names=False)
    require_classes(other, CAMVID, "camvid", "T", allow_other_names=True)
    assert "warning: T has other class names than camvid (0: 'other 0', here 'sky'; " in capsys.readouterr().err


def test_class_names_in_another_spelling_give_only_a_warning(capsys):
    names = ["Sky", "BUILDING", "column_pole", *CAMVID.names[3:]]
    require_classes(make_network(names), CAMVID, "camvid", "T", allow_other_names=False)
    warning = "warning: T has other class names than camvid (2: 'column_pole', here 'pole')\n"
    assert capsys.readouterr().err == warning
    for known in (CAMVID.names, [], [name.upper() for name in CAMVID.names]):
        same = SimpleNamespace(num_classes=11, class_names=known, has_single_logit=False)
        require_classes(same, CAMVID, "camvid", "T", allow_other_names=False)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "flags", [("--label-codes",), ("--label-std",), ("--label-scale",), ("--label-codes", "--label-std", "--code-std")]
)
def test_label_flags_are_refused_for_plain_teachers(flags, monkeypatch):
    config = StudentConfig(teacher_pretrained="t.pth", model="fcn", backbone=BACKBONE)

    def load(path, assisted, **names):
        noise = NOISE if is_assisted else None
        model = build_model("fcn", BACKBONE, 7, in_channels=4 if noise else 3)
        return LoadedNetwork(model.eval(), Card(model.config, TOY.names, pixels="bgr_mean", label_noise=noise))

    monkeypatch.setattr(train_student, "from_checkpoint", load)
    is_assisted = False
    with pytest.raises(UserError, match=rf"{', '.join(flags)}: --teacher-pretrained t.pth sees the image only"):
        train_student.build_step(config, TOY, flags)
    train_student.build_step(config, TOY)  # the same settings from a recipe are no error
    is_assisted = True
    train_student.build_step(config, TOY, flags)


def test_code_std_is_refused_for_codes_without_a_strength(tmp_path):
    path = write_checkpoint(tmp_path / "teacher.pth", codes="random")
    flags = [path, "--device", "cpu", "--workers", "0", "--code-std", "1"]
    with pytest.raises(UserError, match="--code-std is the strength of --label-codes near, not of random"):
        evaluation.main(flags)


def test_a_missing_data_folder_of_the_training_is_named(tmp_path):
    path = write_checkpoint(tmp_path / "last.pth", dataset="camvid", data="data/camvid_of_another_place")
    with pytest.raises(UserError, match=r"was trained with --data data/camvid_of_another_place, which is not there"):
        evaluation.main([path, "--device", "cpu", "--workers", "0"])
