"""Checkpoint files: no file can run code, exports can be read back, and networks start from saved weights."""

import copy
import json
import os
import pickle
from argparse import Namespace
from contextlib import suppress

import numpy as np
import pytest
import torch
from mmengine.logging import MessageHub
from safetensors import safe_open
from torch import nn

import eval as evaluation
from models import build_model, from_checkpoint
from models.backbones import build_backbone
from models.checkpoints import reading
from models.checkpoints.initialise import initialise
from models.checkpoints.reading import read_weight_file
from scripts.deploy import export_safetensors
from tests.fill_weights import fill_model
from utils import checkpoint
from utils.errors import UserError

K = 7
NETWORK = ("deeplabv3", "mobilenetv2_100", K)
CARD = {
    "format": 1,
    "num_classes": K,
    "class_names": [f"c{i}" for i in range(K)],
    "palette": [[i, i, i] for i in range(K)],
    "dataset": "toy",
    "data": "/home/someone/data",
    "pixels": "imagenet",
    "label_noise": None,
    "config": {"lr": 0.02, "data": "/home/someone/data", "save_dir": "/home/someone/runs"},
    "best_miou": 0.5,
}


@pytest.fixture(scope="module")
def network():
    """Build a network with generated weights."""
    return fill_model(build_model(*NETWORK)).eval()


@pytest.fixture
def own_checkpoint(network, tmp_path):
    """Write a checkpoint of this project and return its path."""
    path = tmp_path / "best.pth"
    checkpoint.save({**CARD, "arch": network.config, "model": network.state_dict()}, path)
    return path


class Payload:
    """An object whose pickle makes the folder ``canary`` when it is loaded."""

    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return os.mkdir, (str(self.canary),)


@pytest.mark.parametrize("wrap", [lambda p: p, lambda p: {"state_dict": {"w": torch.zeros(2)}, "meta": p}])
@pytest.mark.parametrize("save", [torch.save, lambda x, path: path.write_bytes(pickle.dumps(x))])
@pytest.mark.parametrize("name", ["evil.pth", "evil.safetensors"])
def test_a_file_that_would_run_code_is_refused(tmp_path, wrap, save, name):
    canary = tmp_path / "canary"
    path = tmp_path / name
    save(wrap(Payload(canary)), path)
    message = rf"{name}.*nothing in it was run" if name.endswith("pth") else name
    with pytest.raises(UserError, match=message):
        from_checkpoint(path)
    with pytest.raises(UserError, match=message):
        initialise(build_model(*NETWORK), str(path), "", "imagenet")
    assert not canary.exists()


@pytest.mark.parametrize("name", ["net.pth", "net.safetensors"])
@pytest.mark.parametrize("fraction", [0, 0.001, 0.5, 0.99])
def test_truncated_and_empty_files_are_refused(own_checkpoint, tmp_path, name, fraction):
    path = own_checkpoint
    if name.endswith("safetensors"):
        path = tmp_path / name
        export_to_safetensors(own_checkpoint, path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * fraction)])
    with pytest.raises(UserError, match=path.name):
        from_checkpoint(path)


def test_broken_files_of_torchs_old_format_are_refused(network, tmp_path):
    """Cut the file at many positions, then change single bytes."""
    path = tmp_path / "old.pth"
    torch.save({"state_dict": {"w": torch.ones(9)}, "epoch": 3}, path, _use_new_zipfile_serialization=False)
    data = path.read_bytes()
    for cut in range(0, len(data), 7):
        path.write_bytes(data[:cut])
        with pytest.raises(UserError, match=r"old\.pth"):
            read_weight_file(path)
    for position in range(0, len(data), 5):
        path.write_bytes(data[:position] + bytes([data[position] ^ 0x55]) + data[position + 1 :])
        with suppress(UserError):  # a changed weight is not noticed: the old format has no checksum
            read_weight_file(path)


def test_extra_objects_of_training_programs_are_skipped(tmp_path, network):
    """Log buffers of mmengine, an argparse namespace and numpy values are not run, and the weights are still read."""
    hub = MessageHub("a run")
    hub.update_scalar("train/loss", 0.5)
    content = {
        "state_dict": {"weight": torch.ones(2)},
        "message_hub": hub.state_dict(),
        "args": Namespace(lr=0.1),
        "best": np.float64(0.7),
    }
    torch.save(content, tmp_path / "iter_1.pth")
    assert torch.equal(read_weight_file(tmp_path / "iter_1.pth")["state_dict"]["weight"], torch.ones(2))


