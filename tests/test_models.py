"""Architectures: sizes, parameter counts, label planes, gradients, and every pair of teacher and student."""

import pytest
import torch

from datasets import build_train_and_val
from losses import LOSSES, build_kd
from losses.task import TaskLoss
from models import ARCHITECTURES, build_model
from models.label_noise import LabelNoise
from train_student import StudentStep
from train_teacher import TeacherStep
from utils.errors import UserError
from utils.pixels import CONVENTIONS
from utils.seeding import RowGenerator

K = 7
FIVE = {
    "fcn": "resnet10t",
    "pspnet": "mobilenetv2_100",
    "deeplabv3": "mobilenetv2_100",
    "stdc": "stdc1",
    "ocrnet": "hrnet_w18_small_v2",
}
STRIDE = {"ocrnet": 4}  # output stride of the logits; 8 for the other architectures
# numbers of parameters of the released networks, with their auxiliary branches
COUNTS = {
    ("deeplabv3", "resnet18_v1s", 21, 4): 13_608_938,
    ("deeplabv3", "resnet50_v1s", 21, 4): 42_128_426,
    ("deeplabv3", "resnet101_v1s", 21, 4): 61_120_554,
    ("pspnet", "resnet18_v1s", 21, 4): 12_920_298,
    ("pspnet", "resnet50_v1s", 21, 4): 49_082_154,
    ("pspnet", "resnet101_v1s", 21, 4): 68_074_282,
    ("deeplabv3", "mobilenetv2_100", 21, 3): 3_233_429,
    ("pspnet", "mobilenetv2_100", 21, 3): 2_654_997,
    ("deeplabv3_cirkd1", "resnet101_v1s", 21, 4): 61_120_554,
    ("deeplabv3_cirkd2", "resnet18_v1s", 19, 3): 22_762_918,
    ("deeplabv3_cirkd2", "resnet101_v1s", 19, 3): 79_084_262,
    ("pspnet_cirkd2", "resnet18_v1s", 19, 3): 12_919_334,
    ("fcn", "resnet18_v1c", 19, 3): 12_822_342,
    ("fcn", "resnet101_v1c", 19, 3): 68_489_862,
    ("pspnet_mmseg", "resnet18_v1c", 19, 3): 12_790_086,
    ("pspnet_mmseg", "resnet101_v1c", 19, 3): 67_967_622,
    ("deeplabv3_mmseg", "resnet18_v1c", 19, 3): 13_986_374,
    ("deeplabv3_mmseg", "resnet101_v1c", 19, 3): 87_105_158,
    ("stdc", "stdc1", 19, 3): 8_573_022,
    ("stdc", "stdc2", 19, 3): 12_603_486,
    ("ocrnet", "hrnet_w18_small_v2", 19, 3): 6_378_496,
    ("ocrnet", "hrnet_w18", 19, 3): 12_080_036,
}


@pytest.mark.parametrize("network", COUNTS, ids=lambda n: "-".join(map(str, n)))
def test_parameter_count(network):
    with torch.device("meta"):
        model = build_model(*network)
    assert sum(p.numel() for p in model.parameters()) == COUNTS[network]


def test_dropout_without_a_layer_for_it_is_refused():
    model = build_model("smp_unet", "resnet10t", 5)
    model.set_dropout(0)
    with pytest.raises(UserError, match=r"--dropout 0\.3: there is no dropout layer"):
        model.set_dropout(0.3)


def test_dropout_of_the_heads_does_not_change_the_backbone():
    model = build_model("pspnet", "pvt_v2_b0", 5)
    model.set_dropout(0.3)
    rates = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Dropout):
            rates.setdefault(name.split(".")[0], set()).add(module.p)
    assert rates == {"backbone": {0.0}, "main": {0.3}}


@pytest.mark.parametrize(("arch", "dropout"), [("deeplabv3", [0.01] * 3), ("deeplabv3_cirkd1", [0.5, 0.1, 0.1])])
def test_dropout_of_the_releases(arch, dropout):
    model = build_model(arch, "resnet18_v1s", 5)
    assert [m.p for m in model.modules() if isinstance(m, torch.nn.Dropout)] == dropout


