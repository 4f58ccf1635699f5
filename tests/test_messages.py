"""Messages for users that no other test triggers: what was wrong, where, and no traceback."""

import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import timm
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file

import eval as evaluation
from datasets import DATASETS, cityscapes, get_dataset_spec
from datasets.base import SegmentationDataset
from datasets.files import read_list
from datasets.matlab import read_mat_field
from engine.runtime import _choose_device
from engine.settings import TrainConfig
from models import from_checkpoint
from models.backbones.context_path import ContextPath
from models.checkpoints import imagenet
from scripts.data import archives, check_data, describe_folder, folder_layout, label_hints, prepare, shrink_dataset
from scripts.deploy import download_checkpoints, export_onnx, export_safetensors
from scripts.deploy.manifest import Entry, read_manifest
from scripts.study import experiment_figure, models_table, results_table
from scripts.study.analysis import gained_lost, report, runs, style
from scripts.study.analysis.output import save_text
from scripts.study.benchmarks import steps
from tests.conftest import BACKBONE
from tests.networks import write_checkpoint
from tests.trees import draw, picture
from utils import checkpoint
from utils.errors import UserError
from utils.jpeg import decode_jpeg
from utils.options import parse_flags
from utils.pictures import read_size

KEPT = archives.Archive("a.tar", "", r"(JPEGImages/.+)")


def garbage(folder: Path, name: str = "x.png", content: bytes = b"garbage") -> Path:
    (folder / name).write_bytes(content)
    return folder / name


def robustness(folder: Path) -> None:
    garbage(folder, "robustness.json", b"[]")
    report.draw_robustness_of_teachers({"a": [SimpleNamespace(folder=folder, name="a")]}, folder)


def way(loss):
    """A way of training whose loss is always the same."""
    return steps.Way(lambda _: torch.tensor(loss), torch.nn.Identity())


def unwritable(folder: Path) -> Path:
    """A place below a file."""
    return garbage(folder, "file") / "below"


def archive(folder: Path) -> Path:
    garbage(folder, "a.jpg")
    (folder / "zip/JPEGImages").mkdir(parents=True)
    garbage(folder / "zip/JPEGImages", "a.jpg")
    return Path(shutil.make_archive(str(folder / "a"), "zip", folder / "zip"))


def card(folder: Path, text: str = "[1]") -> None:
    save_file({"a": torch.zeros(1)}, folder / "a.safetensors", {"card": text})
    from_checkpoint(folder / "a.safetensors")


