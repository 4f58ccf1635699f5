"""Checkpoints of LAD, CIRKD, MMSegmentation and torchvision.

Our networks give the outputs of the original ones. Architecture, depth, widths and classes are inferred from the
weights, and a file that does not fit is refused.
"""

import json
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision

from models import build_model, from_checkpoint
from models.checkpoints.formats import FORMATS, translate_network
from models.checkpoints.recognition import complete_single_logit, recognise_network
from scripts.study import visualize
from tests.fill_weights import fill_model, fill_state, reference_input
from utils.errors import UserError

DATA = Path(__file__).parent / "data"
KEYS = json.loads((DATA / "reference_keys.json").read_text())
LAD = "lad_deeplabv3_resnet18"
FCN = "mmseg_fcn_r18-d8"


@lru_cache(maxsize=1)
def _generate_state(name):
    """Generate the weights of a reference network once."""
    return fill_state(KEYS[name])


def state(name):
    """Return the generated weights of a reference network, under its own keys."""
    return dict(_generate_state(name))


def save(path, content):
    """Save with torch and return the path."""
    torch.save(content, path)
    return path


@torch.inference_mode()
def run_model(model, shape=(1, 3, 65, 97)):
    """Compute the output for the reference input."""
    return model(reference_input(shape))


@pytest.mark.parametrize("name", KEYS)
def test_same_outputs_as_the_released_network(name, tmp_path):
    with np.load(DATA / "reference_logits.npz") as data:
        expected = {key.removeprefix(f"{name}/"): data[key] for key in data if key.startswith(f"{name}/")}
    weights = state(name)
    is_mmsegmentation = name.startswith("mmseg")
    content = {"state_dict": weights, "meta": {}} if is_mmsegmentation else weights
    model, card = from_checkpoint(save(tmp_path / "net.pth", content), assisted=True)
    assert card.pixels == ("imagenet" if is_mmsegmentation else "bgr_mean")
    output = run_model(model, tuple(expected.pop("input_shape")))
    assert len(expected) == 1 + len(output.aux)
    outputs = {"logits": output.logits}
    for i, aux in enumerate(output.aux):
        outputs[f"aux{i}"] = aux
    for key, value in outputs.items():
        assert np.abs(value.numpy() - expected[key]).max() / expected[key].std() < 1e-4, key


@pytest.mark.parametrize(("cls", "arch"), [("fcn_resnet50", "fcn"), ("deeplabv3_resnet50", "deeplabv3")])
def test_torchvision_networks_give_the_same_logits(cls, arch, tmp_path):
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


def map_foreign_keys(model, format_name):
    """Return a dict from a foreign key to ours, for a file of ``format_name`` that holds ``model``.

    Keys of the reference file translate as they do there. Any other backbone key, such as one of a deeper block, is
    our key with the backbone prefix of the format.
    """
    reference = {
        "LAD/CIRKD DeepLabV3": "lad_deeplabv3_resnet18",
        "LAD/CIRKD PSPNet": "lad_psp_resnet18",
        "MMSegmentation FCN": "mmseg_fcn_r18-d8",
        "MMSegmentation PSPNet": "mmseg_pspnet_r18-d8",
        "MMSegmentation DeepLabV3": "mmseg_deeplabv3_r18-d8",
        "MMSegmentation STDC": "mmseg_stdc1",
        "MMSegmentation OCRNet": "mmseg_ocrnet_hr18s",
    }[format_name]
    prefix = FORMATS[format_name].family.prefix
    known = translate_network({key: key for key in KEYS[reference]}, format_name)
    if "hrnet" in model.config["backbone"]:  # its stem has other keys than that of a ResNet
        known = {ours: theirs for ours, theirs in known.items() if not theirs.startswith(prefix)}
    keys = {}
    for key in model.state_dict():
        if key in known:
            foreign_key = known[key]
        elif key.startswith("backbone.encoder."):  # the encoder of an STDC
            foreign_key = "backbone.backbone." + key.removeprefix("backbone.encoder.")
        else:
            foreign_key = prefix + key.removeprefix("backbone.")
        keys[foreign_key] = key
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


@pytest.mark.parametrize(("format_name", "network", "widths"), VARIANTS, ids=lambda v: "-".join(map(str, v)))
def test_depth_widths_and_classes_are_inferred(format_name, network, widths):
    with torch.device("meta"):
        model = build_model(*network, **widths)
    keys = map_foreign_keys(model, format_name)
    own = model.state_dict()
    assert len(keys) == len(own)
    found = recognise_network({theirs: own[ours] for theirs, ours in keys.items()}, "file")
    assert found.format == format_name
    assert found.config.items() >= model.config.items()
    if not widths:
        assert found.config == model.config
        return
    with torch.device("meta"):
        again = build_model(**found.config)
    assert {k: v.shape for k, v in again.state_dict().items()} == {k: v.shape for k, v in own.items()}


