"""CIRKDv2's channel queue and context module, and the choice of pixels in the released code."""

import pytest
import torch

from losses import build_kd
from losses.cirkd2 import CIRKD2, Context
from losses.cirkd_channel import ChannelTerms, normalise_channels, pool_features
from losses.cirkd_memory import select_pixel_keys
from tests.test_feature_losses import make_outputs
from utils.errors import UserError

SIZES = "pixel_size=9:region_size=5:channel_size=40"


def test_the_context_module_matches_loops_over_positions():
    torch.manual_seed(0)
    module = Context(4).double().eval()
    x = torch.randn(1, 4, 2, 3, dtype=torch.float64)
    rows = x.flatten(2)[0].t()
    q, k, v = (rows @ conv.weight[:, :, 0, 0].t() for conv in (module.query, module.key, module.value))
    contexts = []
    for i in range(6):
        attention = torch.exp(torch.stack([q[i] @ k[j] for j in range(6)]) / 2**0.5)
        contexts.append(sum(attention[j] * v[j] for j in range(6)) / attention.sum())
    expanded = module.expand(torch.stack(contexts).t().view(1, 2, 2, 3))
    expected = module.fuse(torch.cat([x, expanded], 1))
    torch.testing.assert_close(module(x), expected)


def test_the_channel_queue_takes_its_width_from_the_first_maps_and_stores_teacher_channels():
    torch.manual_seed(0)
    terms = ChannelTerms(6, 16, size=40).train()
    terms.fresh = 10
    s, t, label = make_outputs((9, 6), (9, 6))  # pooled to 3 x 2, although neither side is a multiple of 4
    assert set(terms(s, t, label)) == {"channel", "memory_channel", "channel_mse"}
    assert terms.queue.shape == (1, 40, 6)
    assert terms.pointer.tolist() == [10]
    teacher_channels = normalise_channels(pool_features(t.feat)).flatten(0, 1)
    assert (
        torch.cdist(terms.queue[0, :10], teacher_channels, compute_mode="donot_use_mm_for_euclid_dist").amin(1).max()
        < 1e-6
    )
    assert len(terms.queue[0, :10].unique(dim=0)) == 10
    torch.testing.assert_close(terms.queue.norm(dim=2), torch.ones(1, 40))
    stored = terms.queue.clone()
    terms.eval()(s, t, label)
    assert torch.equal(stored, terms.queue)


def test_a_new_run_starts_with_the_same_queue_on_every_rank():
    queues = []
    for rank in range(2):
        torch.manual_seed(5)
        terms = ChannelTerms(6, 16, size=40).eval()
        torch.manual_seed(100 + rank)  # the engine sets another seed on each rank before an iteration
        terms(*make_outputs())
        queues.append(terms.queue)
    assert torch.equal(*queues)


def test_a_state_dict_can_be_loaded_before_the_first_forward_pass():
    losses = build_kd(f"cirkd2=1:{SIZES}", 6, 16, 5).train()
    losses(*make_outputs())
    twin = build_kd(f"cirkd2=1:{SIZES}", 6, 16, 5).train()
    twin.load_state_dict(losses.state_dict())
    for key, value in losses.state_dict().items():
        assert torch.equal(value, twin.state_dict()[key]), key
    totals = []
    for one in (losses, twin):
        torch.manual_seed(3)
        totals.append(one(*make_outputs(seed=1))[0].item())
    assert totals[0] == totals[1]


def test_the_published_weights_and_shared_projector():
    loss = CIRKD2(6, 16, 5, pixel_size=9, region_size=5, channel_size=7)
    expected = {"fitnet": 1, "pixel": 1, "memory_pixel": 0.1, "memory_region": 0.1}
    assert loss.part_weights == expected | {"channel": 1, "memory_channel": 0.1, "channel_mse": 100}
    assert loss.parts["memory_pixel"].projector is loss.parts["memory_region"].projector
    assert loss.channels.projector is not loss.parts["memory_pixel"].projector


def test_a_part_of_weight_0_is_neither_built_nor_logged():
    losses = build_kd("cirkd2=1:memory_pixel=0:memory_region=0:channel=0:memory_channel=0:channel_mse=0", 6, 16, 5)
    _, terms = losses(*make_outputs())
    assert terms.keys() == {"cirkd2", "cirkd2_fitnet", "cirkd2_pixel"}
    assert not any("queue" in key for key in losses.state_dict())


def test_as_released_draws_the_pixels_of_a_class_from_the_top_of_the_map():
    feat = torch.arange(20.0).view(1, 20, 1)
    member = torch.zeros(1, 2, 20, dtype=torch.bool)
    member[0, 0, 15:] = True
    member[0, 1, 4:6] = True
    for seed in range(10):
        torch.manual_seed(seed)
        keys, valid = select_pixel_keys(feat, member, 3, as_released=True)
        assert valid[0].sum(1).tolist() == [3, 2]
        assert keys[0, 0, :, 0].max() < 5, "five pixels of the class: the map's first five"
        assert set(keys[0, 1, valid[0, 1], 0].tolist()) == {0, 1}


def test_as_released_is_an_option():
    with pytest.raises(UserError, match="as_released"):
        build_kd("cirkd_pixel=1:size=9:as_releasd=1", 6, 16, 5)
    losses = build_kd("cirkd_pixel=1:size=9:as_released=1", 6, 16, 5)
    assert losses.losses["cirkd_pixel"].as_released
