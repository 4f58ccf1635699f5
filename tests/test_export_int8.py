"""Test the 8-bit ONNX file: what is quantised, and how the file is compared with the float file."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from datasets import choose_evenly
from models.checkpoints.loading import from_checkpoint
from scripts.deploy import export_onnx
from scripts.deploy.onnx_int8 import (
    MOST_IMAGES,
    Agreement,
    Sample,
    Sizes,
    compare_files,
    describe_agreement,
    find_files,
    find_upsampling,
    quantise,
    read_files,
)
from tests.networks import write_checkpoint
from tests.test_export import needs_onnx
from utils.errors import UserError
from utils.pixels import CONVENTIONS
from utils.types import Output, Supervision


class TinyNetwork(nn.Module):
    """Predict three classes at stride 2 with two convolutions."""

    supervision = (Supervision(),)

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.last = nn.Conv2d(8, 3, 1)

    def forward(self, x, with_aux=True):
        feat = self.first(x).relu()
        return Output(self.last(feat), (), feat)


def make_samples(count, labelled):
    """Yield random images and, if ``labelled``, labels of twice their size."""
    rng = np.random.default_rng(0)
    for _ in range(count):
        image = np.repeat(np.repeat(rng.integers(0, 256, (1, 3, 6, 8), dtype=np.uint8), 8, 2), 8, 3)
        label = rng.integers(0, 3, (96, 128)).astype(np.uint8)  # the image is 48x64
        label[:, :20] = 255
        yield Sample(image, label if labelled else None)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Export a float file and quantise it. Return the paths of both files."""
    folder = tmp_path_factory.mktemp("int8")
    torch.manual_seed(0)
    network = export_onnx.PixelsToLogits(TinyNetwork(), CONVENTIONS["imagenet"]).eval()
    with torch.inference_mode():
        program = export_onnx.export_network(network, None)
    program.model.metadata_props.update({"class_names": '["a", "b", "c"]'})
    program.save(str(folder / "tiny.onnx"), external_data=False)
    quantise(folder / "tiny.onnx", folder / "tiny.int8.onnx", make_samples(4, labelled=False))
    return folder / "tiny.onnx", folder / "tiny.int8.onnx"


@needs_onnx
def test_convolutions_are_quantised_and_the_upsampling_is_not(files):
    import onnx

    model = onnx.load(files[1])
    assert {entry.key: entry.value for entry in model.metadata_props}["class_names"] == '["a", "b", "c"]'
    makers = {output: node for node in model.graph.node for output in node.output}
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    assert len(convolutions) == 2
    for node in convolutions:
        assert [makers[name].op_type for name in node.input[:2]] == ["DequantizeLinear"] * 2
    scales = {tensor.name: tensor.dims for tensor in model.graph.initializer}
    first = makers[convolutions[0].input[1]]
    assert list(scales[first.input[1]]) == [8]  # one for each output channel
    assert makers[model.graph.output[0].name].op_type == "Resize"
    assert len(find_upsampling(onnx.load(files[0]).graph)) >= 1


@needs_onnx
@pytest.mark.parametrize("align_corners", [False, True])
def test_the_comparison_uses_the_upsampled_predictions(files, align_corners):
    import onnxruntime

    samples = list(make_samples(3, labelled=True))
    agreement = compare_files(*files, samples, align_corners)
    predictions = []
    for file in files:
        session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
        logits = [torch.from_numpy(session.run(None, {"image": sample.image})[0]) for sample in samples]
        wide = nn.functional.interpolate(torch.cat(logits), (96, 128), mode="bilinear", align_corners=align_corners)
        predictions.append(wide.argmax(1).numpy())
    label = np.stack([sample.label for sample in samples])
    assert agreement.equal == pytest.approx((predictions[0] == predictions[1]).mean(), abs=1e-4)
    assert 0.9 < agreement.equal <= 1
    for miou, prediction in zip(agreement[1:], predictions, strict=True):
        valid = label != 255
        shares = []
        for k in range(3):
            both = ((prediction == k) & (label == k)).sum()
            either = (((prediction == k) | (label == k)) & valid).sum()
            shares.append(both / either)
        assert miou == pytest.approx(np.mean(shares), abs=1e-4)


@needs_onnx
def test_without_labels_there_is_no_miou(files):
    agreement = compare_files(*files, make_samples(2, labelled=False), False)
    assert np.isnan(agreement.float_miou)
    assert describe_agreement(agreement, "2 images").endswith("on 2 images")


def test_the_agreement_of_two_files_is_described():
    text = describe_agreement(Agreement(0.98765, 0.5213, 0.5188), "101 validation images")
    assert text == (
        "int8 and float32: equal classes 98.77 % on 101 validation images; mIoU 51.88 % instead of 52.13 % (loss 0.25)"
    )


def test_images_are_found_chosen_evenly_and_resized(tmp_path):
    (tmp_path / "photos/below").mkdir(parents=True)
    for name in ("a.png", "below/b.png"):
        Image.new("RGB", (40, 30), (10, 20, 30)).save(tmp_path / "photos" / name)
    files = find_files([str(tmp_path / "photos"), str(tmp_path / "photos/a.png")])
    assert [path.name for path in files] == ["a.png", "b.png", "a.png"]
    shapes = {sample.image.shape for sample in read_files(files, Sizes(fit=(20, 20)))}
    assert shapes == {(1, 3, 15, 20)}
    assert next(read_files(files, Sizes(fixed=(32, 64)))).image.shape == (1, 3, 32, 64)
    assert next(read_files(files, Sizes())).image[0, :, 0, 0].tolist() == [10, 20, 30]
    assert choose_evenly(3, MOST_IMAGES) == [0, 1, 2]
    assert len(choose_evenly(1000, MOST_IMAGES)) == MOST_IMAGES
    assert choose_evenly(1000, MOST_IMAGES)[-1] == 999


@needs_onnx
def test_an_image_that_cannot_be_read_is_named(files, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"broken\.png"):
        quantise(files[0], tmp_path / "x.onnx", read_files([tmp_path / "broken.png"], Sizes()))


@needs_onnx
@pytest.mark.slow
@pytest.mark.parametrize("flags", [["--dataset", "toy"], ["--calibration", "photos"]])
def test_the_command_writes_both_files(flags, tmp_path, capsys, monkeypatch):
    import onnxruntime

    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)).save("photos/a.png")
    source = write_checkpoint(tmp_path / "fcn.pth")
    export_onnx.main(["--pretrained", source, "--output", "fcn.onnx", "--int8", *flags])
    printed = capsys.readouterr().out
    if "--dataset" in flags:
        assert "on 3 validation images; mIoU" in printed
    else:
        assert "on the images it was calibrated with\n" in printed
    assert "wrote fcn.int8.onnx (" in printed
    assert (tmp_path / "fcn.int8.onnx").stat().st_size < (tmp_path / "fcn.onnx").stat().st_size / 3
    session = onnxruntime.InferenceSession("fcn.int8.onnx", providers=["CPUExecutionProvider"])
    image = torch.randint(0, 256, (2, 3, 50, 71), dtype=torch.uint8)
    (logits,) = session.run(None, {"image": image.numpy()})
    network = export_onnx.PixelsToLogits(from_checkpoint(source).model, CONVENTIONS["bgr_mean"])
    with torch.inference_mode():
        expected = network(image).numpy()
    assert logits.shape == expected.shape == (2, 7, 50, 71)
    assert np.corrcoef(logits.ravel(), expected.ravel())[0, 1] > 0.95