def test_networks_with_a_7x7_stem_keep_the_dilation_of_their_project():
    """With a 7x7 stem, LAD and CIRKD dilate both convolutions of a basic block, MMSegmentation only the first one."""
    for format_name, arch, backbone, dilation in (
        ("LAD/CIRKD DeepLabV3", "deeplabv3", "resnet18", 4),
        ("MMSegmentation FCN", "fcn", "resnet18_v1b", 1),
    ):
        with torch.device("meta"):
            model = build_model(arch, backbone, 19)
        keys = map_foreign_keys(model, format_name)
        found = recognise_network({theirs: model.state_dict()[ours] for theirs, ours in keys.items()}, "file")
        assert found.config["backbone"] == backbone
        assert model.backbone.layer4[1].conv2.dilation == (dilation, dilation)


def run_mobilenetv2_by_hand(weights, x):
    """Compute the last features of CIRKD's dilated MobileNetV2 from the weights under its own keys.

    The output stride is 8: later blocks are dilated. Blocks of equal input and output shape add their input.
    """

    def apply_conv(key, norm, x, clip=True, **options):
        weight = weights[f"{key}.weight"]
        groups = x.shape[1] if weight.shape[1] == 1 else 1
        x = torch.nn.functional.conv2d(x, weight, groups=groups, **options)
        names = ("running_mean", "running_var", "weight", "bias")
        x = torch.nn.functional.batch_norm(x, *(weights[f"{norm}.{name}"] for name in names))
        return x.clamp(0, 6) if clip else x

    prefix = "pretrained.net.features"
    x = apply_conv(f"{prefix}.0.0", f"{prefix}.0.1", x, stride=2, padding=1)
    for n in range(1, 18):
        block = f"{prefix}.{n}.conv"
        y = x
        stride = 2 if n in (2, 4) else 1  # at an output stride of 32, blocks 7 and 14 have stride 2, too
        if n < 8:
            dilation = 1
        elif n < 15:
            dilation = 2
        else:
            dilation = 4
        depthwise = 3 if n > 1 else 0
        if n > 1:
            y = apply_conv(f"{block}.0", f"{block}.1", y)
        options = {"stride": stride, "padding": dilation, "dilation": dilation}
        y = apply_conv(f"{block}.{depthwise}", f"{block}.{depthwise + 1}", y, **options)
        y = apply_conv(f"{block}.{depthwise + 3}", f"{block}.{depthwise + 4}", y, clip=False)
        x = x + y if x.shape == y.shape else y
    return x


def map_cirkd_mobilenet_keys(model):
    """Return a dict from our key to CIRKD's, for a DeepLabV3 or PSPNet on MobileNetV2."""
    blocks = [(stage, i) for stage, n in enumerate((1, 2, 3, 4, 3, 3, 1)) for i in range(n)]
    block_layers = {"conv_pw": 0, "bn1": 1, "conv_dw": 3, "bn2": 4, "conv_pwl": 6, "bn3": 7}
    first_block_layers = {"conv_dw": 0, "bn1": 1, "conv_pw": 3, "bn2": 4}
    keys = {}
    for theirs, ours in map_foreign_keys(model, f"LAD/CIRKD {HEAD_NAMES[model.config['arch']]}").items():
        if ours.startswith("backbone.blocks."):
            _, _, stage, i, part, *rest = ours.split(".")
            n = 1 + blocks.index((int(stage), int(i)))
            layer_numbers = first_block_layers if n == 1 else block_layers
            theirs = ".".join(["pretrained.net.features", str(n), "conv", str(layer_numbers[part]), *rest])
        elif ours.startswith("backbone."):
            theirs = f"pretrained.net.features.0.{int('bn1' in ours)}.{ours.rpartition('.')[2]}"
        keys[ours] = theirs
    return keys


HEAD_NAMES = {"deeplabv3": "DeepLabV3", "pspnet": "PSPNet"}


@pytest.mark.parametrize("arch", HEAD_NAMES)
def test_mobilenetv2_of_cirkd_gives_the_same_features(arch, tmp_path):
    model = fill_model(build_model(arch, "mobilenetv2_100", 19)).eval()
    keys = map_cirkd_mobilenet_keys(model)
    theirs = {keys[key]: value for key, value in model.state_dict().items()}
    assert len(theirs) == {"deeplabv3": 350, "pspnet": 338}[arch]
    loaded = from_checkpoint(save(tmp_path / "net.pth", theirs)).model
    assert loaded.config == model.config
    x = reference_input((1, 3, 65, 97))
    with torch.inference_mode():
        expected = run_mobilenetv2_by_hand(theirs, x)
        ours = loaded.backbone(x)[3]
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
def test_weights_are_found_in_any_wrapping(wrap, tmp_path):
    loaded = from_checkpoint(save(tmp_path / "net.pth", wrap(state(FCN)))).model
    assert loaded.config["arch"] == "fcn"
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}


