"""``--kd package.module:Class=weight``: a loss from a file outside the project."""

import sys
from pathlib import Path

import pytest

import train_student
from losses import build_kd, parse_losses
from tests.conftest import TINY
from tests.test_engine import read_records
from tests.test_feature_losses import make_outputs
from utils import checkpoint
from utils.errors import UserError

PAGE = Path(__file__).resolve().parent.parent / "docs/losses.md"
SECTION = PAGE.read_text(encoding="utf-8").partition("## Add your own loss")[2].partition("\n## ")[0]
SOURCE = SECTION.partition("```python\n")[2].partition("```")[0]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Make a folder with a user's own modules the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    modules_before = set(sys.modules)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/huber.py").write_text(SOURCE)
    (tmp_path / "my_broken.py").write_text("import torch\nraise RuntimeError('half done')\n")
    (tmp_path / "my_needy.py").write_text("import not_installed_anywhere\n")
    (tmp_path / "my_syntax.py").write_text("def f(:\n")
    (tmp_path / "my_shapes.py").write_text(
        "from torch import nn\n"
        "class Plain:\n    pass\n"
        "class NoWidths(nn.Module):\n    pass\n"
        "class NoForward(nn.Module):\n"
        "    def __init__(self, student_channels, teacher_channels, num_classes):\n        super().__init__()\n"
        "class NoLabel(NoForward):\n"
        "    def forward(self, student, teacher):\n        return student.logits.sum()\n"
        "class Map(NoLabel):\n"
        "    def forward(self, student, teacher, label):\n        return student.logits\n"
        "class Number(NoLabel):\n"
        "    def forward(self, student, teacher, label):\n        return 1.5\n"
        "class Parts(NoLabel):\n    part_weights = None\n"
        "    def forward(self, student, teacher, label):\n        return {'a': student.logits.sum()}\n"
        "class loss(Number):\n    pass\n"
        "class pop(Number):\n    pass\n"
        "class dsd_psd(Number):\n    pass\n"
        "class kd_weighted(Number):\n    pass\n"
        "class Wide(Number):\n"
        "    def __init__(self, student_channels, teacher_channels, num_classes, width=3):\n"
        "        super().__init__(student_channels, teacher_channels, num_classes)\n"
        "        self.layer = nn.Conv2d(3, width, 1)\n"
    )
    yield tmp_path
    for name in set(sys.modules) - modules_before:
        if name.startswith(("my_", "mine")):
            del sys.modules[name]


def test_the_example_of_the_docs_page_trains_and_is_saved(folder):
    assert len(SECTION.splitlines()) < 30
    train_student.main([*TINY, "--kd", "none", "--max-iterations", "2", "--skip-val", "--save-dir", "teacher"])
    flags = ["--kd", "mine.huber:Huber=2:delta=0.5,kd=1", "--teacher-pretrained", "teacher/last.pth"]
    train_student.main([*TINY, *flags, "--max-iterations", "2", "--skip-val", "--save-dir", "student"])
    line = read_records(folder / "student", "train")[-1]
    assert line["Huber"] > 0
    assert line["Huber_weighted"] == pytest.approx(2 * line["Huber"])
    assert "kd.losses.Huber.align.weight" in checkpoint.read("student/last.pth")["losses"]


def test_options_and_several_losses_are_parsed(folder):
    parsed = parse_losses("mine.huber:Huber=2:delta=0.5, kd=1:tau=4")
    assert parsed == {"mine.huber:Huber": (2.0, {"delta": 0.5}), "kd": (1.0, {"tau": 4.0})}
    _, terms = build_kd("mine.huber:Huber=2:delta=0.5, kd=1", 6, 16, 5)(*make_outputs())
    assert terms.keys() == {"Huber", "kd"}


