"""``--model package.module:function``: a network from a file outside the project."""

import json
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

import eval as evaluation
import train_student
import train_teacher
from datasets.toy import TOY
from losses import LOSSES, build_kd
from models import build_model, from_checkpoint
from models.checkpoints.card import Card
from scripts.deploy import predict
from tests.conftest import BACKBONE, TINY
from tests.test_engine import crash_at, read_records
from utils import checkpoint
from utils.errors import UserError

DOCS_PAGE = Path(__file__).resolve().parent.parent / "docs/networks.md"
SOURCE = DOCS_PAGE.read_text(encoding="utf-8").partition("## Your own network")[2].partition("```python\n")[2]
SOURCE = SOURCE.partition("```")[0]
NETWORKS = """
import torch
from torch import nn
from utils.types import Output


class Tiny(nn.Module):
    def __init__(self, backbone, num_classes, in_channels, change=lambda logits, feat: logits):
        super().__init__()
        self.change = change
        self.stem = nn.Sequential(nn.Conv2d(in_channels, 8, 3, 4, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.dropout = nn.Dropout(0.5)
        self.unused = nn.Conv2d(8, 8, 1)
        self.classifier = nn.Conv2d(8, num_classes, 1)

    def forward(self, x):
        feat = self.dropout(self.stem(x))
        return self.change(self.classifier(feat), feat)


def tiny(backbone, num_classes, in_channels):
    return Tiny(backbone, num_classes, in_channels)


def featured(backbone, num_classes, in_channels):
    return Tiny(backbone, num_classes, in_channels, lambda logits, feat: Output(logits, (logits[..., ::2, ::2],), feat))


def lazy(backbone, num_classes, in_channels):
    return nn.LazyConv2d(num_classes, 1)


def build_with(change):
    return lambda backbone, num_classes, in_channels: Tiny(backbone, num_classes, in_channels, change)


def fewer(num_classes):
    return Tiny("", num_classes, 3)


def rgb_only(backbone, num_classes, in_channels):
    return Tiny(backbone, num_classes, 3)


def raises(backbone, num_classes, in_channels):
    raise KeyError("no such thing")


def ends(backbone, num_classes, in_channels):
    raise SystemExit(3)


def text(backbone, num_classes, in_channels):
    return "network"


number = 5
mapping = build_with(lambda logits, feat: {"out": logits, "aux": feat})
pair = build_with(lambda logits, feat: (logits, feat))
flat = build_with(lambda logits, feat: logits.mean((2, 3)))
classes = build_with(lambda logits, feat: logits.argmax(1, keepdim=True))
wide = build_with(lambda logits, feat: torch.cat([logits, logits], 1))
no_feat = build_with(lambda logits, feat: Output(logits, (), None))
bad_aux = build_with(lambda logits, feat: Output(logits, (feat,), feat))
list_aux = build_with(lambda logits, feat: Output(logits, logits, feat))
"""
EVIL = "from pathlib import Path\nPath('imported').touch()\n\ndef net(backbone, num_classes, in_channels):\n    pass\n"
OWN_LOSSES = """
from torch import nn


class Any(nn.Module):
    def __init__(self, student_channels, teacher_channels, num_classes):
        super().__init__()

    def forward(self, student, teacher, label):
        return (student.logits - teacher.logits).square().mean()


class Logits(Any):
    reads_feat = False


class Aux(Logits):
    reads_aux = True
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Make a folder with a user's own modules the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    modules_before = set(sys.modules)
    (tmp_path / "my_networks.py").write_text(SOURCE)
    (tmp_path / "my_tiny.py").write_text(NETWORKS)
    (tmp_path / "my_evil.py").write_text(EVIL)
    (tmp_path / "my_broken.py").write_text("raise RuntimeError('half done')\n")
    (tmp_path / "my_end.py").write_text("raise SystemExit(5)\n")
    (tmp_path / "my_own_losses.py").write_text(OWN_LOSSES)
    yield tmp_path
    for name in set(sys.modules) - modules_before:
        if name.startswith("my_"):
            del sys.modules[name]


def write_own_checkpoint(path: Path, arch: str, classes: int = len(TOY.names), channels: int = 3) -> str:
    """Write a checkpoint of a user's network with its initial weights. Return the path."""
    model = build_model(arch, BACKBONE, classes, channels)
    card = Card(dict(model.config), TOY.names, TOY.palette, "toy", "", "bgr_mean").entries()
    checkpoint.save({**card, "model": model.state_dict()}, path)
    return str(path)


def write_checkpoint_without_weights(path: Path, arch: object) -> str:
    """Write a checkpoint that names the function ``arch`` and holds no weights. Return the path."""
    card = Card({"arch": arch, "backbone": "", "num_classes": 7, "in_channels": 3}, TOY.names, TOY.palette, "toy")
    checkpoint.save({**card.entries(), "pixels": "bgr_mean", "model": {}}, path)
    return str(path)