@pytest.mark.parametrize("size", [(64, 96), (51, 33)])
@pytest.mark.parametrize("arch", FIVE)
def test_any_input_size_works_and_every_weight_gets_a_gradient(arch, size):
    model = build_model(arch, FIVE[arch], K, in_channels=4)
    output = model(torch.randn(2, 4, *size))
    stride = STRIDE.get(arch, 8)
    assert output.logits.shape == (2, K, *(-(-side // stride) for side in size))
    assert output.feat.shape[1] == model.main.head.out_channels
    assert len(output.aux) == len(model.aux) == len(model.supervision) - 1
    sum(x.square().mean() for x in (output.logits, *output.aux)).backward()
    without_gradient = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not without_gradient


@pytest.mark.parametrize("arch", FIVE)
def test_leaving_out_auxiliary_maps_does_not_change_the_logits(arch):
    model = build_model(arch, FIVE[arch], K).eval()
    x = torch.randn(1, 3, 65, 97)
    with torch.inference_mode():
        torch.testing.assert_close(model(x, with_aux=False).logits, model(x).logits, rtol=0, atol=0)


@pytest.mark.parametrize("arch", FIVE)
def test_every_architecture_learns_as_teacher_and_as_student(arch):
    """Train each for ten iterations on crops of odd size. The loss falls and every weight stays finite."""
    convention = CONVENTIONS["imagenet"]
    spec, train, _ = build_train_and_val("toy", crop_size=(33, 41), pad_color=convention.pad_color)
    classes = len(spec.names)
    torch.manual_seed(0)
    noise = LabelNoise(classes, "random", 0.03, convention.label_scale)
    teacher = build_model(arch, FIVE[arch], classes, in_channels=4)
    student = build_model(arch, FIVE[arch], classes)
    width = student.main.head.out_channels
    kd = build_kd("cwd=1", width, width, classes)
    teacher_step = TeacherStep(teacher, noise, TaskLoss(teacher.supervision), kd, single_path=True)
    student_step = StudentStep(student, TaskLoss(student.supervision), teacher, noise, kd)
    for step, model in ((teacher_step, teacher), (student_step, student)):
        model.requires_grad_(True)
        step.train()
        learnable = [p for name, p in model.named_parameters() if not name.endswith("fusion")]
        optimizer = torch.optim.SGD(learnable, 0.01, 0.9)
        losses = []
        for i in range(10):
            samples = [train[2 * (i % 4) + j] for j in range(2)]
            image, label = (torch.stack(part) for part in zip(*samples, strict=True))
            terms = step(convention.normalize(image), label.long(), RowGenerator(i))
            optimizer.zero_grad()
            terms["loss"].backward()
            optimizer.step()
            losses.append(terms["loss"].item())
        assert sum(losses[-3:]) < sum(losses[:3]), losses
        assert all(torch.isfinite(value).all() for value in model.state_dict().values())


# The first three dilate the encoder, which an HRNet does not support.
# The last one pads its input to multiples of 8, but an HRNet needs multiples of 32.
NOT_ON_HRNET = ("smp_deeplabv3", "smp_deeplabv3plus", "smp_pan", "smp_pspnet")


def test_decoders_that_an_hrnet_does_not_fit_are_refused():
    for arch in NOT_ON_HRNET:
        with pytest.raises(UserError, match=f"{arch} cannot be built on backbone 'hrnet_w18_small': "):
            build_model(arch, "hrnet_w18_small", K)


@pytest.mark.parametrize("arch", [arch for arch in ARCHITECTURES if arch not in NOT_ON_HRNET])
def test_every_weight_of_an_hrnet_gets_a_gradient(arch):
    """DistributedDataParallel would wait for a gradient that never comes."""
    with torch.device("meta"):
        model = build_model(arch, "hrnet_w18_small", K)
        output = model(torch.zeros(2, 3, 64, 64))
        sum(x.sum() for x in (output.logits, *output.aux)).backward()
    assert not [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]


def test_every_pair_distils_with_every_loss_on_logits():
    """The teachers and students differ in stride, width and feature size."""
    x, label = torch.randn(2, 3, 65, 97), torch.randint(0, K, (2, 65, 97))
    outputs = {arch: build_model(arch, backbone, K)(x) for arch, backbone in FIVE.items()}
    on_logits = [name for name in ("kd", "cwd", "dist") if name in LOSSES]
    for s_name, student in outputs.items():
        for t_name, teacher in outputs.items():
            widths = student.feat.shape[1], teacher.feat.shape[1]
            kd = build_kd(",".join(f"{name}=1" for name in on_logits), *widths, K)
            total, terms = kd(student, teacher, label)
            assert torch.isfinite(total), (s_name, t_name, terms)


@pytest.mark.parametrize("arch", ["fcn", "pspnet", "deeplabv3_mmseg", "ocrnet"])
def test_heads_run_on_other_backbones(arch):
    """The four maps of the HRNet differ in size. In STDC, c4 is not the widest map."""
    for backbone in ("hrnet_w18_small", "stdc1"):
        with torch.device("meta"):
            output = build_model(arch, backbone, K).eval()(torch.zeros(1, 3, 64, 64))
        assert output.logits.shape[1] == K


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (("ocrnett", "resnet18", K), "did you mean 'ocrnet'"),
        (("fcn", "hrnet_w18_smal", K), "did you mean 'hrnet_w18_small"),
        (("stdc", "vit_base_patch16_224", K), "cannot be used"),
        (("fcn", "vit_base_patch16_224", K), "cannot be used"),
        (("fcn", "resnet18", K, 1), "2 classes and 3 channels or more"),
        (("fcn", "resnet18", 1), "2 classes and 3 channels or more"),
    ],
)
def test_networks_that_cannot_be_built_are_refused(network, message):
    with pytest.raises(UserError, match=message):
        build_model(*network)


def test_an_unknown_width_option_is_refused():
    with pytest.raises(UserError, match="unknown option of fcn 'branch_width'"):
        build_model("fcn", "resnet18", K, branch_width=3)