def test_getattr_in_a_file_is_not_called(tmp_path):
    class Method:
        def __reduce__(self):
            return getattr, ("text", "upper")

    torch.save({"more": Method()}, tmp_path / "iter_1.pth")
    assert type(read_weight_file(tmp_path / "iter_1.pth")["more"]) is reading.Ignored


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 99}, "format 99"),
        ({"pixels": None}, "no 'pixels'"),
        ({"model": None}, "no weights"),
        ({"pixels": "bgr"}, "pixels is 'bgr'"),
        ({"class_names": 5}, "class_names is '5'"),
        ({"palette": [[1, 2]]}, "palette is"),
        ({"label_noise": "near"}, "label_noise is 'near'"),
        ({"label_noise": {"codes": "near"}}, "label_noise is"),
        ({"label_noise": {"codes": 5, "pixel_std": 0.1, "scale": 1.0}}, "label_noise is"),
        ({"arch": {"arch": "fcn", "num_classes": K}}, "does not say which network .*backbone"),
        ({"arch": {"arch": "fcn", "backbone": 5, "num_classes": K}}, "does not say which network"),
        ({"config": []}, "config is"),
        ({"dataset": 3}, "dataset is '3'"),
        ({"arch": {"arch": "fcn"}}, "does not say which network"),
        (
            {"arch": {"arch": "fcn", "backbone": "resnet10t", "num_classes": K, "depth": 3}},
            "unknown option of fcn 'depth'",
        ),
        ({"arch": {"arch": "fcn", "backbone": "resnet10t", "num_classes": K}}, "does not fit"),
        (
            {"arch": {"arch": "fcn", "backbone": "resnet10t", "num_classes": K, "width": -5}},
            "does not say which network",
        ),
    ],
)
def test_damaged_cards_are_refused(own_checkpoint, tmp_path, change, message):
    content = checkpoint.read(own_checkpoint)
    for key, value in change.items():
        if value is None:
            del content[key]
        else:
            content[key] = value
    checkpoint.save(content, tmp_path / "changed.pth")
    with pytest.raises(UserError, match=message):
        from_checkpoint(tmp_path / "changed.pth")


def test_a_dict_that_contains_itself_is_refused(tmp_path):
    content = {"a": torch.ones(1)}
    content["state_dict"] = content
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(UserError, match="holds no network this project knows"):
        from_checkpoint(tmp_path / "a.pth")


def export_to_safetensors(source, target, *flags):
    """Run the script that writes a safetensors file."""
    export_safetensors.main(["--pretrained", str(source), "--export", str(target), *flags])


def test_safetensors_round_trip(own_checkpoint, network, tmp_path):
    path = tmp_path / "sub" / "student.safetensors"
    export_to_safetensors(own_checkpoint, path)
    model, card = from_checkpoint(path)
    assert card.class_names == CARD["class_names"]
    assert (card.training["best_miou"], card.pixels, card.training["config"]) == (0.5, "imagenet", {"lr": 0.02})
    assert model.config == network.config
    for key, value in network.state_dict().items():
        assert torch.equal(value, model.state_dict()[key]), key
    with safe_open(path, "pt") as file:
        assert "someone" not in json.dumps(file.metadata())
    again = tmp_path / "again.safetensors"
    export_to_safetensors(path, again)
    assert from_checkpoint(again).card == card