def test_the_example_of_the_docs_page_trains_evaluates_and_predicts(folder, capsys):
    assert len([line for line in SOURCE.splitlines() if line.strip()]) <= 10
    own_flags = ["--model", "my_networks:lraspp"]
    short = ["--max-iterations", "2", "--skip-val"]
    train_teacher.main([*TINY, *short, *own_flags, "--save-dir", "teacher"])
    assert checkpoint.read("teacher/last.pth")["arch"] == {
        "arch": "my_networks:lraspp",
        "backbone": BACKBONE,
        "num_classes": 7,
        "in_channels": 4,
    }
    teacher_flags = ["--teacher-pretrained", "teacher/last.pth", "--kd", "cwd=3,kd=1"]
    train_student.main([*TINY, *short, *own_flags, *teacher_flags, "--save-dir", "student"])
    assert read_records(folder / "student", "train")[-1]["cwd"] > 0
    evaluation.main(["student/last.pth", *own_flags, "--json", "student.json", "--device", "cpu", "--workers", "0"])
    validated = read_records(folder / "student", "val")[-1]["miou"]
    assert json.loads(Path("student.json").read_text())["miou"] == pytest.approx(validated, abs=1e-9)
    Image.new("RGB", (70, 45), (200, 30, 90)).save("photo.png")
    predict.main(["photo.png", "--pretrained", "student/last.pth", *own_flags, "--device", "cpu"])
    assert Image.open("predictions/photo.png").size == (70, 45)
    loaded = from_checkpoint("student/last.pth", model="my_networks:lraspp")
    assert loaded.predict("photo.png").shape == (45, 70)
    assert loaded.model(torch.zeros(1, 3, 64, 96)).logits.shape == (1, 7, 8, 12)  # its output stride is 8


def test_an_own_network_teaches_and_learns_from_one_of_this_project(folder):
    teacher = write_own_checkpoint(folder / "teacher.pth", "my_tiny:featured")
    short = ["--max-iterations", "1", "--skip-val"]
    from_teacher = [*short, "--teacher-pretrained", teacher]
    with pytest.raises(UserError, match=r"give --teacher-model my_tiny:featured"):
        train_student.main([*TINY, *from_teacher, "--save-dir", "student"])
    with pytest.raises(UserError, match=r"give --teacher-model my_tiny:featured"):
        train_student.main([*TINY, *from_teacher, "--model", "my_tiny:tiny", "--save-dir", "student"])
    assert not Path("student").exists()
    teacher_flags = ["--teacher-model", "my_tiny:featured", "--kd", "fitnet=1"]
    train_student.main([*TINY, *from_teacher, *teacher_flags, "--save-dir", "student"])
    assert read_records(folder / "student", "train")[-1]["fitnet"] > 0
    train_student.main([*TINY, *short, "--kd", "none", "--save-dir", "plain"])
    own_flags = ["--model", "my_tiny:featured", "--kd", "fitnet=1", "--teacher-pretrained", "plain/last.pth"]
    train_student.main([*TINY, *short, *own_flags, "--save-dir", "own"])
    line = read_records(folder / "own", "train")[-1]
    assert line["fitnet"] > 0
    assert line["aux"] > 0


def test_a_run_is_resumed(folder):
    flags = [*TINY, "--kd", "none", "--model", "my_tiny:tiny", "--save-dir"]
    train_student.main([*flags, "whole", "--skip-val"])
    with crash_at(5):  # one iteration after a checkpoint
        train_student.main([*flags, "parts", "--skip-val"])
    train_student.main([*flags, "parts", "--skip-val", "--resume", "auto"])
    whole = checkpoint.read("whole/last.pth")["model"]
    parts = checkpoint.read("parts/last.pth")["model"]
    assert all(torch.equal(whole[key], parts[key]) for key in whole)
    assert len(read_records(Path("parts"), "start")) == 2


def test_the_trial_of_an_own_network_changes_nothing(folder):
    build_model("my_tiny:tiny", "", 7)  # this makes the current folder importable
    import my_tiny

    torch.manual_seed(3)
    expected = my_tiny.tiny("", 7, 3)
    next_number = torch.rand(1)
    torch.manual_seed(3)
    model = build_model("my_tiny:tiny", "", 7)
    assert torch.equal(torch.rand(1), next_number)
    state = model.network.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in expected.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen == {"network.unused.weight", "network.unused.bias"}
    assert model.training
    model.set_dropout(0.25)
    assert model.network.dropout.p == 0.25


