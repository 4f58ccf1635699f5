"""Training uses no operation that CUDA refuses under ``--deterministic``.

CUDA refuses an operation if its kernel adds numbers in no fixed order.
"""

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

# The documentation of torch.use_deterministic_algorithms lists these operations as errors. Bilinear interpolation is
# not among them, because torch replaces it by a slower deterministic version.
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
REFUSED_WITH_REDUCTION = {"nll_loss_forward", "nll_loss2d_forward"}  # refused unless reduction is "none"


class RefusedOperationRecorder(TorchDispatchMode):
    """Record the names of the operations that CUDA refuses."""

    def __init__(self):
        super().__init__()
        self.refused = set()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        name = operation.overloadpacket.__name__
        if name in REFUSED or (name in REFUSED_WITH_REDUCTION and args[3] != 0):
            self.refused.add(name)
        return operation(*args, **kwargs or {})


@pytest.fixture
def deterministic():
    """Use torch's deterministic algorithms during a test."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def test_a_refused_operation_is_recorded():
    x = torch.randn(1, 2, 5, 7, requires_grad=True)
    with RefusedOperationRecorder() as recorder:
        torch.nn.functional.adaptive_avg_pool2d(x, 3).sum().backward()
    assert recorder.refused == {"_adaptive_avg_pool2d_backward"}


@pytest.mark.parametrize("arch", FIVE)
def test_steps_use_no_refused_operation(deterministic, arch):
    noise = LabelNoise(K, "random", 0.03, 100.0)
    teacher, student = build_model(arch, FIVE[arch], K, 4), build_model(arch, FIVE[arch], K)
    widths = student.main.head.out_channels, teacher.main.head.out_channels
    steps = (  # built one after the other, because StudentStep freezes its teacher
        lambda: TeacherStep(teacher, noise, TaskLoss(teacher.supervision), build_kd("cwd=5", widths[1], widths[1], K)),
        lambda: StudentStep(student, TaskLoss(student.supervision), teacher, noise, build_kd("kd=1", *widths, K)),
    )
    image, label = torch.randn(2, 3, 64, 96), torch.randint(0, K, (2, 64, 96))
    for step in steps:
        with RefusedOperationRecorder() as recorder:
            step().train()(image, label, RowGenerator(0))["loss"].backward()
        assert not recorder.refused


@pytest.mark.parametrize("kd", LOSSES)
def test_distillation_losses_use_no_refused_operation(deterministic, kd):
    model = build_model("fcn", BACKBONE, K)
    noise = LabelNoise(K, "fixed", 0.0, 1.0)
    teacher = build_model("fcn", BACKBONE, K, 4)
    widths = model.main.head.out_channels, teacher.main.head.out_channels
    step = StudentStep(model, TaskLoss(model.supervision), teacher, noise, build_kd(f"{kd}=1", *widths, K)).train()
    with RefusedOperationRecorder() as recorder:
        step(torch.randn(2, 3, 64, 96), torch.randint(0, K, (2, 64, 96)), RowGenerator(0))["loss"].backward()
    assert not recorder.refused


@pytest.mark.parametrize(("kind", "label_smoothing"), [("ce", 0.1), ("ohem", 0.1), ("dice", 0.0)])
def test_task_losses_use_no_refused_operation(deterministic, kind, label_smoothing):
    model = build_model("fcn", BACKBONE, K)
    task = TaskLoss(model.supervision, None, label_smoothing, kind)
    with RefusedOperationRecorder() as recorder:
        output = model(torch.randn(2, 3, 64, 96))
        task(output, torch.randint(0, K, (2, 64, 96)), None)[0].backward()
    assert not recorder.refused


@pytest.mark.parametrize("bins", [1, 2, 3, 6])
def test_pooling_is_the_same_with_deterministic_algorithms(bins, request):
    x = torch.randn(2, 3, 13, 4, dtype=torch.float64, requires_grad=True)
    pool = Pool(bins)
    plain = pool(x)
    request.getfixturevalue("deterministic")
    torch.testing.assert_close(pool(x), plain)
    gradients = [torch.autograd.grad(y.square().sum(), x)[0] for y in (plain, pool(x))]
    torch.testing.assert_close(*gradients)
