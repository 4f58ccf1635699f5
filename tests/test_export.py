"""The ONNX file gives the logits of PyTorch, also at sizes it was not traced with. A file that does not is refused."""

import importlib.util
import json

import numpy as np
import pytest
import torch
from timm.layers import create_conv2d, create_pool2d, padding
from torch import nn

from models.checkpoints.loading import from_checkpoint
from scripts.deploy import export_onnx
from scripts.deploy.onnx_sizes import (
    PADDING_MODULES,
    BinMeans,
    make_pools_exportable,
    split_same_padding,
    use_new_maps,
    use_simple_same_padding,
)
from tests.conftest import BACKBONE
from tests.networks import write_checkpoint
from utils.errors import UserError
from utils.pixels import CONVENTIONS

INSTALLED = all(importlib.util.find_spec(name) for name in export_onnx.PACKAGES)
needs_onnx = pytest.mark.skipif(not INSTALLED, reason="requirements-export.txt is not installed")


@pytest.mark.parametrize("size", [(1, 1), (2, 5), (9, 7), (13, 24)])
@pytest.mark.parametrize("bins", [(1, 1), (2, 2), (3, 3), (6, 6), (2, 5)])
def test_pools_as_matrices_are_adaptive_average_pools(size, bins):
    x = torch.randn(2, 4, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(BinMeans(bins)(x), nn.functional.adaptive_avg_pool2d(x, bins))


@pytest.mark.parametrize("arch", ["pspnet", "smp_pspnet"])
def test_adaptive_pools_are_replaced_without_changing_the_logits(tmp_path, arch):
    model = from_checkpoint(write_checkpoint(tmp_path / "psp.pth", arch)).model
    x = torch.randn(1, 3, 50, 71)
    with torch.inference_mode():
        before = model(x).logits
        make_pools_exportable(model)
        torch.testing.assert_close(model(x).logits, before, rtol=1e-5, atol=1e-4)
    assert not any(isinstance(module, nn.AdaptiveAvgPool2d) for module in model.modules())


@pytest.mark.parametrize("kernel", [1, 2, 3, 5])
def test_exportable_same_padding_is_timms_padding_plus_unused_rows(kernel):
    for side in range(1, 40):
        for stride in (1, 2, 4):
            for dilation in (1, 2):
                total = padding.get_same_padding(side, kernel, stride, dilation)
                before, after = split_same_padding(side, kernel, stride, dilation)
                assert before == total // 2
                assert after >= total - total // 2
                assert (side + before + after - (kernel - 1) * dilation - 1) // stride + 1 == -(-side // stride)


def test_timms_layers_compute_the_same_with_exportable_padding():
    layers = [
        create_conv2d(2, 3, 3, stride=2, padding="same"),
        create_conv2d(2, 3, 5, stride=2, padding="same", dilation=2),
        create_conv2d(2, 3, 1, stride=2, padding="same"),
        create_pool2d("max", 3, stride=2, padding="same"),
        create_pool2d("avg", 2, stride=2, padding="same"),
    ]
    for size in ((16, 17), (7, 30), (33, 12)):
        x = torch.randn(1, 2, *size)
        for layer in layers:
            expected = layer(x)
            with use_simple_same_padding():
                assert PADDING_MODULES[0].pad_same is not padding.pad_same
                torch.testing.assert_close(layer(x), expected)
    assert PADDING_MODULES[0].pad_same is padding.pad_same


def test_no_activation_overwrites_its_input():
    network = nn.Sequential(nn.Conv2d(1, 1, 1), nn.ReLU(inplace=True), nn.Sequential(nn.Hardswish(inplace=True)))
    use_new_maps(network)
    assert not network[1].inplace
    assert not network[2][0].inplace


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"crop_size": [96, 128]}, [96, 128]),
        ({"crop_size": (96, 128)}, [96, 128]),
        ({}, None),
        ({"crop_size": 5}, None),
    ],
)
def test_the_metadata_holds_the_crop_size_of_the_training(config, expected, tmp_path):
    loaded = from_checkpoint(write_checkpoint(tmp_path / "net.pth", config=config))
    assert loaded.card.crop_size == (expected and tuple(expected))
    assert json.loads(export_onnx.make_metadata(loaded.card, "net.pth")["crop_size"]) == expected


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["pspnet", "smp_pspnet", "smp_fpn"])
@needs_onnx
def test_an_exported_file_accepts_every_size(tmp_path, capsys, arch):
    import onnx
    import onnxruntime

    source, target = write_checkpoint(tmp_path / "psp.pth", arch), tmp_path / "new/psp.onnx"
    export_onnx.main(["--pretrained", source, "--output", str(target)])
    assert capsys.readouterr().out.count("equal classes 100.0000 %") == len(export_onnx.CHECKED_SIZES)
    assert [path.name for path in target.parent.iterdir()] == ["psp.onnx"]
    session = onnxruntime.InferenceSession(str(target), providers=["CPUExecutionProvider"])
    (model_input,), (model_output,) = session.get_inputs(), session.get_outputs()
    assert model_input.shape == ["batch", 3, "height", "width"]
    assert model_output.shape == ["batch", 7, "height", "width"]
    network = export_onnx.PixelsToLogits(from_checkpoint(source).model, CONVENTIONS["bgr_mean"])
    for shape in ((1, 3, 33, 200), (3, 3, 90, 61)):
        image = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
        (logits,) = session.run(None, {"image": image.numpy()})
        with torch.inference_mode():
            expected = network(image).numpy()
        np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
    properties = {entry.key: entry.value for entry in onnx.load(target).metadata_props}
    assert json.loads(properties["class_names"])[1] == "disk"
    assert len(json.loads(properties["palette"])) == 7


