"""Files of LAD, CIRKD, MMSegmentation and torchvision: same outputs; everything else about them inferred or refused."""

import json
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision

from models import build_model, from_checkpoint
from models.checkpoints.formats import FORMATS, translate_network
from models.checkpoints.recognition import recognise_network
from scripts.study import visualize
from tests.fill_weights import fill_model, fill_state, reference_input
from utils.errors import UserError

DATA = Path(__file__).parent / "data"
KEYS = json.loads((DATA / "reference_keys.json").read_text())
LAD = "lad_deeplabv3_resnet18"
FCN = "mmseg_fcn_r18-d8"


@lru_cache(maxsize=1)
def _state(name):
    return fill_state(KEYS[name])


def state(name):
    return dict(_state(name))


def save(path, content):
    torch.save(content, path)
    return path


@torch.inference_mode()
def run(model, shape=(1, 3, 65, 97)):
    return model(reference_input(shape))


@pytest.mark.parametrize("name", KEYS)
def test_same_outputs_as_the_released_network(name, tmp_path):
    with np.load(DATA / "reference_logits.npz") as data:
        expected = {key.removeprefix(f"{name}/"): data[key] for key in data if key.startswith(f"{name}/")}
    weights = state(name)
    path = save(tmp_path / "net.pth", {"state_dict": weights, "meta": {}} if name.startswith("mmseg") else weights)
    model, card = from_checkpoint(path, assisted=True)
    assert card.pixels == ("imagenet" if name.startswith("mmseg") else "bgr_mean")
    output = run(model, tuple(expected.pop("input_shape")))
    assert len(expected) == 1 + len(output.aux)
    for key, value in {"logits": output.logits, **{f"aux{i}": a for i, a in enumerate(output.aux)}}.items():
        assert np.abs(value.numpy() - expected[key]).max() / expected[key].std() < 1e-4, key


@pytest.mark.parametrize(("cls", "arch"), [("fcn_resnet50", "fcn"), ("deeplabv3_resnet50", "deeplabv3")])
def test_torchvision(cls, arch, tmp_path):
    theirs = getattr(torchvision.models.segmentation, cls)(weights=None, weights_backbone=None, aux_loss=True)
    for module in theirs.eval().modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            fill_model(module)
    ours = from_checkpoint(save(tmp_path / "net.pth", theirs.state_dict())).model
    assert ours.config["arch"] == f"{arch}_torchvision"
    assert not ours.supervision[0].align_corners
    x = reference_input((1, 3, 33, 65))
    with torch.inference_mode():
        expected = theirs(x)["out"]
        logits = torch.nn.functional.interpolate(ours(x).logits, x.shape[-2:], mode="bilinear")
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4 * float(expected.std()))


def their_keys(model, form):
    """The keys of a file of ``form`` that holds ``model``: the reference file's own, in the depth of the model.

    Blocks and layers are renamed by the example of a block that the reference has.
    """
    reference = {
        "LAD/CIRKD DeepLabV3": "lad_deeplabv3_resnet18",
        "LAD/CIRKD PSPNet": "lad_psp_resnet18",
        "MMSegmentation FCN": "mmseg_fcn_r18-d8",
        "MMSegmentation PSPNet": "mmseg_pspnet_r18-d8",
        "MMSegmentation DeepLabV3": "mmseg_deeplabv3_r18-d8",
        "MMSegmentation STDC": "mmseg_stdc1",
        "MMSegmentation OCRNet": "mmseg_ocrnet_hr18s",
    }[form]
    prefix = FORMATS[form].family.prefix
    known = translate_network({key: key for key in KEYS[reference]}, form)
    if "hrnet" in model.config["backbone"]:  # whose stem has its own names
        known = {ours: theirs for ours, theirs in known.items() if not theirs.startswith(prefix)}
    deeper = {"backbone.encoder.": "backbone.backbone."}
    keys = {}
    for key in model.state_dict():
        body = next((new + key.removeprefix(old) for old, new in deeper.items() if key.startswith(old)), None)
        body = body or prefix + key.removeprefix("backbone.")
        keys[known.get(key, body)] = key
    return keys


