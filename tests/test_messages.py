"""Error messages that no other test triggers. Each says in one line what is wrong and where."""

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
from tests.trees import draw_label, write_picture
from utils import checkpoint
from utils.errors import UserError
from utils.jpeg import decode_jpeg
from utils.options import parse_flags
from utils.pictures import read_size

ARCHIVE = archives.Archive("a.tar", "", r"(JPEGImages/.+)")


def write_garbage(folder: Path, name: str = "x.png", content: bytes = b"garbage") -> Path:
    """Write a file that its reader cannot use. Return its path."""
    (folder / name).write_bytes(content)
    return folder / name


def draw_bad_robustness(folder: Path) -> None:
    """Draw the figure of a results file that holds an empty list."""
    write_garbage(folder, "robustness.json", b"[]")
    report.draw_robustness_of_teachers({"a": [SimpleNamespace(folder=folder, name="a")]}, folder)


def make_way(loss):
    """Make a way of training whose loss is always ``loss``."""
    return steps.Way(lambda _: torch.tensor(loss), torch.nn.Identity())


def make_unwritable_path(folder: Path) -> Path:
    """Return a path below a file, where nothing can be written."""
    return write_garbage(folder, "file") / "below"


def make_archive(folder: Path) -> Path:
    """Make a zip file with one JPEG file that cannot be read."""
    write_garbage(folder, "a.jpg")
    (folder / "zip/JPEGImages").mkdir(parents=True)
    write_garbage(folder / "zip/JPEGImages", "a.jpg")
    return Path(shutil.make_archive(str(folder / "a"), "zip", folder / "zip"))


def load_card(folder: Path, text: str = "[1]") -> None:
    """Load a safetensors file with this card."""
    save_file({"a": torch.zeros(1)}, folder / "a.safetensors", {"card": text})
    from_checkpoint(folder / "a.safetensors")


def list_pairs_without_split(folder: Path) -> None:
    """List the pairs of a Cityscapes folder that lacks the split."""
    (folder / "leftImg8bit").mkdir()
    cityscapes.list_pairs(folder, "val")


def verify_other_weights(folder: Path) -> None:
    """Verify a weight file that is not the published one."""
    write_garbage(folder, "a.pth")
    download_checkpoints.verify([ENTRY], folder)


def read_prediction_of_other_size(folder: Path) -> None:
    """Read a prediction whose height and width are swapped."""
    Image.new("L", (2, 1)).save(folder / "x.png")
    gained_lost._read_prediction(folder / "x.png", (2, 1))


def shrink_matlab_label(folder: Path) -> None:
    """Shrink a label whose file is to be a MATLAB file."""
    label = torch.zeros(2, 2).long().numpy()
    shrink_dataset.shrink(label, 2, Image.Resampling.NEAREST, folder / "a.mat")


def read_repeated_entry(folder: Path) -> None:
    """Read a manifest that has the same entry twice."""
    manifest = yaml.safe_dump([ENTRY._asdict()] * 2)
    read_manifest(write_garbage(folder, "m.yaml", manifest.encode()))


def compare_steps_of_unequal_loss(folder: Path) -> None:
    """Compare the speed of two ways of training whose losses differ."""
    settings = SimpleNamespace(amp="none")
    runtime = SimpleNamespace(device=torch.device("cpu"), compile=False)
    steps.compare_steps("x", 2, make_way(1.0), make_way(3.0), make_way(2.0).loss, settings, runtime)


def read_empty_split(folder: Path) -> None:
    """Read a split of a data set without images."""
    spec = replace(DATASETS["toy"], pairs=lambda *_: [])
    SegmentationDataset(spec, folder, "val")