def test_an_exported_file_names_no_folder(own_checkpoint, tmp_path):
    home = "/home/someone/my runs"
    files = {
        "recipe": f"{home}/mine.yaml",
        "pretrained": f"{home}/start.pth",
        "pretrained_base": f"{home}/resnet18.pth",
        "teacher_pretrained": f"{home}/teacher/best.pth",
        "resume": f"{home}/student",
    }
    content = checkpoint.read(own_checkpoint)
    content["config"] = {**content["config"], **files}
    for start, exported in (
        (f"the weights of {home}/start.pth", "the weights of start.pth"),
        (f"the backbone weights of {home}/resnet18.pth", "the backbone weights of resnet18.pth"),
        ("the backbone weights of package", "the backbone weights of package"),
    ):
        checkpoint.save({**content, "start": start}, own_checkpoint)
        export_to_safetensors(own_checkpoint, tmp_path / "student.safetensors")
        _, card = from_checkpoint(tmp_path / "student.safetensors")
        assert card.start == exported
        assert "someone" not in json.dumps(card.entries())
        assert card.training["config"] == {
            "lr": 0.02,
            "recipe": "mine.yaml",
            "pretrained": "start.pth",
            "pretrained_base": "resnet18.pth",
            "teacher_pretrained": "best.pth",
        }


def test_half_precision_halves_the_file(network, tmp_path):
    network = copy.deepcopy(network)
    own_checkpoint, whole, half = (tmp_path / name for name in ("best.pth", "whole.safetensors", "half.safetensors"))
    norm = next(module for module in network.modules() if isinstance(module, torch.nn.BatchNorm2d))
    norm.running_var.fill_(1e6)  # pixels of 0 to 255 cause such variances
    checkpoint.save({**CARD, "arch": network.config, "model": network.state_dict()}, own_checkpoint)
    export_to_safetensors(own_checkpoint, whole)
    export_to_safetensors(own_checkpoint, half, "--half")
    assert half.stat().st_size < 0.55 * whole.stat().st_size
    assert half.stat().st_mode & 0o777 == own_checkpoint.stat().st_mode & 0o777
    model = from_checkpoint(half).model
    for key, value in network.state_dict().items():
        found = model.state_dict()[key]
        assert found.dtype == value.dtype
        torch.testing.assert_close(found, value, rtol=1e-3, atol=1e-6)
    norm.weight.data.fill_(1e6)
    checkpoint.save({**CARD, "arch": network.config, "model": network.state_dict()}, own_checkpoint)
    export_to_safetensors(own_checkpoint, whole)
    with pytest.raises(UserError, match="has values that half precision cannot hold"):
        export_to_safetensors(own_checkpoint, half, "--half")


def test_an_export_must_be_named_safetensors(own_checkpoint, tmp_path):
    with pytest.raises(UserError, match=r"must end with \.safetensors"):
        export_to_safetensors(own_checkpoint, tmp_path / "student.pth")


def test_a_file_without_a_data_set_asks_for_one(own_checkpoint, tmp_path):
    checkpoint.save({**checkpoint.read(own_checkpoint), "dataset": ""}, tmp_path / "foreign.pth")
    with pytest.raises(UserError, match="give --dataset and --data"):
        evaluation.main(["--pretrained", str(tmp_path / "foreign.pth"), "--device", "cpu"])


THEIR_STEMS = {  # our stem names -> those of LAD and CIRKD (v1s) or MMSegmentation (v1c)
    "resnet18_v1s": {
        "conv1.0": "conv1",
        "conv1.1": "bn1",
        "conv1.3": "conv2",
        "conv1.4": "bn2",
        "conv1.6": "conv3",
        "bn1": "bn3",
    },
    "resnet18_v1c": {
        "conv1.0": "stem.0",
        "conv1.1": "stem.1",
        "conv1.3": "stem.3",
        "conv1.4": "stem.4",
        "conv1.6": "stem.6",
        "bn1": "stem.7",
    },
    "resnet18": {},
    "hrnet_w18_small": {},
}


@pytest.mark.parametrize(("name", "in_channels"), [("resnet18_v1s", 3), *((name, 4) for name in THEIR_STEMS)])
def test_backbone_weights_of_other_projects_are_loaded(name, in_channels, tmp_path):
    pretrained = fill_model(build_backbone(name))
    theirs = {}
    for key, value in pretrained.state_dict().items():
        module, _, parameter = key.rpartition(".")
        theirs[f"{THEIR_STEMS[name].get(module, module)}.{parameter}"] = value
    torch.save({**theirs, "fc.weight": torch.zeros(1000, 512)}, tmp_path / "imagenet.pth")
    model = build_model("fcn", name, K, in_channels)
    initial = {key: value.clone() for key, value in model.backbone.state_dict().items()}
    initialise(model, str(tmp_path / "imagenet.pth"), "", "imagenet")
    for key, value in pretrained.state_dict().items():
        ours = model.backbone.state_dict()[key]
        if ours.shape != value.shape:
            assert torch.equal(ours[:, 3:], initial[key][:, 3:])
            ours = ours[:, :3]
        assert torch.equal(ours, value), key


