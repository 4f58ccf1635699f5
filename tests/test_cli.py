"""Teacher, student and evaluation from the command line, and the one-line errors of bad input."""

import itertools
import json

import numpy as np
import pytest
import torch
from PIL import Image

import eval as evaluation
import train_student
import train_teacher
from datasets import build_dataset, get_dataset_spec
from datasets.toy import TOY
from models.checkpoints.loading import from_checkpoint
from tests.conftest import BACKBONE, TINY
from tests.networks import write_checkpoint
from tests.test_engine import read_records
from tests.trees import write_picture
from utils.errors import UserError
from utils.pixels import CONVENTIONS
from utils.seeding import RowGenerator


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Train a label-assisted teacher, a baseline, and students of both. Return the folder of the runs."""
    folder = tmp_path_factory.mktemp("runs")
    train_teacher.main([*TINY, "--save-dir", f"{folder}/teacher"])
    train_student.main([*TINY, "--kd", "none", "--save-dir", f"{folder}/baseline"])
    teacher, baseline = f"{folder}/teacher/last.pth", f"{folder}/baseline/last.pth"
    student = [*TINY, "--save-dir", f"{folder}/student", "--pretrained", baseline]
    train_student.main([*student, "--teacher-pretrained", teacher])
    train_student.main([*TINY, "--save-dir", f"{folder}/plain-kd", "--teacher-pretrained", baseline])
    return folder


def evaluate_run(runs, tmp_path, name, *flags):
    """Run eval.py on the last checkpoint of a run and return its JSON."""
    evaluation.main(["--pretrained", f"{runs}/{name}/last.pth", "--json", f"{tmp_path}/out.json", *flags])
    return json.loads((tmp_path / "out.json").read_text())


@pytest.mark.parametrize("name", ["teacher", "baseline", "student", "plain-kd"])
def test_evaluation_matches_the_validation_of_the_run(runs, tmp_path, name):
    result = evaluate_run(runs, tmp_path, name)
    last = read_records(runs / name, "val")[-1]
    assert result["miou"] == last["miou"]
    assert result["pixel_accuracy"] == last["pixel_accuracy"]
    assert result["label_assisted"] == (name == "teacher")
    assert ("LABEL-ASSISTED" in result["protocol"]) == (name == "teacher")


def test_scores_match_the_saved_predictions(runs, tmp_path):
    dataset = build_dataset("toy", "", "val")
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / "pred").mkdir()
    (tmp_path / "pred" / dataset.pairs[0][0].name).symlink_to(victim)  # must be replaced, not followed
    result = evaluate_run(runs, tmp_path, "student", "--save-pred", f"{tmp_path}/pred")
    assert victim.read_text() == "precious"
    confusion = np.zeros((7, 7), np.int64)
    for i, (image, _) in enumerate(dataset.pairs):
        label = dataset.read(i)[1]
        prediction = np.array(Image.open(tmp_path / f"pred/{image.name}"))
        np.add.at(confusion, (label[label != 255], prediction[label != 255]), 1)
    assert confusion.tolist() == result["confusion"]
    union = confusion.sum(0) + confusion.sum(1) - np.diag(confusion)
    iou = np.diag(confusion)[union > 0] / union[union > 0]
    assert result["miou"] == pytest.approx(iou.mean(), rel=1e-12)


def test_no_score_without_a_label(runs, tmp_path, capsys):
    write_picture(tmp_path / "test/a.jpg")
    names = ", ".join(get_dataset_spec("toy").names)
    (tmp_path / "dataset.yaml").write_text(f"names: [{names}]\nsplits: {{test: {{images: test, labels: none}}}}\n")
    flags = ["--dataset", "folder", "--data", str(tmp_path), "--split", "test", "--draws", "2"]
    result = evaluate_run(runs, tmp_path, "teacher", *flags)
    assert result["miou"] is None
    assert "draws" not in result
    assert "nan" not in capsys.readouterr().out


def test_a_teacher_can_be_evaluated_with_other_codes(runs, tmp_path):
    train_teacher.main([*TINY, "--save-dir", f"{runs}/untrained", "--lr", "0", "--max-iterations", "1"])

    def confusion(*flags):
        return evaluate_run(runs, tmp_path, "untrained", *flags)["confusion"]

    fixed = ["--label-codes", "fixed", "--label-std", "0"]
    assert confusion(*fixed) == confusion(*fixed, "--seed", "3")
    assert confusion() != confusion(*fixed)
    assert confusion() != confusion("--seed", "3")
    assert confusion("--without-label") == confusion("--without-label", "--seed", "3") != confusion(*fixed)
    assert "zero label plane" in evaluate_run(runs, tmp_path, "untrained", "--without-label")["protocol"]
    flags = [*fixed, "--seed", "3", "--absent-as-zero", "--window", "32", "32", "--stride", "16", "16"]
    protocol = evaluate_run(runs, tmp_path, "untrained", *flags)["protocol"]
    window = "window 32x32, stride 16x16"
    for words in (window, "label codes fixed", "pixel noise 0", "noise seed 3", "absent classes as 0"):
        assert words in protocol  # scores that differ in one of these must not be compared
    for flags in (["--label-codes", "fixed"], ["--without-label"]):
        with pytest.raises(UserError, match="sees the image only"):
            evaluate_run(runs, tmp_path, "student", *flags)


def test_a_teacher_with_one_hot_planes(runs, tmp_path):
    teacher = f"{tmp_path}/teacher/last.pth"
    flags = [*TINY, "--max-iterations", "2", "--label-codes", "onehot"]
    train_teacher.main([*flags, "--save-dir", f"{tmp_path}/teacher"])
    student = [*TINY, "--max-iterations", "2", "--teacher-pretrained", teacher, "--save-dir", f"{tmp_path}/student"]
    with pytest.raises(UserError, match="label codes 'fixed' make 1 planes, this teacher reads 7"):
        train_student.main(student)
    train_student.main([*student, "--label-codes", "onehot"])
    assert evaluate_run(tmp_path, tmp_path, "teacher")["label_assisted"]
    assert not evaluate_run(tmp_path, tmp_path, "student")["label_assisted"]
    with pytest.raises(UserError, match="label codes 'random' make 1 planes"):
        evaluate_run(tmp_path, tmp_path, "teacher", "--label-codes", "random")
    with pytest.raises(UserError, match="label codes 'onehot' make 7 planes, this teacher reads 1"):
        evaluate_run(runs, tmp_path, "teacher", "--label-codes", "onehot")


@pytest.fixture
def camvid(tmp_path):
    """Write two images per split in CamVid's layout."""
    for split in ("train", "val"):
        for folder, shape in ((split, (40, 60, 3)), (f"{split}annot", (40, 60))):
            (tmp_path / "camvid" / folder).mkdir(parents=True)
            for i in range(2):
                array = np.full(shape, 3 + i, np.uint8)
                Image.fromarray(array).save(tmp_path / f"camvid/{folder}/{split}{i}.png")
    return tmp_path / "camvid"


