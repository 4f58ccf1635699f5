"""Test losses on features and classes: reference values, independent formulas, and rules that hold for every loss."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from losses import LOSSES, build_kd
from losses.af_dcd import af_dcd_loss
from losses.at import at_loss
from losses.cirkd_channel import channel_memory_loss, channel_minibatch_loss, channel_mse_loss, pool_features
from losses.cwd_feat import cwd_feat_loss
from losses.dsd import csd_loss, psd_loss
from losses.fitnet import fitnet_loss
from losses.ifvd import ifvd_loss
from losses.mgd import mask_pixels, mgd_loss
from losses.nfd import nfd_loss
from losses.projector import build_projector
from losses.skd import skd_loss
from utils.errors import UserError
from utils.types import Output

SMALL = {"cirkd_pixel": ":size=9", "cirkd_region": ":size=5"}
SMALL["cirkd2"] = ":pixel_size=9:region_size=5:channel_size=7"
ALL_LOSSES = [f"{name}=0.5{SMALL.get(name, '')}" for name in LOSSES]


def compute_channel_features(golden) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute what the channel terms compare: pooled features of both networks, the student's also projected."""
    project = build_projector(6, 9).double()
    names = ("project1", "project1_bn_weight", "project1_bn_bias", "project2")
    keys = ("0.weight", "1.weight", "1.bias", "3.weight")
    project.load_state_dict({key: golden[name] for key, name in zip(keys, names, strict=True)}, strict=False)
    return project(pool_features(golden["student_feat"])), pool_features(golden["teacher_feat"])


def get_maps(golden, who: str) -> list[torch.Tensor]:
    """Return the auxiliary map, the features and the logits of the student or the teacher."""
    return [golden[f"{who}_{name}"] for name in ("aux", "feat", "logits")]


REFERENCE = {
    "at": lambda g, s, t: at_loss(s, t),
    "fitnet": lambda g, s, t: fitnet_loss(F.conv2d(s, g["conv_feat"]), t),
    "cwd_feat_T4": lambda g, s, t: cwd_feat_loss(F.conv2d(s, g["conv_feat"]), t, s.shape[1], 4),
    "skd": lambda g, s, t: skd_loss(s, t),
    "ifvd": lambda g, s, t: ifvd_loss(s, t, g["label"].long(), 5),
    "dsd_psd": lambda g, s, t: psd_loss(get_maps(g, "student"), get_maps(g, "teacher")),
    "dsd_csd": lambda g, s, t: csd_loss(g["student_logits"], g["teacher_logits"]),
    "cirkd2_channel_minibatch": lambda g, s, t: channel_minibatch_loss(*compute_channel_features(g)),
    "cirkd2_channel_memory": lambda g, s, t: channel_memory_loss(*compute_channel_features(g), g["channel_queue"]),
    "cirkd2_channel_mse": lambda g, s, t: channel_mse_loss(*compute_channel_features(g)),
}


@pytest.mark.parametrize("name", REFERENCE)
def test_golden_numbers_of_cirkd(golden, name):
    loss = REFERENCE[name](golden, golden["student_feat"], golden["teacher_feat"])
    assert loss.item() == pytest.approx(golden[f"loss_{name}"].item(), rel=1e-6)


def make_outputs(size=(6, 7), teacher_size=(6, 7), seed=0) -> tuple[Output, Output, torch.Tensor]:
    """Return random outputs of a student (6 channels) and a teacher (16 channels), and the label.

    There are two images and five classes. All outputs can receive a gradient.
    """
    generator = torch.Generator().manual_seed(seed)

    def make_output(channels: int, size: tuple[int, int]) -> Output:
        logits, aux, feat = (torch.randn(2, c, *size, generator=generator).requires_grad_() for c in (5, 5, channels))
        return Output(logits, (aux,), feat)

    label = torch.randint(0, 5, (2, 21, 30), generator=generator)
    label[:, :5] = 255
    return make_output(6, size), make_output(16, teacher_size), label