VARIANTS = [
    ("LAD/CIRKD DeepLabV3", ("deeplabv3", "resnet18_v1s", 21), {}),
    ("LAD/CIRKD DeepLabV3", ("deeplabv3", "resnet50_v1s", 150), {}),
    ("LAD/CIRKD DeepLabV3", ("deeplabv3_cirkd2", "resnet18_v1s", 182), {}),
    ("LAD/CIRKD DeepLabV3", ("deeplabv3", "resnet34_v1s", 11), {"width": 96, "aux_width": 32}),
    ("LAD/CIRKD PSPNet", ("pspnet", "resnet50_v1s", 19), {}),
    ("LAD/CIRKD PSPNet", ("pspnet_cirkd2", "resnet50_v1s", 182), {}),
    ("LAD/CIRKD PSPNet", ("pspnet", "resnet18_v1s", 5), {"width": 48, "branch_width": 24, "aux_width": 0}),
    ("MMSegmentation FCN", ("fcn", "resnet50_v1c", 150), {}),
    ("MMSegmentation FCN", ("fcn", "hrnet_w18_small_v2", 19), {}),
    ("MMSegmentation PSPNet", ("pspnet_mmseg", "resnet50_v1c", 171), {}),
    ("MMSegmentation DeepLabV3", ("deeplabv3_mmseg", "resnet34_v1c", 21), {"width": 64, "aux_width": 64}),
    ("MMSegmentation STDC", ("stdc", "stdc2", 19), {}),
    ("MMSegmentation STDC", ("stdc", "stdc1", 11), {"width": 128, "aux_width": 32, "detail_width": 48}),
    ("MMSegmentation OCRNet", ("ocrnet", "hrnet_w18", 150), {}),
    ("MMSegmentation OCRNet", ("ocrnet", "hrnet_w48", 19), {}),
    ("MMSegmentation OCRNet", ("ocrnet", "resnet101_v1c", 19), {}),
    ("MMSegmentation OCRNet", ("ocrnet", "hrnet_w18_small_v2", 21), {"width": 96, "key_width": 40, "aux_width": 30}),
]


@pytest.mark.parametrize(("form", "network", "widths"), VARIANTS, ids=lambda v: "-".join(map(str, v)))
def test_depth_widths_and_classes_are_inferred(form, network, widths):
    with torch.device("meta"):
        model = build_model(*network, **widths)
    keys = their_keys(model, form)
    own = model.state_dict()
    assert len(keys) == len(own)
    found = recognise_network({theirs: own[ours] for theirs, ours in keys.items()}, "file")
    assert found.format == form
    assert found.config.items() >= model.config.items()
    if not widths:
        assert found.config == model.config
        return
    with torch.device("meta"):
        again = build_model(**found.config)
    assert {k: v.shape for k, v in again.state_dict().items()} == {k: v.shape for k, v in own.items()}


def test_7x7_stems_keep_their_projects_dilation():
    """Without a deep stem LAD and CIRKD still dilate all of a basic block, MMSegmentation its first convolution."""
    for form, arch, backbone, dilation in (
        ("LAD/CIRKD DeepLabV3", "deeplabv3", "resnet18", 4),
        ("MMSegmentation FCN", "fcn", "resnet18_v1b", 1),
    ):
        with torch.device("meta"):
            model = build_model(arch, backbone, 19)
        keys = their_keys(model, form)
        found = recognise_network({theirs: model.state_dict()[ours] for theirs, ours in keys.items()}, "file")
        assert found.config["backbone"] == backbone
        assert model.backbone.layer4[1].conv2.dilation == (dilation, dilation)


def mobilenetv2_by_hand(weights, x):
    """CIRKD's dilated MobileNetV2 from its own keys: stride 8, then dilations; residual where the shapes allow."""

    def conv(key, norm, x, clip=True, **options):
        weight = weights[f"{key}.weight"]
        groups = x.shape[1] if weight.shape[1] == 1 else 1
        x = torch.nn.functional.conv2d(x, weight, groups=groups, **options)
        names = ("running_mean", "running_var", "weight", "bias")
        x = torch.nn.functional.batch_norm(x, *(weights[f"{norm}.{name}"] for name in names))
        return x.clamp(0, 6) if clip else x

    prefix = "pretrained.net.features"
    x = conv(f"{prefix}.0.0", f"{prefix}.0.1", x, stride=2, padding=1)
    for n in range(1, 18):
        block, y = f"{prefix}.{n}.conv", x
        stride = 2 if n in (2, 4) else 1  # 7 and 14 would be, at stride 32
        dilation = 1 if n < 8 else 2 if n < 15 else 4
        depthwise = 3 if n > 1 else 0
        if n > 1:
            y = conv(f"{block}.0", f"{block}.1", y)
        options = {"stride": stride, "padding": dilation, "dilation": dilation}
        y = conv(f"{block}.{depthwise}", f"{block}.{depthwise + 1}", y, **options)
        y = conv(f"{block}.{depthwise + 3}", f"{block}.{depthwise + 4}", y, clip=False)
        x = x + y if x.shape == y.shape else y
    return x