ENTRY = Entry("a", "http://x/a.pth", "fcn", "resnet18", "voc", None, "", "sha256:0")
MESSAGES = {
    "no images": (lambda t: SegmentationDataset(replace(DATASETS["toy"], pairs=lambda *_: []), t, "val"), "no images"),
    "header": (lambda t: read_size(garbage(t)), r"x\.png cannot be read"),
    "split": (lambda t: ((t / "leftImg8bit").mkdir(), cityscapes.list_pairs(t, "val")), "no folder leftImg8bit/val"),
    "no list": (lambda t: read_list(t / "x.txt"), r"list file not found: .*x\.txt"),
    "list is a folder": (lambda t: read_list(t), "cannot be read: Is a directory"),
    "list is no text": (lambda t: read_list(garbage(t, "x.txt", b"\xff\xfe\x00")), r"x\.txt is no text file"),
    "jpeg": (lambda t: decode_jpeg(t / "x.jpg", b"", True), r"x\.jpg cannot be read"),
    "no matlab file": (lambda t: read_mat_field(t / "x.mat", "S"), r"file not found: .*x\.mat"),
    "matlab file": (lambda t: read_mat_field(garbage(t, "x.mat"), "S"), r"x\.mat cannot be read as a MATLAB file with"),
    "strides": (lambda t: ContextPath(SimpleNamespace(strides=(4, 8, 16))), "at strides 8, 16 and 32.*4, 8, 16"),
    "card": (card, "its card is no JSON object"),
    "deep card": (lambda t: card(t, "[" * 100_000), "is damaged or no safetensors file: maximum recursion"),
    "no data set": (lambda t: check_data.main([]), "--dataset NAME is missing"),
    "no folder": (lambda t: describe_folder.main(["--data", "none"]), "--data none: no such folder"),
    "colours": (lambda t: label_hints.count_colors(garbage(t)), r"x\.png cannot be read"),
    "no pictures": (lambda t: folder_layout.find_matches(t), "there are none"),
    "no archive": (lambda t: archives.extract(t, t / "root", KEPT), "cannot be unpacked: .*Is a directory"),
    "nothing in it": (lambda t: archives.extract(archive(t), t, KEPT._replace(pattern="x")),
                      "holds no file named like x"),
    "published": (lambda t: (garbage(t, "a.pth"), download_checkpoints.verify([ENTRY], t)), "1 files in .* are not"),
    "export what": (lambda t: export_safetensors.main([]), "--pretrained FILE is missing"),
    "prediction": (lambda t: gained_lost._read_prediction(garbage(t), (1, 1)), r"prediction .*x\.png cannot be read"),
    "its size": (lambda t: (Image.new("L", (2, 1)).save(t / "x.png"),
                            gained_lost._read_prediction(t / "x.png", (2, 1))),
                 r"has shape \(1, 2\), its label \(2, 1\)"),
    "robustness": (robustness, r"robustness\.json is not what teacher_robustness\.py writes"),
    "no settings": (lambda t: runs.read_run(garbage(t, "config.yaml", b"3").parent, "a"), "holds no settings"),
    "picture": (lambda t: save_text("", unwritable(t) / "a"), "cannot write .*below/a: Not a directory"),
    "matlab label": (lambda t: shrink_dataset.shrink(torch.zeros(2, 2).long().numpy(), 2, Image.Resampling.NEAREST,
                     t / "a.mat"), r"a\.mat would be no picture: scripts/data/prepare\.py makes PNG"),
    "kind of picture": (lambda t: style.save_figure(style.plt.figure(), t / "a.xyz"), "'xyz' .choices: .*png"),
    "no runs": (lambda t: experiment_figure.main(["toy", "--records", str(t)]), "holds no scored runs of toy"),
    "network": (lambda t: models_table.main(["--only", "x"]), "--only x: no such network"),
    "no lines": (
        lambda t: get_dataset_spec("folder", str(garbage(t, "dataset.yaml", b"3").parent)),
        "'key: value' lines",
    ),
    "too large": (lambda t: parse_flags(TrainConfig, "", ["--label-smoothing", "2"]), r"2\.0 is too large: at most 1"),
    "no probability": (lambda t: parse_flags(TrainConfig, "", ["--dropout", "1.5"]), r"--dropout: 1\.5 is too large"),
    "entry twice": (lambda t: read_manifest(garbage(t, "m.yaml", yaml.safe_dump([ENTRY._asdict()] * 2).encode())),
                    r"m\.yaml: the name 'a' is there twice"),
    "losses": (lambda t: steps.compare_steps("x", 2, way(1.0), way(3.0), way(2.0).loss, SimpleNamespace(amp="none"),
               SimpleNamespace(device=torch.device("cpu"), compile=False)), r"x: our loss is 1\.0, the plain one 2\.0"),
    "result": (lambda t: results_table.read_score_file(garbage(t, "e.json"), ()), r"e\.json is no result of eval\.py"),
}  # fmt: skip


@pytest.mark.parametrize("what", MESSAGES)
def test_a_message(what, tmp_path):
    call, message = MESSAGES[what]
    with pytest.raises(UserError, match=message) as caught:
        call(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("messages") / "last.pth")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--draws", "2"], "--draws: .* sees the image only"),
        (["--classes", "3"], r"--classes 3: .*last\.pth has 7"),
        (["--dataset", "camvid"], r"last\.pth has 7 classes, camvid 11"),
        (["--submission"], "--submission needs --save-pred DIR"),
    ],
)
def test_an_evaluation_that_makes_no_sense(student, flags, message):
    with pytest.raises(UserError, match=message):
        evaluation.main(["--pretrained", student, "--device", "cpu", *flags])