def test_ifvd_by_a_loop_over_classes():
    s, t, label = make_outputs()
    label[0][label[0] == 3] = 255  # a class that one image lacks
    small = F.interpolate(label[:, None].float(), (6, 7), mode="nearest")[:, 0].numpy()
    maps = []
    for feat in (s.feat.detach().double().numpy(), t.feat.detach().double().numpy()):
        centre = feat.copy()
        for i in range(2):
            for k in range(5):
                if (small[i] == k).any():
                    centre[i][:, small[i] == k] = feat[i][:, small[i] == k].mean(1, keepdims=True)
        maps.append((feat * centre).sum(1) / np.linalg.norm(feat, axis=1) / np.linalg.norm(centre, axis=1))
    expected = ((maps[0] - maps[1]) ** 2).mean()
    assert ifvd_loss(s.feat.double(), t.feat.double(), label, 5).item() == pytest.approx(expected, rel=1e-9)


def test_nfd_by_an_independent_formula():
    s, t, _ = make_outputs()
    kernel = torch.randn(16, 6, 1, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    projected = np.einsum("oc,bchw->bohw", kernel[:, :, 0, 0].numpy(), s.feat.detach().double().numpy())
    a, b = (
        (x - x.mean((2, 3), keepdims=True)) / x.std((2, 3), keepdims=True)
        for x in (projected, t.feat.detach().double().numpy())
    )
    loss = nfd_loss(F.conv2d(s.feat.double(), kernel), t.feat.double(), eps=0)
    assert loss.item() == pytest.approx(((a - b) ** 2).mean(), rel=1e-9)


def test_nfd_ignores_scale_and_offset_and_allows_dead_channels():
    _, t, _ = make_outputs()
    dead = t.feat.detach().clone()
    dead[:, 0] = 0
    assert nfd_loss(7 * dead + 3, dead).item() == pytest.approx(0, abs=1e-4)


def test_mgd_masks_whole_pixels_with_its_probability():
    feat = torch.ones(4, 3, 50, 50)
    kept = mask_pixels(feat, 0.75)
    assert torch.equal(kept[:, 0], kept[:, 2])
    assert kept.mean().item() == pytest.approx(0.25, abs=0.02)
    assert torch.equal(mask_pixels(feat, 0.0), feat)
    assert mgd_loss(feat, 3 * feat).item() == pytest.approx(4 * 3 * 50 * 50)


def test_af_dcd_by_loops_over_patches_positions_and_groups():
    generator = torch.Generator().manual_seed(0)
    s, t = (torch.randn(2, 6, 5, 9, generator=generator, dtype=torch.float64) for _ in range(2))
    a, b = (F.max_pool2d(x, 2).numpy() for x in (s, t))  # 2 x 4: two patches of 2 x 2
    values = []
    for i in range(2):
        for left in (0, 2):
            positions = [(g, y, left + x) for y in range(2) for x in range(2) for g in range(3)]
            for g, y, x in positions:

                def distance(h, v, u, g=g, y=y, x=x, i=i):
                    return -np.abs(a[i, 2 * g : 2 * g + 2, y, x] - b[i, 2 * h : 2 * h + 2, v, u]).sum() / 0.5

                own = distance(g, y, x)
                others = [distance(*position) for position in positions if position[0] != g]
                values.append(np.log(np.exp([own, *others]).sum()) - own)
    loss = af_dcd_loss(s, t, groups=3, pool=2, patch=2, tau=0.5)
    assert loss.item() == pytest.approx(3 * np.mean(values), rel=1e-9)


@pytest.mark.parametrize("kd", ALL_LOSSES)
def test_gradients_reach_the_student_and_own_parameters_and_not_the_teacher(kd):
    torch.manual_seed(0)
    s, t, label = make_outputs(teacher_size=(8, 9))
    losses = build_kd(kd, 6, 16, 5).train()
    total, terms = losses(s, t, label)
    assert torch.isfinite(total)
    assert all(torch.isfinite(term) for term in terms.values())
    total.backward()
    assert any(x.grad is not None and x.grad.abs().sum() > 0 for x in (s.feat, s.logits))
    assert all(x.grad is None for x in (t.feat, t.logits, *t.aux))
    for name, parameter in losses.named_parameters():
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("name", ["at", "skd", "ifvd", "dsd", "nfd", "cwd_feat", "cirkd"])
def test_losses_are_zero_if_the_student_equals_its_teacher(name):
    _, t, label = make_outputs()
    same = Output(*(x if isinstance(x, tuple) else x.detach() for x in t))
    total, _ = build_kd(f"{name}=1", 16, 16, 5)(same, t, label)
    assert total.item() == pytest.approx(0, abs=1e-6)


class NoReadBack(TorchDispatchMode):
    """Fail if a value, or the number of true values, would have to come back from the device."""

    read_backs = ("aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::equal")

    def has_mask_index(self, name, args):
        """Return whether an operation indexes a tensor with a boolean mask."""
        if not name.startswith(("aten::index", "aten::_index_put")) or not isinstance(args[1], list):
            return False
        return any(isinstance(index, torch.Tensor) and index.dtype == torch.bool for index in args[1])

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.name()
        if name.startswith(self.read_backs) or self.has_mask_index(name, args):
            raise AssertionError(f"{name} reads back from the device")
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("kd", ALL_LOSSES)
def test_no_loss_reads_back_from_the_device(kd, monkeypatch):
    # Adam reads its step count, which is always on the host; this is no read-back from the device
    monkeypatch.setattr(torch.optim.Adam, "step", lambda self: None)
    losses = build_kd(kd, 6, 16, 5).train()
    losses(*make_outputs())
    with NoReadBack():
        losses(*make_outputs(seed=1))[0].backward()


def test_a_read_back_raises():
    with pytest.raises(AssertionError, match="reads back"), NoReadBack():
        torch.ones(3)[torch.ones(3) > 0]
    with pytest.raises(AssertionError, match="reads back"), NoReadBack():
        torch.ones(()).item()


def test_terms_and_their_parts_are_returned_with_and_without_weights():
    s, t, label = make_outputs()
    losses = build_kd("dsd=0.5:psd=1000:csd=10,at=3", 6, 16, 5)
    total, terms = losses(s, t, label)
    assert terms.keys() == {"dsd", "dsd_psd", "dsd_csd", "at"}
    assert terms["dsd"].item() == pytest.approx(1000 * terms["dsd_psd"].item() + 10 * terms["dsd_csd"].item())
    weighted = {name: term.item() for name, term in losses.apply_weights(terms).items()}
    assert weighted["dsd_psd_weighted"] == pytest.approx(500 * terms["dsd_psd"].item())
    assert weighted["at_weighted"] == pytest.approx(3 * terms["at"].item())
    assert total.item() == pytest.approx(weighted["dsd_weighted"] + weighted["at_weighted"])


@pytest.mark.parametrize("aux", [(True, False), (False, True), (False, False)])
def test_dsd_leaves_out_an_auxiliary_map_that_only_one_network_has(aux):
    s, t, label = make_outputs()
    without = [output if keep else output._replace(aux=()) for output, keep in zip((s, t), aux, strict=True)]
    _, terms = build_kd("dsd=1", 6, 16, 5)(*without, label)
    expected = psd_loss([s.feat, s.logits], [t.feat, t.logits])
    assert terms["dsd_psd"].item() == expected.item()


@pytest.mark.parametrize("kd", ALL_LOSSES)
def test_reads_aux_says_whether_a_loss_reads_the_teachers_auxiliary_maps(kd):
    s, t, label = make_outputs()
    values = []
    for teacher in (t, t._replace(aux=())):
        torch.manual_seed(0)
        losses = build_kd(kd, 6, 16, 5)
        values.append(losses(s, teacher, label)[0].item())
    (loss,) = losses.losses.values()
    assert getattr(loss, "reads_aux", False) == (values[0] != values[1])


def test_another_number_of_classes_is_refused():
    s, t, label = make_outputs()
    with pytest.raises(UserError, match="student has 5 classes, its teacher 3"):
        build_kd("at=1", 6, 16, 5)(s, t._replace(logits=t.logits[:, :3]), label)


@pytest.mark.parametrize(
    ("kd", "message"),
    [
        ("af_dcd=1:groups=5", "groups=5 does not divide the teacher's 16 channels"),
        ("af_dcd=1:groups=0", "groups=0"),
        ("af_dcd=1:pool=2.5", "pool=2.5: give a positive whole number"),
        ("cirkd2=1:channel_size=-1", "channel_size=-1: .*positive whole number"),
        ("dsd=1:ppsd=2", "did you mean 'psd'"),
        ("kd=nan", "kd=nan is no weight"),
        ("kd=-1", "kd=-1 is no weight"),
    ],
)
def test_bad_options_are_explained(kd, message):
    with pytest.raises(UserError, match=message):
        build_kd(kd, 6, 16, 5)