def cirkd_mobilenet_keys(model):
    """CIRKD's key of each of ours, for a DeepLabV3 or PSPNet on MobileNetV2."""
    blocks = [(stage, i) for stage, n in enumerate((1, 2, 3, 4, 3, 3, 1)) for i in range(n)]
    parts = {"conv_pw": 0, "bn1": 1, "conv_dw": 3, "bn2": 4, "conv_pwl": 6, "bn3": 7}
    first = {"conv_dw": 0, "bn1": 1, "conv_pw": 3, "bn2": 4}
    keys = {}
    for theirs, ours in their_keys(model, f"LAD/CIRKD {NAMES[model.config['arch']]}").items():
        if ours.startswith("backbone.blocks."):
            _, _, stage, i, part, *rest = ours.split(".")
            n = 1 + blocks.index((int(stage), int(i)))
            theirs = ".".join(
                ["pretrained.net.features", str(n), "conv", str((first if n == 1 else parts)[part]), *rest]
            )
        elif ours.startswith("backbone."):
            theirs = f"pretrained.net.features.0.{int('bn1' in ours)}.{ours.rpartition('.')[2]}"
        keys[ours] = theirs
    return keys


NAMES = {"deeplabv3": "DeepLabV3", "pspnet": "PSPNet"}


@pytest.mark.parametrize("arch", NAMES)
def test_mobilenetv2_of_cirkd(arch, tmp_path):
    model = fill_model(build_model(arch, "mobilenetv2_100", 19)).eval()
    keys = cirkd_mobilenet_keys(model)
    theirs = {keys[key]: value for key, value in model.state_dict().items()}
    assert len(theirs) == {"deeplabv3": 350, "pspnet": 338}[arch]
    loaded = from_checkpoint(save(tmp_path / "net.pth", theirs)).model
    assert loaded.config == model.config
    x = reference_input((1, 3, 65, 97))
    with torch.inference_mode():
        expected, ours = mobilenetv2_by_hand(theirs, x), loaded.backbone(x)[3]
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4 * float(expected.std()))
        assert torch.equal(loaded(x).logits, model(x).logits)


def test_label_plane_is_folded_for_a_student_and_kept_for_a_teacher(tmp_path):
    path = save(tmp_path / "lad.pth", state(LAD))
    student, teacher = from_checkpoint(path), from_checkpoint(path, assisted=True)
    assert (student.model.config["in_channels"], teacher.model.config["in_channels"]) == (3, 4)
    assert student.build_label_noise() is None
    assert teacher.build_label_noise().config == {"codes": "random", "pixel_std": 0.03, "scale": 100.0}
    x = 60 * reference_input((2, 3, 65, 97))
    with torch.inference_mode():
        folded, whole = student.model(x), teacher.model(torch.cat([x, torch.zeros_like(x[:, :1])], 1))
    torch.testing.assert_close(folded.logits, whole.logits, rtol=1e-5, atol=1e-5 * float(whole.logits.std()))


def test_the_grid_of_predictions_keeps_the_label_plane_of_a_teacher(tmp_path):
    path = str(save(tmp_path / "lad.pth", state(LAD)))
    columns = visualize.load_networks(visualize.GridConfig(teacher=path, student=(path,)))
    assert columns["teacher"].card.reads_label
    assert columns["teacher"].model.config["in_channels"] == 4
    assert not columns["student"].card.reads_label
    assert columns["student"].model.config["in_channels"] == 3


@pytest.mark.parametrize(
    "wrap",
    [
        lambda w: {"state_dict": w},
        lambda w: {"model": {f"module.{k}": v for k, v in w.items()}, "epoch": 3},
        lambda w: {"state_dict": {f"model.{k}": v for k, v in w.items()}},
        lambda w: {"state_dict": {"model": w}, "optimizer": {"lr": 1.0}},
        lambda w: {k: v.half() if v.is_floating_point() else v for k, v in w.items()},
        lambda w: {k: v for k, v in w.items() if not k.endswith("num_batches_tracked")},
    ],
    ids=["state_dict", "module", "model", "nested", "half", "no counters"],
)
def test_wrappings(wrap, tmp_path):
    loaded = from_checkpoint(save(tmp_path / "net.pth", wrap(state(FCN)))).model
    assert loaded.config["arch"] == "fcn"
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}


