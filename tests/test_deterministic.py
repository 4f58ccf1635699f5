"""``--deterministic``: no operation that CUDA refuses then, because its kernels add in any order."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from losses import LOSSES, build_kd
from losses.task import TaskLoss
from models import build_model
from models.architectures.pspnet import Pool
from models.label_noise import LabelNoise
from tests.conftest import BACKBONE
from tests.test_models import FIVE, K
from train_student import StudentStep
from train_teacher import TeacherStep
from utils.seeding import RowGenerator

# torch.use_deterministic_algorithms lists them as errors; for bilinear interpolation torch has a slow form of its own
REFUSED = {
    "_adaptive_avg_pool2d_backward",
    "adaptive_max_pool2d_backward",
    "reflection_pad2d_backward",
    "replication_pad3d_backward",
    "median",
    "histc",
    "grid_sampler_2d_backward",
    "scatter_reduce",
    "put_",
}
SUMMED = {"nll_loss_forward", "nll_loss2d_forward"}  # refused with a reduction


class Operations(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.refused = set()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        name = operation.overloadpacket.__name__
        if name in REFUSED or (name in SUMMED and args[3] != 0):
            self.refused.add(name)
        return operation(*args, **kwargs or {})


@pytest.fixture
def deterministic():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def test_a_refused_operation_is_noticed():
    x = torch.randn(1, 2, 5, 7, requires_grad=True)
    with Operations() as seen:
        torch.nn.functional.adaptive_avg_pool2d(x, 3).sum().backward()
    assert seen.refused == {"_adaptive_avg_pool2d_backward"}


@pytest.mark.parametrize("arch", FIVE)
def test_steps_have_no_operation_that_is_refused(deterministic, arch):
    noise = LabelNoise(K, "random", 0.03, 100.0)
    teacher, student = build_model(arch, FIVE[arch], K, 4), build_model(arch, FIVE[arch], K)
    widths = student.main.head.out_channels, teacher.main.head.out_channels
    steps = (  # one after the other: a student's teacher is frozen
        lambda: TeacherStep(teacher, noise, TaskLoss(teacher.supervision), build_kd("cwd=5", widths[1], widths[1], K)),
        lambda: StudentStep(student, TaskLoss(student.supervision), teacher, noise, build_kd("kd=1", *widths, K)),
    )
    image, label = torch.randn(2, 3, 64, 96), torch.randint(0, K, (2, 64, 96))
    for step in steps:
        with Operations() as seen:
            step().train()(image, label, RowGenerator(0))["loss"].backward()
        assert not seen.refused


@pytest.mark.parametrize("kd", LOSSES)
def test_losses_have_none_either(deterministic, kd):
    model, noise = build_model("fcn", BACKBONE, K), LabelNoise(K, "fixed", 0.0, 1.0)
    teacher = build_model("fcn", BACKBONE, K, 4)
    widths = model.main.head.out_channels, teacher.main.head.out_channels
    step = StudentStep(model, TaskLoss(model.supervision), teacher, noise, build_kd(f"{kd}=1", *widths, K)).train()
    with Operations() as seen:
        step(torch.randn(2, 3, 64, 96), torch.randint(0, K, (2, 64, 96)), RowGenerator(0))["loss"].backward()
    assert not seen.refused


@pytest.mark.parametrize("kind", ["ce", "ohem", "dice"])
def test_task_losses_have_none_either(deterministic, kind):
    model = build_model("fcn", BACKBONE, K)
    task = TaskLoss(model.supervision, None, 0.1, kind)
    with Operations() as seen:
        output = model(torch.randn(2, 3, 64, 96))
        task(output, torch.randint(0, K, (2, 64, 96)), None)[0].backward()
    assert not seen.refused


@pytest.mark.parametrize("bins", [1, 2, 3, 6])
def test_bins_are_the_same_either_way(bins, request):
    x, pool = torch.randn(2, 3, 13, 4, dtype=torch.float64, requires_grad=True), Pool(bins)
    plain = pool(x)
    request.getfixturevalue("deterministic")
    torch.testing.assert_close(pool(x), plain)
    gradients = [torch.autograd.grad(y.square().sum(), x)[0] for y in (plain, pool(x))]
    torch.testing.assert_close(*gradients)