def test_classes_palette_and_settings_of_mmsegmentation_are_read(tmp_path):
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
    in_lines = "dilations=(\n    1,\n    1,\n    {},\n    {},\n)"  # as mmengine writes it
    meta["cfg"] = text.replace("dilations=(1, 1, 2, 4)", in_lines.format(2, 4))
    from_checkpoint(save(tmp_path / "net.pth", {"state_dict": state(FCN), "meta": meta}))
    for dilations in ("dilations=(1, 1, 1, 2)", in_lines.format(1, 2)):
        meta["cfg"] = text.replace("dilations=(1, 1, 2, 4)", dilations)
        with pytest.raises(UserError, match="dilations=1, 1, 1, 2"):
            from_checkpoint(save(tmp_path / "net.pth", {"state_dict": state(FCN), "meta": meta}))


USUAL_PIXELS = "mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True"


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (USUAL_PIXELS, ""),
        (USUAL_PIXELS.replace("[123.675, ", "[\n    123.675,\n    "), ""),
        (USUAL_PIXELS.replace("123.675", "100.0"), r"pixels with mean=\[100\.0, 116\.28, 103\.53\]"),
        ("mean=(123.675, 116.28, 103.53), std=(1, 1, 1)", r"pixels with std=\[1\.0, 1\.0, 1\.0\]"),
        (USUAL_PIXELS.replace("True", "False"), "trained on BGR pixels"),
    ],
)
def test_pixels_of_mmsegmentation_must_be_a_known_convention(pixels, message, tmp_path):
    meta = {"cfg": f"data_preprocessor=dict(type='SegDataPreProcessor', {pixels})"}
    path = save(tmp_path / "net.pth", {"state_dict": state(FCN), "meta": meta})
    if not message:
        assert from_checkpoint(path).card.pixels == "imagenet"
        return
    with pytest.raises(UserError, match=message):
        from_checkpoint(path)


def remove_keys(weights, part):
    """Return the weights without the keys that contain ``part``."""
    return {key: value for key, value in weights.items() if part not in key}


@pytest.mark.parametrize(
    ("make_content", "message"),
    [
        (lambda: remove_keys(state(FCN), "layer4"), r"a ResNet of \(2, 2, 2, 0\) blocks"),
        (lambda: remove_keys(state(FCN), "layer4.1.conv2"), "keys missing .*layer4.1.conv2.weight"),
        (lambda: remove_keys(state(FCN), "decode_head.conv_seg"), "without its classifier"),
        (lambda: remove_keys(state(FCN), "stem.0"), "its backbone is none of ResNet"),
        (lambda: remove_keys(state(FCN), "decode_head"), "holds no network this project knows"),
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
def test_files_that_do_not_fit_are_refused_with_a_reason(make_content, message, tmp_path):
    with pytest.raises(UserError, match=message):
        from_checkpoint(save(tmp_path / "net.pth", make_content()))


@pytest.mark.parametrize("arch", ["fcn", "ocrnet", "stdc"])
def test_two_classes_that_are_made_of_one_logit_differ_by_it(arch, capsys):
    one = build_model(arch, "resnet10t", 2)
    for branch in (one.main, *one.aux):
        if branch.supervision.kind != "detail":  # the map of boundaries is no map of classes
            branch.classifier = torch.nn.Conv2d(branch.classifier.in_channels, 1, 1)
    fill_model(one).eval()
    weights, has_single_logit = complete_single_logit(one.state_dict(), "net.pth")
    assert has_single_logit
    assert "note: net.pth has one logit" in capsys.readouterr().err
    two = build_model(arch, "resnet10t", 2).eval()
    two.load_state_dict(weights)
    logits = run_model(two).logits
    torch.testing.assert_close(logits[:, 1:] - logits[:, :1], run_model(one).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_other_inputs_than_an_image_and_a_label_plane_are_refused(channels, tmp_path):
    weights = state(LAD)
    weights["pretrained.conv1.weight"] = torch.zeros(64, channels, 3, 3)
    with pytest.raises(UserError, match=rf"net\.pth: its network takes {channels} channels; .* label plane makes 4$"):
        from_checkpoint(save(tmp_path / "net.pth", weights))


@pytest.mark.parametrize("assisted", [False, True])
def test_a_fourth_channel_of_another_project_is_no_label_plane(assisted, tmp_path):
    weights = state(FCN)
    stem = next(key for key in weights if key.endswith(("stem.0.weight", "conv1.weight")))
    weights[stem] = torch.zeros(len(weights[stem]), 4, *weights[stem].shape[2:])
    with pytest.raises(UserError, match=r"net\.pth: its network takes 4 channels; an image has 3$"):
        from_checkpoint(save(tmp_path / "net.pth", weights), assisted)