def test_records_of_mmsegmentation_are_read(tmp_path):
    names = [f"c{i}" for i in range(19)]
    text = "decode_head=dict(align_corners=True), auxiliary_head=dict(align_corners=True), dilations=(1, 1, 2, 4)"
    meta = {"cfg": text, "dataset_meta": {"classes": tuple(names), "palette": [[i, 0, 0] for i in range(19)]}}
    model, card = from_checkpoint(save(tmp_path / "net.pth", {"state_dict": state(FCN), "meta": meta}))
    assert card.class_names == names
    assert card.palette[3] == [3, 0, 0]
    assert all(s.align_corners for s in model.supervision)
    damaged = {"CLASSES": list(range(19)), "PALETTE": 5}
    card = from_checkpoint(save(tmp_path / "net.pth", {"state_dict": state(FCN), "meta": damaged})).card
    assert (card.class_names, card.palette) == ([], [])
    meta["cfg"] = text.replace("(1, 1, 2, 4)", "(1, 1, 1, 2)")
    with pytest.raises(UserError, match="dilations=1, 1, 1, 2"):
        from_checkpoint(save(tmp_path / "net.pth", {"state_dict": state(FCN), "meta": meta}))


USUAL = "mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True"


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (USUAL, ""),
        (USUAL.replace("[123.675, ", "[\n    123.675,\n    "), ""),
        (USUAL.replace("123.675", "100.0"), r"pixels with mean=\[100\.0, 116\.28, 103\.53\]"),
        ("mean=(123.675, 116.28, 103.53), std=(1, 1, 1)", r"pixels with std=\[1\.0, 1\.0, 1\.0\]"),
        (USUAL.replace("True", "False"), "trained on BGR pixels"),
    ],
)
def test_pixels_of_mmsegmentation_are_those_that_are_known(pixels, message, tmp_path):
    meta = {"cfg": f"data_preprocessor=dict(type='SegDataPreProcessor', {pixels})"}
    path = save(tmp_path / "net.pth", {"state_dict": state(FCN), "meta": meta})
    if not message:
        assert from_checkpoint(path).card.pixels == "imagenet"
        return
    with pytest.raises(UserError, match=message):
        from_checkpoint(path)


def without(weights, part):
    return {key: value for key, value in weights.items() if part not in key}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda: without(state(FCN), "layer4"), r"a ResNet of \(2, 2, 2, 0\) blocks"),
        (lambda: without(state(FCN), "layer4.1.conv2"), "keys missing .*layer4.1.conv2.weight"),
        (lambda: without(state(FCN), "decode_head.conv_seg"), "without its classifier"),
        (lambda: without(state(FCN), "stem.0"), "its backbone is none of ResNet"),
        (lambda: without(state(FCN), "decode_head"), "holds no network this project knows"),
        (
            lambda: {**state(FCN), "decode_head.extra.weight": torch.ones(1)},
            r"as fcn on .*unknown keys .decode_head\.ex",
        ),
        (
            lambda: {**state(FCN), "backbone.stem.0.weight": torch.ones(3)},
            "conv1.0.weight of .* is not the weight of a conv",
        ),
        (
            lambda: {**state(FCN), "decode_head.conv_seg.weight": torch.ones(())},
            r"main\.classifier\.weight of .* is no",
        ),
        (
            lambda: {**state(FCN), "auxiliary_head.conv_seg.weight": torch.ones(3)},
            r"aux\.0\.classifier\.weight of .* is",
        ),
        (lambda: {**state(FCN), "decode_head.convs.1.conv.weight": torch.ones(3, 3, 1, 1)}, "1 other shapes"),
        (lambda: {f"features.{i}.weight": torch.ones(3) for i in range(9)}, "knows .*features.0.weight"),
        (lambda: {"epoch": 3}, "holds no weights"),
        (lambda: {}, "holds no weights"),
        (lambda: [1, 2], "holds a list"),
        (lambda: build_model("fcn", "resnet18_v1c", 3).state_dict(), "bare weights of this project"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_reason(content, message, tmp_path):
    with pytest.raises(UserError, match=message):
        from_checkpoint(save(tmp_path / "net.pth", content()))


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_inputs_other_than_an_image_and_a_plane_are_refused(channels, tmp_path):
    weights = state(LAD)
    weights["pretrained.conv1.weight"] = torch.zeros(64, channels, 3, 3)
    with pytest.raises(UserError, match=rf"net\.pth: its network takes {channels} channels"):
        from_checkpoint(save(tmp_path / "net.pth", weights))
