"""Test files of other people's training code: wrapped networks, other entries in the file, other file formats."""

import sys
import types
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from datasets.network_classes import require_classes
from datasets.toy import TOY
from models import from_checkpoint
from models.checkpoints.formats import unwrap
from tests.fill_weights import reference_input
from tests.test_foreign import FCN, save, state
from utils.errors import UserError

PREFIXES = [
    "_orig_mod.",
    "module._orig_mod.",
    "_orig_mod.module.",
    "net.",
    "network.",
    "student.",
    "ema_model.",
    "model.net._orig_mod.",
    "student.module._orig_mod.model.",
    "ema.module.",
    "_forward_module._fsdp_wrapped_module.",
]


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """Return the logits of the network whose weights the files of the tests hold."""
    return compute_logits(save(tmp_path_factory.mktemp("plain") / "net.pth", state(FCN)))


@torch.inference_mode()
def compute_logits(path):
    return from_checkpoint(path).model(reference_input((1, 3, 33, 65))).logits


def add_prefix(prefix, weights):
    return {prefix + key: value for key, value in weights.items()}


@pytest.mark.parametrize("prefix", PREFIXES)
def test_prefixes_of_wrappers_are_removed(prefix):
    assert unwrap({"model": add_prefix(prefix, state(FCN))}, "file").keys() == state(FCN).keys()


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (lambda w: add_prefix("segmentor.", w), "begin with 'segmentor.', and 'segmentor' is no wrapper that is known"),
        (lambda w: add_prefix("module.segmentor.", w), r"begin with 'module.segmentor\.', and 'segmentor' is no"),
        (
            lambda w: {(k if "layer1" in k else f"module.{k}"): v for k, v in w.items()},
            r"begin with 'module\.', but not all do, such as backbone\.layer1",
        ),
        (
            lambda w: {(f"model.{k}" if k.startswith("backbone") else k): v for k, v in w.items()},
            r"some keys of its network begin with 'model\.', such as model\.backbone",
        ),
        (
            lambda w: add_prefix("a.", w) | add_prefix("b.", w),
            r"several networks \(their keys begin with 'a\.', 'b\.'\)",
        ),
        (
            lambda w: add_prefix("student.", w) | add_prefix("teacher.", w),
            r"several networks .*'student\.', 'teacher\.'",
        ),
    ],
)
def test_prefixes_that_cannot_be_removed_are_named(content, problem):
    with pytest.raises(UserError, match=problem):
        unwrap(content(state(FCN)), "file")


SMP = {
    "encoder.conv1.weight": torch.zeros(64, 3, 7, 7),
    "decoder.blocks.0.conv1.0.weight": torch.zeros(1),
    "segmentation_head.0.weight": torch.zeros(5, 16, 3, 3),
}


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (add_prefix("segmentor.", SMP), "begin with 'segmentor.', and 'segmentor' is no wrapper that is known"),
        (add_prefix("student.", SMP) | add_prefix("teacher.", SMP), r"several networks .*'student\.', 'teacher\.'"),
        ({f"model.{k}" if k.startswith("encoder") else k: v for k, v in SMP.items()}, r"begin with 'model\.'"),
    ],
)
def test_prefixes_before_keys_of_smp_are_named(content, problem):
    with pytest.raises(UserError, match=problem):
        unwrap(content, "file")


@pytest.mark.parametrize("weights", [state(FCN), SMP], ids=["mmseg", "smp"])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda w: add_prefix("model.", w) | {"mean": torch.zeros(3), "std": torch.ones(3), "loss_fn.w": torch.ones(2)},
        lambda w: add_prefix("module.", w) | {"n_averaged": torch.tensor(3)},
        lambda w: add_prefix("model.", w) | add_prefix("model_ema.module.", w) | {"model_ema.decay": torch.tensor(0.9)},
        lambda w: {key.replace(".", "._orig_mod.", 1): value for key, value in w.items()},
        lambda w: {"generator": w, "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}}},
        lambda w: {"checkpoint": {"model": w}, "epoch": 3},
        lambda w: {"state_dict": w, "ema_state_dict": {key: value + 1 for key, value in w.items()}},
    ],
)
def test_wrappers_and_other_tensors_are_removed(wrap, weights):
    found = unwrap(wrap(weights), "file")
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[key], weights[key]) for key in weights)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ({"fold0": SMP, "fold1": SMP}, r"several sets of weights \('fold0', 'fold1'\)"),
        (
            {"optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}}, "epoch": 3},
            r"no weights \(its keys: optimizer, epoch",
        ),
    ],
)
def test_containers_without_a_clear_choice_are_listed(content, problem):
    with pytest.raises(UserError, match=problem):
        unwrap(content, "file")


def add_buffers_of_losses(weights):
    """Return the weights of a wrapped network, with buffers of losses and a metric beside them."""
    buffers = {"criterion.weight": torch.ones(19), "val_miou.matrix": torch.zeros(19, 19), "loss_fn.w": torch.ones(2)}
    return add_prefix("module.", weights) | buffers


@pytest.mark.parametrize("container", ["net", "network", "weights", "state_dict_ema", "model_ema"])
def test_weights_are_found_in_a_container(container, expected, tmp_path):
    assert torch.equal(compute_logits(save(tmp_path / "net.pth", {container: state(FCN), "epoch": 3})), expected)