def test_an_export_that_fails(student, tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime")

    def fail(*_):
        raise torch.onnx.OnnxExporterError("an operator\nis not known")

    monkeypatch.setattr(export_onnx, "export_network", fail)
    flags = ["--pretrained", student, "--output", str(tmp_path / "x.onnx"), "--size", "64", "64"]
    with pytest.raises(UserError, match=rf"fcn on {BACKBONE} cannot be written as ONNX: an operator$"):
        export_onnx.main(flags)
    with pytest.raises(UserError, match="onnxruntime fails on the file"):
        export_onnx.compare_with_network(garbage(tmp_path), torch.nn.Identity(), {})


def test_a_download_of_weights_that_fails(monkeypatch):
    def fail(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr(timm, "create_model", fail)
    with pytest.raises(UserError, match="--pretrained-base timm: resnet18 could not be downloaded: no network"):
        imagenet._download_timm_weights(SimpleNamespace(config={"backbone": "resnet18"}))


def test_an_old_torch_reads_no_pickles(student, monkeypatch):
    monkeypatch.setattr(torch, "__version__", torch.torch_version.TorchVersion("2.9.1+cpu"))
    with pytest.raises(UserError, match=r"last\.pth: torch 2\.9\.1\+cpu may run what is hidden in it"):
        from_checkpoint(student)


def test_gpus_that_are_not_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="torch finds no CUDA GPU"):
        _choose_device("cuda", False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(UserError, match="2 processes on this host but only 1 GPUs"):
        _choose_device("cuda", False)
    assert _choose_device("cuda", True).index == 0


@pytest.mark.parametrize(("gpus", "index"), [(1, 0), (4, 2)])
def test_srun_without_torchrun_gives_each_process_its_gpu(monkeypatch, gpus, index):
    """SLURM numbers the processes of a host. It shows each all GPUs, or with --gpus-per-task 1 its own one."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    for name, value in {"RANK": "2", "WORLD_SIZE": "4", "SLURM_LOCALID": "2"}.items():
        monkeypatch.setenv(name, value)
    assert _choose_device("cuda", False).index == index
    monkeypatch.delenv("RANK")  # one process that salloc or sbatch started
    assert _choose_device("cuda", False).index == 0


def test_a_preparation_without_its_folders(tmp_path):
    with pytest.raises(UserError, match="--data ROOT is missing: the folder to make"):
        prepare.main(["camvid"])
    with pytest.raises(UserError, match="--archives none: no such file or folder"):
        prepare.main(["camvid", "--data", str(tmp_path), "--archives", "none"])


def test_half_precision_that_does_not_hold_a_weight(student, tmp_path):
    large = {**checkpoint.read(student)}
    large["model"] = {**large["model"], "main.classifier.bias": torch.full((7,), 1e6)}
    checkpoint.save(large, tmp_path / "large.pth")
    flags = ("--pretrained", str(tmp_path / "large.pth"), "--export", str(tmp_path / "x.safetensors"), "--half")
    with pytest.raises(UserError, match=r"--half: main\.classifier\.bias has values that half precision cannot hold"):
        export_safetensors.main(flags)


def test_an_export_takes_no_place_of_its_source(student, tmp_path, monkeypatch):
    file = str(tmp_path / "a.safetensors")
    export_safetensors.main(["--pretrained", student, "--export", file])
    with pytest.raises(
        UserError, match=r"a\.safetensors is an input and would be overwritten: choose another --export"
    ):
        export_safetensors.main(["--pretrained", file, "--export", file, "--half"])
    with monkeypatch.context() as patch:
        patch.setenv("HOME", str(tmp_path))
        with pytest.raises(UserError, match=r"a\.safetensors is an input and would be overwritten"):
            export_safetensors.main(["--pretrained", "~/a.safetensors", "--export", "~/a.safetensors", "--half"])
    folder = tmp_path / "of_smp"
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        (folder / name).write_text("{}")
    with pytest.raises(UserError, match=r"model\.safetensors is an input and would be overwritten"):
        export_safetensors.main(["--pretrained", str(folder), "--export", str(folder / "model.safetensors")])


def test_tied_weights_are_exported(tmp_path):
    weight = torch.randn(3, 4)
    file = tmp_path / "tied.safetensors"
    export_safetensors.write_safetensors(file, {"encoder.weight": weight, "decoder.weight": weight}, {})
    content = load_file(file)
    assert torch.equal(content["encoder.weight"], weight)
    assert torch.equal(content["decoder.weight"], weight)


def test_other_folders_than_the_source(tmp_path, monkeypatch):
    pair = (tmp_path / "a.png", None)
    monkeypatch.setattr(shrink_dataset, "list_all_pairs", lambda *_: [pair])
    (tmp_path / "source").mkdir()
    flags = ("--dataset", "toy", "--source", str(tmp_path / "source"), "--data", str(tmp_path / "made"))
    with pytest.raises(UserError, match=r"a\.png lies outside --source"):
        shrink_dataset.main(flags)


def test_too_few_descriptors_are_no_problem_of_the_data(tmp_path, monkeypatch):
    """A split that cannot be read is a problem of the data; a machine that allows too few open files is none."""
    picture(tmp_path / "images/a.png")
    Image.fromarray(draw(range(2), 0)).save(tmp_path / "a.png")
    (tmp_path / "dataset.yaml").write_text("names: [a, b]\nsplits:\n  train: {images: images, labels: .}\n")
    monkeypatch.setattr("utils.descriptors.resource.getrlimit", lambda _: (40, 40))
    with pytest.raises(UserError, match=r"--workers 2 need .* open files, this process may have 40"):
        check_data.main(["--dataset", "folder", "--data", str(tmp_path), "--workers", "2"])