def train_on_camvid(camvid, tmp_path, *flags):
    train_teacher.main([*TINY, "--dataset", "camvid", "--data", str(camvid), "--save-dir", f"{tmp_path}/run", *flags])


def test_labels_without_a_class_give_no_score_and_cannot_be_trained_on(camvid, tmp_path, capsys):
    for i in range(2):
        Image.fromarray(np.full((40, 60), 11, np.uint8)).save(camvid / f"valannot/val{i}.png")
    train_on_camvid(camvid, tmp_path, "--max-iterations", "1")
    assert "no score, no best.pth: no pixel of the validation labels has a class" in capsys.readouterr().out
    for i in range(2):
        Image.fromarray(np.full((40, 60), 255, np.uint8)).save(camvid / f"trainannot/train{i}.png")
    with pytest.raises(UserError, match="no pixel of the training labels has a class"):
        train_on_camvid(camvid, tmp_path, "--overwrite")


def test_a_run_continues_if_no_crop_has_shown_a_class_so_far(camvid, tmp_path, capsys):
    label = np.full((40, 60), 255, np.uint8)
    label[0, 0] = 3
    for i in range(2):
        Image.fromarray(label).save(camvid / f"trainannot/train{i}.png")
    train_on_camvid(camvid, tmp_path, "--max-iterations", "1", "--scale-range", "2", "2", "--crop-size", "32", "32")
    assert "warning: no crop has shown a class so far, but labels have some" in capsys.readouterr().out


