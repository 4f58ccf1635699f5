"""Our classes reproduce one teacher step and one student step of the LAD release in float64."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from losses import build_kd
from losses.kd import kd_loss
from losses.task import TaskLoss
from models import build_model
from models.checkpoints.formats import translate_network
from models.label_noise import LabelNoise, compute_noised_planes
from tests.test_foreign import KEYS, LAD, state
from train_student import StudentStep
from train_teacher import TeacherStep

K = 21
RELEASE = "LAD/CIRKD DeepLabV3"


class GivenPlanes(nn.Module):
    """Replace LabelNoise: add given planes, one for each path."""

    def __init__(self, *planes: torch.Tensor) -> None:
        super().__init__()
        self.path_planes = planes

    def add_planes(self, image, label, draw, path=0, dropout=0.0):
        return torch.cat([image, self.path_planes[path].to(image.dtype).unsqueeze(1)], 1)


@pytest.fixture(scope="module")
def reference():
    """Load the inputs and results of the release's steps."""
    with np.load(Path(__file__).parent / "data/lad_step_deeplabv3.npz") as data:
        return {key: data[key] for key in data}


def map_release_names() -> dict[str, str]:
    """Return a dict from the release's key to ours."""
    return {theirs: ours for ours, theirs in translate_network({key: key for key in KEYS[LAD]}, RELEASE).items()}


def build_filled_model(weight_factor: float = 1.0) -> nn.Module:
    """Build the network of the release in float64, with generated weights and no dropout.

    weight_factor: scales the weights of two or more dimensions.
    """
    model = build_model("deeplabv3", "resnet18_v1s", K, 4)
    weights = state(LAD)
    weights = {key: value * weight_factor if value.ndim >= 2 else value for key, value in weights.items()}
    model.load_state_dict(translate_network(weights, RELEASE))
    model.set_dropout(0.0)
    return model.double()


def get_tensors(reference, *names):
    """Return arrays of the reference as tensors."""
    return [torch.from_numpy(reference[name]) for name in names]


def assert_grad_norms(model, reference, name):
    """Check that every parameter has the gradient norm that the reference has under ``name``."""
    parameters = dict(model.named_parameters())
    names = map_release_names()
    ours = {names[str(key)]: i for i, key in enumerate(reference["grad_keys"])}
    assert set(ours) == set(parameters)
    for key, i in ours.items():
        norm = float(parameters[key].grad.norm())
        assert norm == pytest.approx(float(reference[name][i]), rel=1e-5, abs=1e-9), key


def test_planes_follow_the_formula_of_the_release(reference):
    label, codes, noise = get_tensors(reference, "label", "codes1", "noise1")
    plane = compute_noised_planes(label, codes, noise, 0.03, 100.0)
    torch.testing.assert_close(plane[:, 0], torch.from_numpy(reference["plane1"]), rtol=1e-6, atol=1e-4)

    student_noise = torch.from_numpy(reference["student_noise"])
    table = LabelNoise(K, "fixed", 0.02, 100.0).table.float()
    plane = compute_noised_planes(label, table.expand(len(label), -1), student_noise, 0.02, 100.0)
    torch.testing.assert_close(plane[:, 0], torch.from_numpy(reference["student_plane"]), rtol=1e-6, atol=1e-4)


def test_teacher_step_equals_that_of_the_release(reference):
    image, label, plane1, plane2 = get_tensors(reference, "image", "label", "plane1", "plane2")
    model = build_filled_model()
    distance = build_kd("cwd=5", 128, 128, K)
    step = TeacherStep(model, GivenPlanes(plane1, plane2), TaskLoss(model.supervision), distance).train()
    terms = step(image.double(), label.long())
    for ours, theirs in [
        ("task1", "teacher_task1"),
        ("task2", "teacher_task2"),
        ("consistency", "teacher_consistency"),
        ("loss", "teacher_loss"),
    ]:
        assert terms[ours].item() == pytest.approx(float(reference[theirs]), rel=1e-5), ours
    terms["loss"].backward()
    assert_grad_norms(model, reference, "teacher_grad_norms")
    buffers = dict(model.named_buffers())
    names = map_release_names()
    for i, key in enumerate(reference["running_mean_keys"]):
        expected = float(reference["teacher_running_mean_sum"][i])
        assert float(buffers[names[str(key)]].sum()) == pytest.approx(expected, rel=1e-5, abs=1e-6), key


def test_student_step_equals_that_of_the_release(reference):
    image, label, plane = get_tensors(reference, "image", "label", "student_plane")
    teacher, student = build_filled_model(), build_filled_model(0.9)

    class FourChannels(nn.Module):
        """Add a plane of zeros to the image, because the student of the release takes four channels."""

        def __init__(self, model):
            super().__init__()
            self.net = model

        def forward(self, x):
            return self.net(torch.cat([x, torch.zeros_like(x[:, :1])], 1))

    kd = build_kd("cwd=3,dist=0", 128, 128, K)
    task = TaskLoss(student.supervision, aux_weight=0.02)
    step = StudentStep(FourChannels(student), task, teacher, GivenPlanes(plane), kd).train()
    terms = step(image.double(), label.long())
    for ours, theirs in [
        ("ce", "student_ce"),
        ("aux", "student_aux"),
        ("cwd", "student_cwd"),
        ("dist", "student_dist"),
        ("loss", "student_loss"),
    ]:
        assert terms[ours].item() == pytest.approx(float(reference[theirs]), rel=1e-5), ours
    terms["loss"].backward()
    assert_grad_norms(student, reference, "student_grad_norms")

    s, t = get_tensors(reference, "student_logits", "teacher_logits")
    # the release's KL loss, which is commented out, adds 1e-5 to both probabilities and lacks the factor tau^2
    assert kd_loss(s.double(), t.double(), 4.0).item() / 16 == pytest.approx(
        float(reference["student_kl_lad"]), rel=0.02
    )