def test_the_outputs_of_an_own_network_are_recorded(folder):
    plain = build_model("my_tiny:tiny", "", 7)
    assert plain.feature_channels is None
    assert len(plain.supervision) == 1
    assert not plain.supervision[0].align_corners
    featured = build_model("my_tiny:featured", "", 7)
    assert featured.feature_channels == 8
    assert [item.weight for item in featured.supervision] == [1.0, 0.4]
    assert featured(torch.zeros(2, 3, 32, 32), with_aux=False).aux == ()
    featured.network.align_corners = True
    assert featured.supervision[0].align_corners


@pytest.mark.parametrize(
    ("arch", "message"),
    [
        ("my_tyni:tiny", r"--model my_tyni:tiny: 'my_tyni' is neither in .* nor on the import path \(PYTHONPATH\)"),
        ("my_broken:tiny", "my_broken cannot be imported: RuntimeError: half done"),
        ("my_tiny:tinny", r"my_tiny\.py has no tinny; did you mean 'tiny'"),
        ("my_tiny.py:tiny", "'my_tiny.py' is neither in .*; a module is named without .py: my_tiny"),
        ("my_tiny:lazy", "lazy layers are not taken: give them their numbers of channels"),
        ("my_tiny:ends", r"ends\(.*\) fails: SystemExit: 3"),
        ("my_end:tiny", "my_end cannot be imported: SystemExit: 5"),
        ("my/tiny:tiny", "write package.module:function, e.g. my_networks:tiny for tiny in my_networks.py"),
        ("my_tiny:", "write package.module:function"),
        ("my_tiny:number", "number is no function but int"),
        ("my_tiny:fewer", r"fewer\(num_classes\) must take \(backbone, num_classes, in_channels\), which are given by"),
        ("my_tiny:raises", r"raises\(backbone='', num_classes=7, in_channels=3\) fails: KeyError: 'no such thing'"),
        ("my_tiny:text", "it must return a torch.nn.Module, and returns str"),
        ("my_tiny:mapping", "must return the logits as one tensor, or an Output .* dict with the keys 'out', 'aux'"),
        ("my_tiny:pair", "must return the logits as one tensor, or an Output .* returns tuple of 2 items"),
        ("my_tiny:flat", r"logits must be float \[B, 7, h, w\].* it is torch.float32 \[2, 7\]"),
        ("my_tiny:classes", r"logits must be float \[B, 7, h, w\].* it is torch.int64 \[2, 1, 32, 40\]"),
        ("my_tiny:wide", r"a channel for each of 7 classes; for images .* it is torch.float32 \[2, 14, 32, 40\]"),
        ("my_tiny:no_feat", r"feat must be float \[B, C, h, w\]; for images \[2, 3, 128, 160\] it is NoneType"),
        ("my_tiny:bad_aux", r"aux\[0\] must be float \[B, 7, h, w\].* it is torch.float32 \[2, 8, 32, 40\]"),
        ("my_tiny:list_aux", "Output.aux must be a tuple of maps, not Tensor"),
    ],
)
def test_networks_that_cannot_be_used_are_explained_in_one_line(arch, message, folder):
    with pytest.raises(UserError, match=message) as raised:
        build_model(arch, "", 7)
    assert "\n" not in str(raised.value)


def test_a_network_without_a_label_plane_is_refused_as_a_teacher(folder):
    with pytest.raises(UserError, match=r"fails on images \[2, 4, 128, 160\].*in_channels=4"):
        train_teacher.main([*TINY, "--model", "my_tiny:rgb_only", "--save-dir", "teacher"])
    assert not Path("teacher").exists()


@pytest.mark.parametrize("name", [name for name in LOSSES if name not in ("kd", "cwd", "dist", "adv")])
def test_feature_losses_are_refused_for_networks_with_logits_alone(name, folder):
    message = (
        rf"--kd {name}=1: {name} reads features \(feat\) or auxiliary logits, but the network of the student gives"
    )
    with pytest.raises(UserError, match=message):
        build_kd(f"{name}=1", None, 16, 7)
    with pytest.raises(UserError, match=r"but the network of the teacher gives logits alone: use kd, cwd, dist, adv"):
        build_kd(f"{name}=1", 16, None, 7)


def test_a_refused_loss_stops_before_training(folder):
    teacher = write_own_checkpoint(folder / "teacher.pth", "my_tiny:tiny")
    flags = ["--model", "my_tiny:tiny", "--teacher-pretrained", teacher, "--save-dir", "student"]
    with pytest.raises(UserError, match=r"fitnet reads .* of the student and of the teacher gives logits alone"):
        train_student.main([*TINY, *flags, "--kd", "kd=1,fitnet=1"])
    with pytest.raises(UserError, match=r"--consistency at=1: at reads features .* but the network gives logits alone"):
        train_teacher.main([*TINY, "--model", "my_tiny:tiny", "--consistency", "at=1", "--save-dir", "student"])
    assert not Path("student").exists()