def test_labels_whose_classes_all_have_weight_zero_are_refused_with_their_own_message(camvid, tmp_path):
    weights = ",".join(["1"] + ["0"] * 10)
    with pytest.raises(UserError, match=r"has a class with a weight above 0 \(--class-weights 1\.0,0\.0,.*\): scripts"):
        train_on_camvid(camvid, tmp_path, "--max-iterations", "1", "--class-weights", weights)


def test_training_on_an_undamaged_tree(camvid, tmp_path):
    train_on_camvid(camvid, tmp_path, "--max-iterations", "1")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda root: (root / "valannot/val1.png").unlink(), r"1 of 2 .* first missing: .*valannot/val1\.png"),
        (lambda root: (root / "train/train0.png").write_bytes(b""), r"train/train0\.png cannot be read"),
        (
            lambda root: (root / "train/train0.png").write_bytes((root / "train/train0.png").read_bytes()[:60]),
            r"train0\.png cannot be read",
        ),
        (
            lambda root: Image.fromarray(np.zeros((41, 60), np.uint8)).save(root / "trainannot/train0.png"),
            r"differ in size: .*train0\.png is 60x40, .*train0\.png is 60x41",
        ),
        (
            lambda root: Image.fromarray(np.full((40, 60), 77, np.uint8)).save(root / "trainannot/train1.png"),
            r"train1\.png holds ids that are no class: 77 \(2400 px\); 11 classes",
        ),
        (
            lambda root: Image.fromarray(np.zeros((40, 60, 3), np.uint8)).save(root / "trainannot/train1.png"),
            r"train1\.png: a label must hold class ids .* found mode RGB",
        ),
    ],
)
@pytest.mark.parametrize("workers", ["0", "2"])
def test_a_damaged_tree_is_explained(camvid, tmp_path, damage, message, workers):
    damage(camvid)
    with pytest.raises(UserError, match=message) as raised:
        train_on_camvid(camvid, tmp_path, "--workers", workers)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--dataset", "camvid"], "--data is missing: the root folder of camvid"),
        (["--dataset", "camvid", "--data", "/nowhere"], "--data /nowhere: no such folder"),
        (["--dataset", "camvd"], "unknown data set 'camvd'; did you mean 'camvid'"),
        (["--model", "deeplab"], "unknown model 'deeplab'; did you mean 'deeplabv3'"),
        (["--backbone", "resnet18_v1"], r"unknown backbone 'resnet18_v1'; did you mean 'resnet18_v1\w'"),
        (["--backbone", "vit_base_patch16_224"], "cannot be used: needed are four maps"),
        (["--crop-size", "16", "16"], "--crop-size: 16 is too small: at least 32"),
        (["--consistency", "cwdd=5"], "did you mean 'cwd'"),
        (["--label-codes", "rand"], "unknown label codes 'rand'"),
        (["--pretrained", "none.pth"], r"checkpoint not found: none\.pth"),
        (["--pretrained-base", "none.pth"], r"checkpoint not found: none\.pth"),
        (["--pretrained", "/dev"], r"/dev is a folder: give a checkpoint in it \(there is none\)"),
        (["--save-dir", "/proc/run"], "--save-dir /proc/run cannot be written"),
    ],
)
def test_bad_settings_are_explained(tmp_path, flags, message):
    with pytest.raises(UserError, match=message) as raised:
        train_teacher.main([*TINY, "--save-dir", f"{tmp_path}/run", *flags])
    assert "\n" not in str(raised.value)


def test_checkpoints_of_another_network_or_class_count_are_refused(runs, camvid, tmp_path):
    folder = ["--save-dir", f"{tmp_path}/run"]
    camvid_flags = ["--dataset", "camvid", "--data", str(camvid)]
    with pytest.raises(UserError, match="is another network: arch 'fcn', here 'pspnet'"):
        train_teacher.main([*TINY, *folder, "--model", "pspnet", "--pretrained", f"{runs}/teacher/last.pth"])
    with pytest.raises(UserError, match="is another network: num_classes 7, here 11"):
        train_student.main([*TINY, *folder, *camvid_flags, "--kd", "none", "--pretrained", f"{runs}/baseline/last.pth"])
    with pytest.raises(UserError, match="has 7 classes, camvid 11"):
        train_student.main([*TINY, *folder, *camvid_flags, "--teacher-pretrained", f"{runs}/teacher/last.pth"])
    with pytest.raises(UserError, match="has 7 classes, camvid 11"):
        evaluation.main(["--pretrained", f"{runs}/teacher/last.pth", *camvid_flags])
    swapped = write_checkpoint(tmp_path / "turned/last.pth", class_names=[*TOY.names[1::-1], *TOY.names[2:]])
    for main in (
        lambda: evaluation.main([swapped, "--device", "cpu"]),
        lambda: train_student.main([*TINY, *folder, "--teacher-pretrained", swapped]),
    ):
        with pytest.raises(UserError, match=f"in another order: its class 0 is '{TOY.names[1]}', that of toy is"):
            main()
    shifted = write_checkpoint(tmp_path / "shifted/last.pth", class_names=["sky", *TOY.names[:-1]])
    with pytest.raises(UserError, match=f"in another order: its class 1 is '{TOY.names[0]}', that of toy is"):
        evaluation.main([shifted, "--device", "cpu"])
    with pytest.raises(UserError, match="needs --teacher-pretrained"):
        train_student.main([*TINY, *folder])
    with pytest.raises(UserError, match="--pretrained FILE is missing"):
        evaluation.main([])