@pytest.mark.parametrize("prefix", ["", "backbone.backbone."])
def test_imagenet_weights_of_an_stdc_leave_its_context_path_unchanged(prefix, tmp_path):
    pretrained = fill_model(build_backbone("stdc1"))
    weights = {f"{prefix}{key}": value for key, value in pretrained.encoder.state_dict().items()}
    torch.save({"state_dict": {**weights, "decode_head.weight": torch.zeros(2)}}, tmp_path / "stdc1.pth")
    model = build_model("stdc", "stdc1", K)
    initial_context = model.backbone.arms[0].conv.conv.weight.clone()
    initialise(model, str(tmp_path / "stdc1.pth"), "", "imagenet")
    assert torch.equal(model.backbone.encoder.stages[0].conv.weight, pretrained.encoder.stages[0].conv.weight)
    assert torch.equal(model.backbone.arms[0].conv.conv.weight, initial_context)


def test_backbone_weights_that_do_not_fit_are_refused(tmp_path):
    for name, other, message in (
        ("resnet18_v1s", "resnet18", "a 7x7 stem, this backbone a deep one"),
        ("resnet18", "resnet18_v1s", "a deep stem"),
    ):
        torch.save(build_backbone(other).state_dict(), tmp_path / "base.pth")
        with pytest.raises(UserError, match=message):
            initialise(build_model("fcn", name, K), str(tmp_path / "base.pth"), "", "imagenet")
    torch.save(nn.Conv2d(3, 4, 1).state_dict(), tmp_path / "base.pth")
    with pytest.raises(UserError, match="keys missing"):
        initialise(build_model(*NETWORK), str(tmp_path / "base.pth"), "", "imagenet")
    with pytest.raises(UserError, match="timm has no weights for 'resnet18_v1s'"):
        initialise(build_model("fcn", "resnet18_v1s", K), "timm", "", "imagenet")


def test_starting_from_a_whole_checkpoint(own_checkpoint, network):
    teacher = build_model(*NETWORK, in_channels=4)
    plane = teacher.backbone.conv_stem.weight[:, 3:].clone()
    initialise(teacher, "", str(own_checkpoint), "imagenet")
    assert torch.equal(teacher.backbone.conv_stem.weight[:, :3], network.backbone.conv_stem.weight)
    assert torch.equal(teacher.backbone.conv_stem.weight[:, 3:], plane)
    with pytest.raises(UserError, match="arch 'deeplabv3', here 'pspnet'"):
        initialise(build_model("pspnet", "mobilenetv2_100", K), "", str(own_checkpoint), "imagenet")
    with pytest.raises(UserError, match="use --pixels imagenet"):
        initialise(build_model(*NETWORK), "", str(own_checkpoint), "bgr_mean")
    cirkd = build_model(f"{NETWORK[0]}_cirkd1", *NETWORK[1:])
    initialise(cirkd, "", str(own_checkpoint), "imagenet")
    assert all(torch.equal(value, network.state_dict()[key]) for key, value in cirkd.state_dict().items())


def test_a_file_shipped_with_the_project_is_found_by_its_name(own_checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "SHIPPED", tmp_path / "shipped")
    with pytest.raises(UserError, match=r"checkpoint not found: street$"):
        from_checkpoint("street")
    model, card = from_checkpoint(own_checkpoint)
    export_safetensors.write_safetensors(tmp_path / "shipped/street.safetensors", model.state_dict(), card.entries())
    assert from_checkpoint("street").card == card
    with pytest.raises(UserError, match=r"did you mean 'street'\?.*comes with street"):
        from_checkpoint("streets")
    for path in ("no/street", "street.pth"):  # these are paths, not names
        with pytest.raises(UserError, match=f"checkpoint not found: {path}$"):
            from_checkpoint(path)