@pytest.mark.parametrize(
    ("kd", "message"),
    [
        ("mine.hubert:Huber=1", "'mine.hubert' is neither in .* nor on the import path"),
        ("yours.huber:Huber=1", "'yours' is neither in"),
        ("mine.huber:Hubert=1", r"huber\.py has no Hubert; did you mean 'Huber'"),
        ("mine.huber:Huber=1:dleta=2", "has no option 'dleta'; did you mean 'delta'"),
        ("mine.huber:Huber", "write name=weight"),
        ("mine.huber:Huber=much", "write name=weight"),
        ("mine.huber:Huber=1,mine.huber:Huber=2", "Huber is given twice"),
        ("mine/huber.py:Huber=1", "write package.module:Class"),
        ("..mine.huber:Huber=1", "write package.module:Class"),
        ("my_broken:Loss=1", "my_broken cannot be imported: RuntimeError: half done"),
        (
            "my_needy:Loss=1",
            "my_needy cannot be imported: ModuleNotFoundError: No module named 'not_installed_anywhere'",
        ),
        ("my_syntax:Loss=1", "my_syntax cannot be imported: SyntaxError"),
        ("my_shapes:Plain=1", "Plain is no torch.nn.Module"),
        ("my_shapes:nn=1", "nn is no torch.nn.Module"),
        ("my_shapes:NoWidths=1", r"__init__\(.* must take \(self, student_channels, teacher_channels, num_classes\)"),
        ("my_shapes:NoLabel=1", r"forward\(self, student, teacher\) must take \(self, student, teacher, label\)"),
        ("my_shapes:NoForward=1", r"forward\(.* must take \(self, student, teacher, label\)"),
        ("cdw:tau=3", "'cdw' is neither in"),
        ("mine:Huber=1", "mine has no Huber"),
        ("sys:Huber=1", "sys has no Huber"),
        ("my_shapes:Wide=1:width=2", r"my_shapes:Wide cannot be built: TypeError: .* \(options are floats\)"),
        ("my_shapes:loss=1,kd=1", "loss is the name of something else"),
        ("my_shapes:pop=1", "pop is the name of something else"),
        ("my_shapes:dsd_psd=1,dsd=1", "dsd_psd is the name of something else"),
        ("my_shapes:kd_weighted=1,kd=1", "kd_weighted is the name of something else"),
        ("kd=1:tau=4:tau=2", "the option tau of kd is given twice"),
        ("af_dcd=1:groups=2.5", r"groups=2\.5: give a positive whole number"),
        ("af_dcd=1:groups=5", r"groups=5 does not divide the teacher's 16 channels"),
        ("mgd=1:ratio=1", "--kd mgd=1:ratio=1: mgd: ratio=1: give a share"),
        ("dsd=1:psd=nan", "an option of dsd is no finite number"),
        ("dsd=1:psd=inf", "an option of dsd is no finite number"),
        ("dsd=1:psd=-1", "an option of dsd is negative"),
        (
            "cirkd2=1:fitnet=0:pixel=0:memory_pixel=0:memory_region=0:channel=0:memory_channel=0:channel_mse=0",
            "weight 0",
        ),
        ("cirkd2=1:channel_size=1e13", "ChannelTerms: a queue of .* takes .* GiB"),
    ],
)
def test_losses_that_cannot_be_used_are_explained(folder, kd, message):
    with pytest.raises(UserError, match=message) as raised:
        build_kd(kd, 6, 16, 5)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(("name", "description"), [("Map", r"shape \(2, 5, 6, 7\)"), ("Number", "1.5")])
def test_a_loss_that_returns_no_single_number_is_refused(folder, name, description):
    losses = build_kd(f"my_shapes:{name}=1", 6, 16, 5)
    with pytest.raises(UserError, match=f"the loss {name} returned no single number but .*{description}"):
        losses(*make_outputs())


def test_loss_parts_without_weights_are_refused(folder):
    losses = build_kd("my_shapes:Parts=1", 6, 16, 5)
    assert losses.apply_weights({}) == {}
    with pytest.raises(UserError, match="the loss Parts returned a: part_weights must have all"):
        losses(*make_outputs())


def test_a_loss_may_have_its_own_attribute_called_weights(folder):
    (folder / "my_weights.py").write_text(
        "import torch\nfrom torch import nn\n"
        "class Weights(nn.Module):\n"
        "    def __init__(self, student_channels, teacher_channels, num_classes):\n"
        "        super().__init__()\n        self.weights = torch.ones(num_classes)\n"
        "    def forward(self, student, teacher, label):\n        return (student.logits * 0).sum()\n"
    )
    losses = build_kd("my_weights:Weights=1", 6, 16, 5)
    total, terms = losses(*make_outputs())
    assert losses.apply_weights(terms).keys() == {"Weights_weighted"}
    assert total.item() == 0