@pytest.mark.parametrize("codes", ["", "fixed"])
@pytest.mark.parametrize(("own", "other"), list(itertools.product(CONVENTIONS, repeat=2)))
def test_a_teacher_gets_pixels_in_the_convention_it_was_trained_with(own, other, codes, tmp_path):
    file = write_checkpoint(tmp_path / "teacher.pth", codes=codes, pixels=other)
    settings = {"model": "fcn", "backbone": BACKBONE, "dataset": "toy", "kd": "kd=1", "pixels": own}
    step = train_student.build_step(train_student.StudentConfig(**settings, teacher_pretrained=file), TOY)
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (2, 3, 64, 64), generator=generator, dtype=torch.uint8)
    label = torch.randint(0, 7, (2, 64, 64), generator=generator)
    teacher_input = CONVENTIONS[other].normalize(image)
    if codes:
        noise = from_checkpoint(file).with_label_noise(pixel_std=0.02).build_label_noise()
        teacher_input = noise.add_planes(teacher_input, label, RowGenerator(0))
    found = step.train().teach(CONVENTIONS[own].normalize(image), label, RowGenerator(0)).logits
    expected = step.teacher(teacher_input).logits
    torch.testing.assert_close(found, expected, rtol=0, atol=float(1e-4 * expected.std()))


def test_errors_are_one_line_and_an_exit_status(command, tmp_path):
    result = command("train_teacher.py", "--dataset", "camvid", "--data", tmp_path / "none", check=False)
    assert result.returncode == 2
    assert result.stderr == f"error: --data {tmp_path}/none: no such folder\n"


def test_an_unwritable_json_is_refused_before_the_network_is_scored(runs, tmp_path, capsys):
    target = tmp_path / "folder"
    target.mkdir()
    with pytest.raises(UserError, match=f"--json {target} is a folder"):
        evaluation.main(["--pretrained", f"{runs}/student/last.pth", "--json", str(target)])
    assert target.is_dir()
    assert "mIoU" not in capsys.readouterr().out


def test_a_json_that_cannot_be_written_at_the_end_does_not_hide_the_score(runs, tmp_path, capsys, monkeypatch):
    def fail(path, text):
        raise UserError(f"cannot write {path}: No space left on device")

    monkeypatch.setattr(evaluation, "write_text", fail)
    with pytest.raises(UserError, match="No space left"):
        evaluation.main(["--pretrained", f"{runs}/student/last.pth", "--json", str(tmp_path / "score.json")])
    assert "mIoU" in capsys.readouterr().out


def test_a_recipe_sets_how_its_data_set_is_evaluated(tmp_path):
    recipe = tmp_path / "own.yaml"
    file = tmp_path / "s.json"
    recipe.write_text("dataset: toy\nlr: 0.1\neval.resize: [160, 120]\neval.flip: true\n")
    student = write_checkpoint(tmp_path / "a/last.pth")
    flags = [student, "--device", "cpu", "--workers", "0", "--recipe", str(recipe), "--json", str(file)]
    evaluation.main([*flags, "--no-flip"])
    assert json.loads(file.read_text())["protocol"] == "resized to fit 160x120, single scale, whole image"
    recipe.write_text("flip: true\n")
    with pytest.raises(UserError, match=r"unknown key 'flip'; did you mean 'eval\.flip'"):
        evaluation.main(flags)