def test_own_losses_declare_that_they_read_logits_alone(folder):
    build_kd("my_own_losses:Logits=1,adv=1,dist=1", None, None, 7)
    for name in ("Any", "Aux"):
        with pytest.raises(UserError, match=f"my_own_losses:{name} reads .* says so by reads_feat = False"):
            build_kd(f"my_own_losses:{name}=1", None, None, 7)
    build_kd("my_own_losses:Aux=1", 8, 8, 7)


def test_reading_a_file_imports_nothing(folder):
    path = write_checkpoint_without_weights(folder / "evil.pth", "my_evil:net")
    message = r"evil\.pth holds a network from outside this project: give --model my_evil:net \("
    Image.new("RGB", (40, 40)).save("photo.png")
    with pytest.raises(UserError, match=message):
        from_checkpoint(path)
    with pytest.raises(UserError, match=message):
        evaluation.main([path, "--device", "cpu"])
    with pytest.raises(UserError, match=message):
        predict.main(["photo.png", "--pretrained", path, "--device", "cpu"])
    with pytest.raises(UserError, match=r"give --teacher-model my_evil:net"):
        train_student.main([*TINY, "--teacher-pretrained", path, "--save-dir", "student"])
    with pytest.raises(UserError, match=r"give --model my_evil:net|is another network"):
        train_student.main([*TINY, "--kd", "none", "--pretrained", path, "--save-dir", "student"])
    own_flags = ["--model", "my_tiny:tiny"]
    with pytest.raises(UserError, match=r"is another network: my_evil:net, here my_tiny:tiny"):
        train_student.main([*TINY, *own_flags, "--kd", "none", "--pretrained", path, "--save-dir", "student"])
    with pytest.raises(UserError, match=r"--model my_tiny:tiny: .* holds another network: give --model my_evil:net"):
        from_checkpoint(path, model="my_tiny:tiny")
    assert "my_evil" not in sys.modules
    assert not Path("imported").exists()
    with pytest.raises(UserError, match=r"--model my_evil:net: it must return a torch.nn.Module"):
        from_checkpoint(path, model="my_evil:net")
    assert Path("imported").exists()  # so the module can be found


@pytest.mark.parametrize("arch", ["os:system\nrm", "os:", ":", "../evil:net", 5, ["a:b"]])
def test_a_file_that_names_no_function_is_damaged(arch, folder):
    with pytest.raises(UserError, match=r"is damaged: its network is|does not say which network") as raised:
        from_checkpoint(write_checkpoint_without_weights(folder / "net.pth", arch))
    assert "\n" not in str(raised.value)


def test_a_model_flag_for_a_network_of_this_project_is_refused(folder):
    from tests.networks import write_checkpoint

    path = write_checkpoint(folder / "net.pth")
    with pytest.raises(UserError, match=r"--model my_tiny:tiny: .* holds fcn, which this project builds itself: leave"):
        evaluation.main([path, "--model", "my_tiny:tiny", "--device", "cpu"])
    assert from_checkpoint(path, model="fcn").card.num_classes == 7


def test_a_teacher_starts_from_a_network_of_three_channels(folder):
    path = write_own_checkpoint(folder / "plain.pth", "my_tiny:tiny")
    own_flags = ["--model", "my_tiny:tiny", "--max-iterations", "1", "--lr", "0", "--skip-val"]
    train_teacher.main([*TINY, *own_flags, "--pretrained", path, "--save-dir", "teacher"])
    plain = checkpoint.read(path)["model"]["network.stem.0.weight"]
    trained = checkpoint.read("teacher/last.pth")["model"]["network.stem.0.weight"]
    assert trained.shape == (8, 4, 3, 3)
    assert torch.equal(trained[:, :3], plain)


def test_pretrained_base_is_refused_for_an_own_network(folder):
    flags = ["--model", "my_tiny:tiny", "--kd", "none", "--pretrained-base", "x.pth", "--save-dir", "student"]
    with pytest.raises(
        UserError, match=r"the function of --model my_tiny:tiny loads such weights itself: leave it out"
    ):
        train_student.main([*TINY, *flags])


def test_the_grid_takes_an_own_network_beside_one_of_this_project(folder):
    from scripts.study import visualize
    from tests.networks import write_checkpoint

    own_path = write_own_checkpoint(folder / "own/last.pth", "my_tiny:featured")
    files = ["--student", write_checkpoint(folder / "plain/last.pth"), own_path, "--dataset", "toy", "--count", "1"]
    with pytest.raises(UserError, match=r"own/last\.pth holds .* give --model my_tiny:featured"):
        visualize.main(files)
    visualize.main([*files, "--model", "my_tiny:featured", "--output", "grid.png"])
    assert Image.open("grid.png").width > 1000
