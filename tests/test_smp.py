"""Test the decoders of segmentation_models_pytorch: equal logits, any image size, its files, and error messages."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import segmentation_models_pytorch as library
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from datasets.network_classes import require_classes
from datasets.toy import TOY
from losses import LOSSES, build_kd
from models import build_model, from_checkpoint
from models.architectures.smp import DECODERS
from models.checkpoints.imagenet import get_encoder, load_base
from tests.conftest import BACKBONE
from utils.errors import UserError

K = 5
SMALL = "test_efficientnet"  # a timm network of 0.3 million parameters, with maps at strides 2 to 32
SIZE = (128, 160)  # every decoder accepts these sides without padding


def build_library_model(arch: str, encoder: str = f"tu-{SMALL}", **options: object) -> torch.nn.Module:
    """Build the library's own network, with random running statistics instead of 0 and 1."""
    torch.manual_seed(0)
    model = library.create_model(DECODERS[arch], encoder, encoder_weights=None, **{"classes": K, **options})
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return model.eval()


def upsample(logits: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Upsample logits to the size of the image, as the library does."""
    return F.interpolate(logits, size, mode="bilinear", align_corners=True)


def check_same_logits(folder: Path, theirs: torch.nn.Module) -> None:
    """Check that the network loaded from a folder gives the logits of the library's network."""
    image = torch.randn(1, 3, 64, 96)
    logits = upsample(from_checkpoint(folder).model(image).logits, (64, 96))
    torch.testing.assert_close(logits, theirs(image), rtol=1e-5, atol=1e-5)


def test_every_decoder_of_the_library_except_dpt_is_supported():
    assert {*DECODERS.values(), "dpt"} == {*library.MODEL_ARCHITECTURES_MAPPING}


@pytest.mark.parametrize("arch", DECODERS)
@torch.inference_mode()
def test_logits_equal_those_of_the_library(arch, tmp_path):
    """At odd sizes our network pads the image, so its logits are a crop of the padded image's logits."""
    theirs = build_library_model(arch)
    theirs.save_pretrained(tmp_path)
    ours = from_checkpoint(tmp_path).model
    image = torch.randn(1, 3, *SIZE)
    output = ours(image)
    assert output.logits.shape[-2:] == output.feat.shape[-2:]
    torch.testing.assert_close(upsample(output.logits, SIZE), theirs(image), rtol=1e-5, atol=1e-5)

    odd = torch.randn(1, 3, 241, 181)
    divisor = theirs.encoder.output_stride
    padded = F.pad(odd, (0, -181 % divisor, 0, -241 % divisor))
    expected = theirs(padded)[..., :241, :181]
    torch.testing.assert_close(ours(odd).logits, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("arch", DECODERS)
@pytest.mark.parametrize("size", [(1, 1), (33, 250)])
def test_images_of_any_size_are_accepted(arch, size):
    output = build_model(arch, SMALL, K).eval()(torch.zeros(1, 3, *size))
    assert output.logits.shape == (1, K, *size)


@pytest.mark.parametrize("arch", ["smp_fpn", "smp_unet", "smp_deeplabv3plus"])
@pytest.mark.parametrize("size", [(32, 64), (40, 50)])
def test_teacher_and_student_with_every_loss(arch, size):
    """The network pads images of the second size. Its logits and features then have different sizes."""
    teacher, student = build_model(arch, SMALL, K, in_channels=4), build_model(arch, SMALL, K)
    image, label = torch.randn(2, 4, *size), torch.randint(0, K, (2, *size))
    names = ",".join(f"{name}=1" for name in LOSSES if name not in ("cirkd_pixel", "cirkd_region"))
    kd = build_kd(names, student.feature_channels, teacher.feature_channels, K)
    total, terms = kd(student(image[:, :3]), teacher(image), label)
    assert torch.isfinite(total), terms
    total.backward()
    assert all(p.grad is not None for p in student.main.head.parameters())


@pytest.mark.parametrize("encoder", ["resnet18", "mit_b0"])
@torch.inference_mode()
def test_plain_state_dict_of_the_librarys_own_encoders(encoder, tmp_path):
    theirs = build_library_model("smp_fpn", encoder)
    torch.save(
        {"state_dict": {f"module.{key}": value for key, value in theirs.state_dict().items()}}, tmp_path / "a.pth"
    )
    loaded = from_checkpoint(tmp_path / "a.pth")
    assert loaded.card.arch["backbone"] == f"smp-{encoder}"
    image = torch.randn(1, 3, 64, 96)
    torch.testing.assert_close(upsample(loaded.model(image).logits, (64, 96)), theirs(image), rtol=1e-5, atol=1e-5)


@torch.inference_mode()
def test_a_plain_state_dict_needs_the_name_of_its_timm_encoder(tmp_path):
    theirs = build_library_model("smp_unet")
    torch.save(theirs.state_dict(), tmp_path / "a.pth")
    with pytest.raises(UserError, match="does not say which of timm's networks its encoder is: --backbone NAME"):
        from_checkpoint(tmp_path / "a.pth")
    with pytest.raises(UserError, match="does not fit this network"):
        from_checkpoint(tmp_path / "a.pth", backbone=BACKBONE)
    image = torch.randn(1, 3, 64, 96)
    ours = from_checkpoint(tmp_path / "a.pth", backbone=SMALL).model
    torch.testing.assert_close(ours(image).logits, theirs(image), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["a.pth", "folder"])
def test_the_encoder_of_a_file_is_taken_for_other_classes(name, tmp_path):
    theirs = build_library_model("smp_unet")
    if name == "folder":
        theirs.save_pretrained(tmp_path / name)
    else:
        torch.save(theirs.state_dict(), tmp_path / name)
    model = build_model("smp_fpn", SMALL, 5)
    load_base(model, str(tmp_path / name), "imagenet")
    weights = theirs.encoder.state_dict()
    for key, value in get_encoder(model).state_dict().items():
        assert torch.equal(value, weights[f"model.{key}"])


@torch.inference_mode()
def test_options_one_logit_and_image_labels_of_a_saved_network(tmp_path, capsys):
    """One logit z for a sigmoid becomes the two logits (0, z). A head that classifies whole images is ignored."""
    theirs = build_library_model("smp_fpn", classes=1, decoder_pyramid_channels=32, aux_params={"classes": 3})
    theirs.save_pretrained(tmp_path)
    loaded = from_checkpoint(tmp_path)
    assert loaded.card.arch["decoder_pyramid_channels"] == 32
    assert loaded.card.has_single_logit
    assert "has one logit: class 1 where it is above 0, else class 0\n" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"has one logit and no class names: .* give --other-class-names"):
        require_classes(loaded.card, replace(TOY, names=("sky", "road")), "folder", "F", allow_other_names=False)
    image = torch.randn(1, 3, 64, 96)
    logits = upsample(loaded.model(image).logits, (64, 96))
    z, _ = theirs(image)
    torch.testing.assert_close(logits, torch.cat([torch.zeros_like(z), z], 1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("arch", "older"),
    [
        ("smp_unet", {"decoder_use_batchnorm": False}),
        ("smp_linknet", {"decoder_use_batchnorm": True}),
        ("smp_pspnet", {"psp_use_batchnorm": False}),
        ("smp_pan", {"upscale_mode": "nearest"}),
    ],
)
@torch.inference_mode()
@pytest.mark.filterwarnings("ignore:The usage of")
def test_options_under_their_older_names(arch, older, tmp_path):
    theirs = build_library_model(arch, **older)
    theirs.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **older}))
    image = torch.randn(1, 3, *SIZE)
    logits = upsample(from_checkpoint(tmp_path).model(image).logits, SIZE)
    torch.testing.assert_close(logits, theirs(image), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("encoder", ["timm-regnetx_002", "timm-mobilenetv3_small_075"])
@torch.inference_mode()
@pytest.mark.filterwarnings("ignore:`timm-` encoders")
def test_older_names_of_timms_networks(encoder, tmp_path):
    theirs = build_library_model("smp_fpn", encoder)
    theirs.save_pretrained(tmp_path)
    check_same_logits(tmp_path, theirs)


@pytest.mark.parametrize("encoder", ["timm-regnetx_002", "timm-gernet_s"])
@torch.inference_mode()
@pytest.mark.filterwarnings("ignore:`timm-` encoders")
def test_older_keys_of_timms_networks(encoder, tmp_path):
    """Older versions of the library had their own copies of timm's networks, with other keys."""
    theirs = build_library_model("smp_fpn", encoder)
    theirs.save_pretrained(tmp_path)
    older = {}
    for key, value in load_file(tmp_path / "model.safetensors").items():
        key = key.replace("encoder.model.", "encoder.")
        if "gernet" in encoder:
            key = key.replace(".stages_", ".stages.")
        older[key] = value
    save_file(older, tmp_path / "model.safetensors")
    check_same_logits(tmp_path, theirs)
    torch.save(older, tmp_path / "plain.pth")
    backbone = encoder.removeprefix("timm-")
    assert from_checkpoint(tmp_path / "plain.pth", backbone=backbone).card.arch["backbone"] == backbone


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("encoder.layer1.0.conv2.weight", None, "does not fit this network: 1 keys missing"),
        ("encoder.layer1.0.conv2.weight", torch.tensor(1.0), "do not tell which encoder"),
        ("segmentation_head.0.weight", torch.tensor(1.0), "is damaged: the weight of its classifier"),
        ("segmentation_head.0.bias", torch.full((K,), torch.nan), "that wrote it had failed$"),
    ],
)
def test_damaged_plain_state_dicts_are_refused(key, value, message, tmp_path):
    weights = dict(build_library_model("smp_fpn", "resnet18").state_dict())
    weights.pop(key)
    if value is not None:
        weights[key] = value
    torch.save(weights, tmp_path / "a.pth")
    with pytest.raises(UserError, match=message):
        from_checkpoint(tmp_path / "a.pth")