@needs_onnx
def test_a_fixed_size_is_exported_and_a_wrong_file_is_deleted(tmp_path, capsys, monkeypatch):
    import onnxruntime

    source, target = write_checkpoint(tmp_path / "fcn.pth"), tmp_path / "fcn.onnx"
    flags = ["--pretrained", source, "--output", str(target), "--size", "64", "48"]
    programs = []
    export = export_onnx.export_network

    def export_and_keep(*arguments):
        programs.append(export(*arguments))
        return programs[0]

    monkeypatch.setattr(export_onnx, "export_network", export_and_keep)
    export_onnx.main(flags)
    assert "equal classes 100.0000 %" in capsys.readouterr().out
    (output,) = onnxruntime.InferenceSession(str(target)).get_outputs()
    assert output.shape[1:] == [7, 64, 48]

    target.unlink()
    monkeypatch.setattr(export_onnx, "export_network", lambda *_: programs[0])  # because the export is slow
    monkeypatch.setattr(export_onnx, "compare_with_network", lambda *_: {"random": 0.9998})
    with pytest.raises(UserError, match=r"differ on random: .* is not kept"):
        export_onnx.main(flags)

    def fail(*_):
        raise torch.onnx.OnnxExporterError("sizes must be known")

    monkeypatch.setattr(export_onnx, "export_network", fail)
    with pytest.raises(UserError, match=rf"fcn on {BACKBONE} cannot be written as ONNX: sizes must be known \(--size"):
        export_onnx.main(flags[:-3])
    assert {path.name for path in tmp_path.iterdir()} == {"fcn.pth"}


def test_wrong_flags_and_networks_are_refused(tmp_path, monkeypatch):
    student = write_checkpoint(tmp_path / "student.pth")
    target = ["--output", str(tmp_path / "x.onnx")]
    valid_flags = ["--pretrained", student, *target]
    for flags, message in (
        ([*valid_flags, "--int8"], "--int8 needs images like those .*: --calibration FOLDER, or --data ROOT"),
        ([*valid_flags, "--calibration", "x", "--resize", "64", "64"], "--calibration, --resize: only with --int8"),
        ([*valid_flags, "--int8", "--calibration", str(tmp_path)], "holds no images"),
        ([*valid_flags, "--int8", "--calibration", "none.png"], r"--calibration none\.png: no such file or folder"),
        ([*valid_flags, "--int8", "--data", "x", "--size", "64", "64", "--resize", "64", "64"], "--size and --resize"),
        ([*valid_flags, "--int8", "--dataset", "camvid"], r"student\.pth has 7 classes, camvid 11"),
        (target, "--pretrained FILE is missing"),
        (["--pretrained", student], r"--output FILE: the file's name must end with \.onnx"),
    ):
        with pytest.raises(UserError, match=message):
            export_onnx.main(flags)
    monkeypatch.setattr(export_onnx, "PACKAGES", ("onnx_that_is_not_there",))
    with pytest.raises(UserError, match=r"not installed: pip install -r requirements-export\.txt"):
        export_onnx.main(["--pretrained", student, *target])
    monkeypatch.setattr(export_onnx, "PACKAGES", ())
    teacher = write_checkpoint(tmp_path / "teacher.pth", codes="random")
    with pytest.raises(UserError, match="reads the label: a teacher cannot be deployed"):
        export_onnx.main(["--pretrained", teacher, *target])
    with pytest.raises(UserError, match=r"none\.png"):
        export_onnx.main(["--pretrained", student, *target, "--image", str(tmp_path / "none.png")])


@needs_onnx
@pytest.mark.parametrize(("gap", "share"), [(1e-7, 1.0), (1e-2, 0.5)])
def test_a_pixel_whose_class_depends_on_rounding_counts_as_equal(tmp_path, monkeypatch, gap, share):
    """The file predicts another class at half of the pixels. They count as equal if the two logits hardly differ."""
    import onnxruntime

    ours = torch.tensor([1.0, 1.0 - gap]).reshape(1, 2, 1, 1).repeat(1, 1, 1, 4)
    theirs = ours.clone()
    theirs[:, :, :, :2] = ours.flip(1)[:, :, :, :2]

    class Session:
        def __init__(self, *_, **__):
            pass

        def run(self, names, inputs):
            return [theirs.numpy()]

    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    assert export_onnx.compare_with_network(tmp_path, lambda image: ours, {"a": torch.zeros(1)}) == {"a": share}