ENTRY = Entry("a", "http://x/a.pth", "fcn", "resnet18", "voc", None, "", "sha256:0")
# case -> a function of a folder that raises the error, and a pattern of its message
MESSAGES = {
    "no images": (read_empty_split, "no images"),
    "picture header": (lambda folder: read_size(write_garbage(folder)), r"x\.png cannot be read"),
    "no split folder": (list_pairs_without_split, "no folder leftImg8bit/val"),
    "no list": (lambda folder: read_list(folder / "x.txt"), r"list file not found: .*x\.txt"),
    "list is a folder": (lambda folder: read_list(folder), "cannot be read: Is a directory"),
    "list is no text": (
        lambda folder: read_list(write_garbage(folder, "x.txt", b"\xff\xfe\x00")),
        r"x\.txt is no text file",
    ),
    "damaged jpeg": (lambda folder: decode_jpeg(folder / "x.jpg", b"", True), r"x\.jpg cannot be read"),
    "no matlab file": (lambda folder: read_mat_field(folder / "x.mat", "S"), r"file not found: .*x\.mat"),
    "damaged matlab file": (
        lambda folder: read_mat_field(write_garbage(folder, "x.mat"), "S"),
        r"x\.mat cannot be read as a MATLAB file with",
    ),
    "strides": (lambda folder: ContextPath(SimpleNamespace(strides=(4, 8, 16))), "at strides 8, 16 and 32.*4, 8, 16"),
    "card is a list": (load_card, "its card is no JSON object"),
    "deep card": (
        lambda folder: load_card(folder, "[" * 100_000),
        "is damaged or no safetensors file: maximum recursion",
    ),
    "no data set": (lambda folder: check_data.main([]), "--dataset NAME is missing"),
    "no folder": (lambda folder: describe_folder.main(["--data", "none"]), "--data none: no such folder"),
    "colours of a damaged picture": (
        lambda folder: label_hints.count_colors(write_garbage(folder)),
        r"x\.png cannot be read",
    ),
    "no pictures": (lambda folder: folder_layout.find_matches(folder), "there are none"),
    "no archive": (
        lambda folder: archives.extract(folder, folder / "root", ARCHIVE),
        "cannot be unpacked: .*Is a directory",
    ),
    "archive without such files": (
        lambda folder: archives.extract(make_archive(folder), folder, ARCHIVE._replace(pattern="x")),
        "holds no file named like x",
    ),
    "other weights than published": (verify_other_weights, "1 files in .* are not"),
    "no file to export": (lambda folder: export_safetensors.main([]), "--pretrained FILE is missing"),
    "damaged prediction": (
        lambda folder: gained_lost._read_prediction(write_garbage(folder), (1, 1)),
        r"prediction .*x\.png cannot be read",
    ),
    "prediction size": (read_prediction_of_other_size, r"has shape \(1, 2\), its label \(2, 1\)"),
    "robustness": (draw_bad_robustness, r"robustness\.json is not what teacher_robustness\.py writes"),
    "no settings": (
        lambda folder: runs.read_run(write_garbage(folder, "config.yaml", b"3").parent, "a"),
        "holds no settings",
    ),
    "text below a file": (
        lambda folder: save_text("", make_unwritable_path(folder) / "a"),
        "cannot write .*below/a: Not a directory",
    ),
    "matlab label": (shrink_matlab_label, r"a\.mat would be no picture: scripts/data/prepare\.py makes PNG"),
    "kind of picture": (
        lambda folder: style.save_figure(style.plt.figure(), folder / "a.xyz"),
        "'xyz' .choices: .*png",
    ),
    "no runs": (
        lambda folder: experiment_figure.main(["toy", "--records", str(folder)]),
        "holds no scored runs of toy",
    ),
    "unknown network": (lambda folder: models_table.main(["--only", "x"]), "--only x: no such network"),
    "settings without lines": (
        lambda folder: get_dataset_spec("folder", str(write_garbage(folder, "dataset.yaml", b"3").parent)),
        "'key: value' lines",
    ),
    "too large": (
        lambda folder: parse_flags(TrainConfig, "", ["--label-smoothing", "2"]),
        r"2\.0 is too large: at most 1",
    ),
    "probability above 1": (
        lambda folder: parse_flags(TrainConfig, "", ["--dropout", "1.5"]),
        r"--dropout: 1\.5 is too large",
    ),
    "entry twice": (read_repeated_entry, r"m\.yaml: the name 'a' is there twice"),
    "unequal losses": (compare_steps_of_unequal_loss, r"x: our loss is 1\.0, the plain one 2\.0"),
    "no result file": (
        lambda folder: results_table.read_score_file(write_garbage(folder, "e.json"), ()),
        r"e\.json is no result of eval\.py",
    ),
}