def test_a_backbone_that_rearranges_the_image_reads_no_label_plane():
    build_model("smp_fpn", "tresnet_m", K)
    with pytest.raises(UserError, match="backbone 'tresnet_m' cannot read a label plane"):
        build_model("smp_fpn", "tresnet_m", K, in_channels=4)


def test_options_missing_in_a_plain_state_dict_are_assumed_with_a_warning(tmp_path, capsys):
    """The shapes of the weights do not show every option. Counters of batches may be missing too."""
    weights = build_library_model("smp_fpn", "resnet18").state_dict()
    fewer = {key: value for key, value in weights.items() if not key.endswith("num_batches_tracked")}
    torch.save(fewer, tmp_path / "a.pth")
    from_checkpoint(tmp_path / "a.pth")
    assert "does not say the options of its decoder and encoder; they are taken to be" in capsys.readouterr().err
    torch.save(build_library_model("smp_fpn", "resnet18", decoder_pyramid_channels=32).state_dict(), tmp_path / "a.pth")
    with pytest.raises(UserError, match=r"does not fit .*, which model\.save_pretrained writes: save it so"):
        from_checkpoint(tmp_path / "a.pth")


def test_an_assumed_pixel_normalisation_is_printed(tmp_path, capsys):
    build_library_model("smp_fpn").save_pretrained(tmp_path)
    pixels = from_checkpoint(tmp_path).card.pixels
    assert f"its images are taken to be normalised as {pixels!r}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"_model_class": "DPT"}, "'s dpt is no network here: it reads the tokens of a vision transformer"),
        (
            {"_model_class": "Unet3"},
            "unknown decoder of segmentation_models_pytorch .* 'unet3'; did you mean 'unet'",
        ),
        ({"classes": K + 1}, f"config.json says {K + 1} classes, the weights have {K}"),
        ({"encoder_name": "tu-resnet10000"}, "unknown backbone 'resnet10000'"),
        ({"encoder_name": "resnet18"}, "does not fit this network"),
        ({"encoder_name": None}, r"config\.json does not name the encoder"),
        ({"upsampling": 2}, "its logits are at stride 4, 'upsampling' is 2"),
        ({"in_channels": 4}, "its network takes 4 channels; an image has 3"),
        ({"drop_path_rate": 0.1}, "was built with drop_path_rate=0.1, which this project does not have"),
    ],
)
def test_saved_networks_that_cannot_be_read_are_refused(changes, message, tmp_path):
    build_library_model("smp_fpn").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(UserError, match=message):
        from_checkpoint(tmp_path)


