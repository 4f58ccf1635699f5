"""Test timm networks as backbones: dilated or not, with one or several first convolutions, and unsuitable ones."""

import pytest
import timm
import torch

from models import build_model
from models.backbones import DILATED_OUTPUT_STRIDE, FULL_OUTPUT_STRIDE, build_backbone, find_stem_convs, narrow_stem
from models.checkpoints.imagenet import convert_backbone_weights
from utils import checkpoint
from utils.errors import UserError

# name: (strides at output stride 8, number of first convolutions)
NETWORKS = {
    "convnext_atto": ((4, 8, 8, 8), 1),  # its stem has stride 4, so there is no map at stride 2
    "efficientvit_b0": ((4, 8, 16, 32), 1),  # timm cannot dilate it
    "mobileone_s0": ((4, 8, 8, 8), 2),  # two branches read the image
}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("arch", ["stdc", "ocrnet"])
def test_an_assisted_teacher_gets_gradients_for_its_label_plane(name, arch):
    strides, stem_count = NETWORKS[name]
    torch.manual_seed(0)
    model = build_model(arch, name, 5, in_channels=4)
    x = torch.randn(2, 4, 65, 70)
    output = model(x)
    stride = 8 if arch == "stdc" or strides[3] == 8 else 4
    for side, expected in zip(output.logits.shape[2:], (65, 70), strict=True):
        assert abs(side - expected / stride) <= 1
    output.logits.square().mean().backward()
    convs = find_stem_convs(model.backbone)
    assert len(convs) == stem_count
    for conv in convs:
        assert conv.weight.grad[:, 3].abs().sum() > 0
    narrow_stem(model.backbone)
    assert build_model(arch, name, 5).state_dict().keys() == model.state_dict().keys()
    assert {conv.weight.shape[1] for conv in find_stem_convs(model.backbone)} == {3}


@pytest.mark.parametrize("name", NETWORKS)
def test_strides_and_imagenet_weights_of_the_whole_network(name):
    backbone = build_backbone(name)
    assert backbone.strides == NETWORKS[name][0]
    whole = timm.create_model(name).state_dict()
    checkpoint.load_weights(backbone, convert_backbone_weights(whole, backbone, "file"), "file")
    first = find_stem_convs(backbone)[0]
    shape = first.weight.shape
    assert any(value.shape == shape and torch.equal(value, first.weight) for value in whole.values())


@pytest.mark.parametrize(
    ("output_stride", "strides"), [(DILATED_OUTPUT_STRIDE, (4, 8, 8, 8)), (FULL_OUTPUT_STRIDE, (4, 8, 16, 32))]
)
def test_the_last_four_of_more_than_five_maps_are_used(output_stride, strides):
    with torch.device("meta"):
        backbone = build_backbone("darknet17", output_stride=output_stride)
    assert backbone.strides == strides
    assert backbone.channels == (128, 256, 512, 1024)


@pytest.mark.parametrize("output_stride", [DILATED_OUTPUT_STRIDE, FULL_OUTPUT_STRIDE])
@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "efficientvit_m0", "dla34", "halonet26t"])
def test_unsuitable_networks_are_refused(name, output_stride):
    with pytest.raises(UserError, match=f"backbone '{name}' cannot be used: needed are four maps"):
        build_backbone(name, output_stride=output_stride)