def test_entries_beside_the_network_are_ignored(expected, tmp_path):
    content = {
        "state_dict": add_buffers_of_losses(state(FCN)),
        "arch": "my_net",
        "hyper_parameters": {"lr": 0.1, "names": ["a"]},
    }
    assert torch.equal(compute_logits(save(tmp_path / "net.pth", content)), expected)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda average, last: {"model": last, "model_ema": average},
        lambda average, last: {"state_dict": last, "state_dict_ema": {"module": 1, **add_prefix("module.", average)}},
        lambda average, last: {"state_dict": add_prefix("model.", last) | add_prefix("ema_model.", average)},
        lambda average, last: last | add_prefix("ema_model.module.", average),
        lambda average, last: {"model": last, "ema": {"module": average, "decay": 0.9}},
        lambda average, last: {"student": last, "ema": average},
    ],
)
def test_a_moving_average_is_used_and_named(wrap, expected, tmp_path, capsys):
    last = {key: torch.zeros_like(value) for key, value in state(FCN).items()}
    assert torch.equal(compute_logits(save(tmp_path / "net.pth", wrap(state(FCN), last))), expected)
    assert "net.pth: the moving average '" in capsys.readouterr().err


@pytest.mark.parametrize("average", [{}, {"decay": 0.99, "updates": 3}, None])
def test_an_average_without_weights_is_ignored(average, expected, tmp_path, capsys):
    assert torch.equal(compute_logits(save(tmp_path / "net.pth", {"model": state(FCN), "ema": average})), expected)
    assert "moving average" not in capsys.readouterr().err


def test_a_second_network_is_ignored_and_named(expected, tmp_path, capsys):
    other = {key: torch.zeros_like(value) for key, value in state(FCN).items()}
    assert torch.equal(compute_logits(save(tmp_path / "net.pth", {"model": state(FCN), "net": other})), expected)
    assert "net.pth: the network 'model' is used, not 'net'" in capsys.readouterr().err


def make_foreign_object(name, monkeypatch, base=object):
    """Return an object whose pickle needs a class of another package."""
    module, _, class_name = name.rpartition(".")
    parent = ""
    for part in module.split("."):
        parent = f"{parent}.{part}".strip(".")
        monkeypatch.setitem(sys.modules, parent, types.ModuleType(parent))
    foreign_class = type(class_name, (base,), {"__module__": module})
    setattr(sys.modules[module], class_name, foreign_class)
    return foreign_class()


def test_settings_of_lightning_are_ignored(expected, tmp_path, monkeypatch):
    settings = make_foreign_object("lightning.fabric.utilities.data.AttributeDict", monkeypatch, dict)
    settings["lr"] = 0.1
    content = {"state_dict": add_prefix("model.", state(FCN)), "hyper_parameters": settings}
    assert torch.equal(compute_logits(save(tmp_path / "net.ckpt", content)), expected)


def test_objects_of_omegaconf_are_refused_by_name(tmp_path, monkeypatch):
    content = {
        "state_dict": {},
        "hyper_parameters": make_foreign_object("omegaconf.dictconfig.DictConfig", monkeypatch),
    }
    with pytest.raises(UserError, match=r"nothing in it was run; it asks for omegaconf\.dictconfig\.DictConfig"):
        from_checkpoint(save(tmp_path / "net.ckpt", content))


def test_a_torchscript_archive_is_refused(tmp_path):
    torch.jit.trace(torch.nn.Conv2d(3, 2, 1), torch.zeros(1, 3, 4, 4)).save(str(tmp_path / "net.pth"))
    with pytest.raises(UserError, match=r"net.pth is a TorchScript archive, .*: save the network's state_dict\(\)"):
        from_checkpoint(tmp_path / "net.pth")


@pytest.mark.parametrize("name", ["net.pth", "net.bin", "model.ckpt"])
def test_safetensors_under_another_suffix(name, expected, tmp_path):
    save_file(state(FCN), tmp_path / name)
    assert torch.equal(compute_logits(tmp_path / name), expected)


def shrink_classifier(weights, head, count):
    """Return the weights with only the first ``count`` classes in the classifier of a head."""
    weights = dict(weights)
    for kind in ("weight", "bias"):
        weights[f"{head}.conv_seg.{kind}"] = weights[f"{head}.conv_seg.{kind}"][:count]
    return weights


def test_an_auxiliary_head_with_other_classes_is_removed(expected, tmp_path, capsys):
    path = save(tmp_path / "net.pth", shrink_classifier(state(FCN), "decode_head", 5))
    model = from_checkpoint(path).model
    assert len(model.aux) == 0
    torch.testing.assert_close(compute_logits(path), expected[:, :5])
    assert "net.pth: its auxiliary head has 19 classes, the main head 5: it is left out\n" in capsys.readouterr().err


@pytest.mark.parametrize("heads", [("decode_head",), ("decode_head", "auxiliary_head")])
def test_one_logit_becomes_two_classes(heads, expected, tmp_path, capsys):
    weights = state(FCN)
    for head in heads:
        weights = shrink_classifier(weights, head, 1)
    path = save(tmp_path / "net.pth", weights)
    loaded = from_checkpoint(path)
    assert (loaded.card.num_classes, len(loaded.model.aux)) == (2, len(heads) - 1)
    road = replace(TOY, names=("background", "road"))
    with pytest.raises(UserError, match=r"F has one logit .*must be 'road' of folder, .*; .* give --other-class-names"):
        require_classes(loaded.card, road, "folder", "F", allow_other_names=False)
    require_classes(loaded.card, road, "folder", "F", allow_other_names=True)
    found = compute_logits(path)
    assert torch.equal(found[:, 0], torch.zeros_like(found[:, 0]))
    torch.testing.assert_close(found[:, 1], expected[:, 0])
    assert "net.pth has one logit: class 1 where it is above 0, else class 0\n" in capsys.readouterr().err