def test_another_backbone_than_that_of_a_saved_network_is_refused(tmp_path):
    build_library_model("smp_fpn").save_pretrained(tmp_path)
    with pytest.raises(UserError, match=f"--backbone resnet18: the encoder of .* is {SMALL}, says its config.json"):
        from_checkpoint(tmp_path, backbone="resnet18")
    assert from_checkpoint(tmp_path, backbone=SMALL).card.arch["backbone"] == SMALL


def test_a_deeply_nested_config_is_called_damaged(tmp_path):
    build_library_model("smp_fpn").save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("[" * 100000)
    with pytest.raises(UserError, match=r"config\.json is damaged"):
        from_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (("smp_fnp", "resnet18"), "did you mean 'smp_fpn'"),
        (("fpn", "resnet18"), "did you mean 'smp_fpn'"),
        (("Unet", "resnet18"), "did you mean 'smp_unet'"),
        (("smp_dpt", "resnet18"), "segmentation_models_pytorch has it, but it reads the tokens"),
        (("smp_fpn", "resnet1888"), "did you mean 'resnet18'"),
        (("smp_fpn", "mit_b0"), "write 'smp-mit_b0'"),
        (("smp_fpn", "tu-resnet18"), "timm's names here: 'resnet18'"),
        (("smp_fpn", "vit_base_patch16_224"), "smp_fpn cannot be built on backbone 'vit_base_patch16_224'"),
        (("smp_deeplabv3", "smp-vgg11"), "do not support dilated mode"),
        (("fcn", "smp-resnet18"), "are for --model smp_... only"),
    ],
)
def test_networks_that_cannot_be_built_are_refused(network, message):
    with pytest.raises(UserError, match=message):
        build_model(*network, K)


@pytest.mark.parametrize("arch", DECODERS)
def test_every_trainable_weight_gets_a_gradient(arch):
    """DistributedDataParallel waits for every gradient, so stages that the decoder does not use must be frozen."""
    model = build_model(arch, "smp-resnet18", K, in_channels=4)
    output = model.train()(torch.randn(2, 4, *SIZE))
    output.logits.sum().backward()
    assert not [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert all(p.requires_grad for p in model.main.parameters())


def test_an_unknown_option_of_a_decoder_is_refused():
    with pytest.raises(UserError, match="unknown option of smp_fpn 'decoder_channels'"):
        build_model("smp_fpn", SMALL, K, decoder_channels=3)