@pytest.mark.parametrize("case", MESSAGES)
def test_the_message_is_one_line_and_says_what_is_wrong(case, tmp_path):
    call, message = MESSAGES[case]
    with pytest.raises(UserError, match=message) as caught:
        call(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    """Write the checkpoint of a student and return its path."""
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
def test_evaluation_flags_that_do_not_fit_the_checkpoint_are_refused(student, flags, message):
    with pytest.raises(UserError, match=message):
        evaluation.main(["--pretrained", student, "--device", "cpu", *flags])


def test_a_failed_export_has_a_message(student, tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime")

    def fail(*_):
        raise torch.onnx.OnnxExporterError("an operator\nis not known")

    monkeypatch.setattr(export_onnx, "export_network", fail)
    flags = ["--pretrained", student, "--output", str(tmp_path / "x.onnx"), "--size", "64", "64"]
    with pytest.raises(UserError, match=rf"fcn on {BACKBONE} cannot be written as ONNX: an operator$"):
        export_onnx.main(flags)
    with pytest.raises(UserError, match="onnxruntime fails on the file"):
        export_onnx.compare_with_network(write_garbage(tmp_path), torch.nn.Identity(), {})


def test_an_image_too_large_for_pytorch_is_not_blamed_on_onnxruntime(student, tmp_path):
    pytest.importorskip("onnxruntime")
    export_onnx.main(["--pretrained", student, "--output", str(tmp_path / "x.onnx"), "--size", "64", "64"])

    def fail(_):
        raise MemoryError

    with pytest.raises(UserError, match=r"^a large picture: PyTorch is out of memory: take a smaller --image"):
        export_onnx.compare_with_network(tmp_path / "x.onnx", fail, {"a large picture": torch.zeros(1, 3, 64, 64)})


def test_a_failed_download_of_weights_has_a_message(monkeypatch):
    def fail(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr(timm, "create_model", fail)
    with pytest.raises(UserError, match="--pretrained-base timm: resnet18 could not be downloaded: no network"):
        imagenet._download_timm_weights(SimpleNamespace(config={"backbone": "resnet18"}))


def test_an_old_torch_reads_no_pickles(student, monkeypatch):
    monkeypatch.setattr(torch, "__version__", torch.torch_version.TorchVersion("2.9.1+cpu"))
    with pytest.raises(UserError, match=r"last\.pth: torch 2\.9\.1\+cpu may run what is hidden in it"):
        from_checkpoint(student)


def test_missing_gpus_have_a_message(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="torch finds no CUDA GPU"):
        _choose_device("cuda", "auto")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("LOCAL_RANK", "1")
    few = r"there are 2 processes on this host, but 1 GPUs: start 1 \(NGPUS=1\)"
    with pytest.raises(UserError, match=f"{few}, or let them share with --backend gloo$"):
        _choose_device("cuda", "auto")
    with pytest.raises(UserError, match=f"{few}$"):
        _choose_device("cuda", None)  # a script without the flag --backend
    assert _choose_device("cuda", "gloo").index == 0


@pytest.mark.parametrize(("gpus", "index"), [(1, 0), (4, 2)])
def test_srun_without_torchrun_gives_each_rank_its_gpu(monkeypatch, gpus, index):
    """SLURM numbers the ranks of a host. A rank sees all GPUs, or only its own with --gpus-per-task 1."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    for name, value in {"RANK": "2", "WORLD_SIZE": "4", "SLURM_LOCALID": "2"}.items():
        monkeypatch.setenv(name, value)
    assert _choose_device("cuda", False).index == index
    monkeypatch.delenv("RANK")  # a single process that salloc or sbatch started
    assert _choose_device("cuda", False).index == 0


def test_a_preparation_without_its_folders_is_refused(tmp_path):
    with pytest.raises(UserError, match="--data ROOT is missing: the folder to make"):
        prepare.main(["camvid"])
    with pytest.raises(UserError, match="--archives none: no such file or folder"):
        prepare.main(["camvid", "--data", str(tmp_path), "--archives", "none"])


def test_a_weight_too_large_for_half_precision_is_refused(student, tmp_path):
    large = {**checkpoint.read(student)}
    large["model"] = {**large["model"], "main.classifier.bias": torch.full((7,), 1e6)}
    checkpoint.save(large, tmp_path / "large.pth")
    flags = ("--pretrained", str(tmp_path / "large.pth"), "--export", str(tmp_path / "x.safetensors"), "--half")
    with pytest.raises(UserError, match=r"--half: main\.classifier\.bias has values that half precision cannot hold"):
        export_safetensors.main(flags)


def test_an_export_never_overwrites_its_source(student, tmp_path, monkeypatch):
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


def test_images_outside_the_source_folder_are_refused(tmp_path, monkeypatch):
    pair = (tmp_path / "a.png", None)
    monkeypatch.setattr(shrink_dataset, "list_all_pairs", lambda *_: [pair])
    (tmp_path / "source").mkdir()
    flags = ("--dataset", "toy", "--source", str(tmp_path / "source"), "--data", str(tmp_path / "made"))
    with pytest.raises(UserError, match=r"a\.png lies outside --source"):
        shrink_dataset.main(flags)


def test_too_few_open_files_are_not_reported_as_a_problem_of_the_data(tmp_path, monkeypatch):
    """An unreadable split counts as a problem of the data. Too low a limit on open files must end the check instead."""
    write_picture(tmp_path / "images/a.png")
    Image.fromarray(draw_label(range(2), 0)).save(tmp_path / "a.png")
    (tmp_path / "dataset.yaml").write_text("names: [a, b]\nsplits:\n  train: {images: images, labels: .}\n")
    monkeypatch.setattr("utils.descriptors.resource.getrlimit", lambda _: (40, 40))
    with pytest.raises(UserError, match=r"--workers 2 need .* open files, this process may have 40"):
        check_data.main(["--dataset", "folder", "--data", str(tmp_path), "--workers", "2"])
