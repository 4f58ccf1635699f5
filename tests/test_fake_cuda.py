"""Test CUDA code on a machine without a GPU, with torch's fake tensors.

Fake tensors have a device and a type but no values, so every read-back to the host raises. Kernels do not run. Only
forward passes are tested, because autograd's device guard needs a driver.
"""

from collections import OrderedDict

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from engine.metrics import count_confusions
from engine.runtime import PRECISIONS
from losses import LOSSES, build_kd
from losses.task import TaskLoss, compute_avg_factor
from losses.upsampled_cross_entropy import upsampled_cross_entropy
from models import build_model
from models.label_noise import LabelNoise
from models.prediction import Predictor
from tests.conftest import BACKBONE
from tests.test_models import FIVE
from train_student import StudentStep
from train_teacher import TeacherStep
from utils import memory
from utils.bilinear import upsample_argmax
from utils.checkpoint import _move_to_cpu
from utils.pixels import CONVENTIONS
from utils.seeding import RowGenerator

K = 5
NEEDS_A_DRIVER = "adv"  # this loss runs a backward pass inside its forward pass


@pytest.fixture
def fake_cuda(monkeypatch):
    """Create all tensors on a fake GPU. Replace the random generator, because it would need a driver."""

    def normal(self, values, stream):
        return values.copy_(torch.randn_like(values))

    monkeypatch.setattr(RowGenerator, "normal", normal)
    monkeypatch.setattr(memory, "get_free_memory", lambda device: None)
    # torch switches autocast off if it finds no GPU
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    with FakeTensorMode(allow_non_fake_inputs=False), torch.device("cuda"):
        yield


def make_batch():
    """Return two black images and their labels."""
    image = torch.zeros(2, 3, 64, 96, dtype=torch.uint8)
    return image, torch.zeros(2, 64, 96, dtype=torch.uint8)


def test_checkpoint_tensors_are_moved_to_the_cpu(fake_cuda):
    content = {"model": OrderedDict(weight=torch.zeros(2)), "optimizer": {"state": [(torch.zeros(1), 5)]}, "name": "a"}
    moved = _move_to_cpu(content)
    assert content["model"]["weight"].device.type == "cuda"
    assert moved["model"]["weight"].device.type == "cpu"
    ((value, number),) = moved["optimizer"]["state"]
    assert (value.device.type, number, moved["name"]) == ("cpu", 5, "a")


def test_a_read_back_raises(fake_cuda):
    for read in (lambda x: x.sum().item(), lambda x: x.nonzero(), lambda x: bool(x.any())):
        with pytest.raises((DataDependentOutputException, DynamicOutputShapeException)):
            read(torch.zeros(3))


NETWORKS = FIVE | {"smp_fpn": BACKBONE, "smp_pspnet": BACKBONE}


@pytest.mark.parametrize(
    ("arch", "amp"), [*((arch, "bf16") for arch in NETWORKS), *(("fcn", amp) for amp in PRECISIONS if amp != "bf16")]
)
def test_all_loss_terms_of_a_step_are_float32_on_the_gpu(fake_cuda, arch, amp):
    """Run the teacher's and the student's step of every architecture, with every loss."""
    noise = LabelNoise(K, "random", 0.03, 100.0)
    with torch.no_grad():  # with gradients, building smp_... runs a backward pass, which needs a driver
        teacher = build_model(arch, NETWORKS[arch], K, 4)
        student = build_model(arch, NETWORKS[arch], K)
    widths = student.feature_channels, teacher.feature_channels
    kd = build_kd(",".join(f"{name}=1" for name in LOSSES if name != NEEDS_A_DRIVER), *widths, K)
    teacher_step = TeacherStep(
        teacher, noise, TaskLoss(teacher.supervision), build_kd("cwd=5", widths[1], widths[1], K)
    )
    student_step = StudentStep(student, TaskLoss(student.supervision), teacher, noise, kd)
    image, label = make_batch()
    avg_factor = compute_avg_factor(label)
    x = CONVENTIONS["imagenet"].normalize(image)
    with torch.no_grad(), torch.autocast("cuda", PRECISIONS[amp], enabled=amp != "none"):
        assert student(x).logits.dtype == (PRECISIONS[amp] or torch.float32)
        for step in (teacher_step.train(), student_step.train()):
            for name, term in step(x, label.long(), RowGenerator(0), avg_factor).items():
                assert (term.device.type, term.dtype, term.shape) == ("cuda", torch.float32, ()), name


@pytest.mark.parametrize("codes", ["random", "fixed", "shuffled", "onehot"])
def test_evaluation_counts_confusions_on_the_gpu(fake_cuda, codes):
    noise = LabelNoise(K, codes, 0.03, 100.0)
    model = build_model("pspnet", BACKBONE, K, 3 + noise.planes).eval()
    image, label = make_batch()
    with torch.no_grad():  # inference_mode does not work with fake tensors
        x = Predictor(model, CONVENTIONS["bgr_mean"], noise)._make_input(
            image, label, [RowGenerator(0), RowGenerator(1)]
        )
        classes = upsample_argmax(model(x, with_aux=False).logits, x.shape[-2:], True)
        counts = count_confusions(classes, label, K)
    assert (counts.device.type, counts.dtype, counts.shape) == ("cuda", torch.int64, (K, K))


class KernelCounter(TorchDispatchMode):
    """Count the kernels that would start on the device."""

    count = 0

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        self.count += function.namespace == "aten" and not function.is_view
        return function(*arguments, **keywords or {})


def test_the_cross_entropy_starts_few_kernels(fake_cuda):
    logits = torch.zeros(16, 21, 64, 64, requires_grad=True)
    with KernelCounter() as counter:
        upsampled_cross_entropy(logits, torch.zeros(16, 512, 512, dtype=torch.long), True)
    assert 0 < counter.count < 200
