"""One teacher step and one student step of the LAD release, reproduced through our own classes in float64."""

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


class Planes(nn.Module):
    """Stands in for LabelNoise with given planes, one a path."""

    def __init__(self, *planes: torch.Tensor) -> None:
        super().__init__()
        self.given = planes

    def add_planes(self, image, label, draw, path=0, dropout=0.0):
        return torch.cat([image, self.given[path].to(image.dtype).unsqueeze(1)], 1)


@pytest.fixture(scope="module")
def reference():
    with np.load(Path(__file__).parent / "data/lad_step_deeplabv3.npz") as data:
        return {key: data[key] for key in data}


def our_names() -> dict[str, str]:
    """The release's key -> ours."""
    return {theirs: ours for ours, theirs in translate_network({key: key for key in KEYS[LAD]}, RELEASE).items()}


def filled(weight_factor: float = 1.0) -> nn.Module:
    model = build_model("deeplabv3", "resnet18_v1s", K, 4)
    weights = state(LAD)
    weights = {key: value * weight_factor if value.ndim >= 2 else value for key, value in weights.items()}
    model.load_state_dict(translate_network(weights, RELEASE))
    model.set_dropout(0.0)
    return model.double()


def tensors(reference, *names):
    return [torch.from_numpy(reference[name]) for name in names]


def assert_grad_norms(model, reference, name):
    parameters = dict(model.named_parameters())
    names = our_names()
    ours = {names[str(key)]: i for i, key in enumerate(reference["grad_keys"])}
    assert set(ours) == set(parameters)
    for key, i in ours.items():
        norm = float(parameters[key].grad.norm())
        assert norm == pytest.approx(float(reference[name][i]), rel=1e-5, abs=1e-9), key


def test_planes_are_the_releases_formula(reference):
    label, codes, noise = tensors(reference, "label", "codes1", "noise1")
    plane = compute_noised_planes(label, codes, noise, 0.03, 100.0)
    torch.testing.assert_close(plane[:, 0], torch.from_numpy(reference["plane1"]), rtol=1e-6, atol=1e-4)

    student_noise = torch.from_numpy(reference["student_noise"])
    table = LabelNoise(K, "fixed", 0.02, 100.0).table.float()
    plane = compute_noised_planes(label, table.expand(len(label), -1), student_noise, 0.02, 100.0)
    torch.testing.assert_close(plane[:, 0], torch.from_numpy(reference["student_plane"]), rtol=1e-6, atol=1e-4)


def test_teacher_step(reference):
    image, label, plane1, plane2 = tensors(reference, "image", "label", "plane1", "plane2")
    model = filled()
    distance = build_kd("cwd=5", 128, 128, K)
    step = TeacherStep(model, Planes(plane1, plane2), TaskLoss(model.supervision), distance).train()
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
    names = our_names()
    for i, key in enumerate(reference["running_mean_keys"]):
        expected = float(reference["teacher_running_mean_sum"][i])
        assert float(buffers[names[str(key)]].sum()) == pytest.approx(expected, rel=1e-5, abs=1e-6), key


def test_student_step(reference):
    image, label, plane = tensors(reference, "image", "label", "student_plane")
    teacher, student = filled(), filled(0.9)

    class FourChannels(nn.Module):
        """The release's student sees a fourth plane of zeros."""

        def __init__(self, model):
            super().__init__()
            self.net = model

        def forward(self, x):
            return self.net(torch.cat([x, torch.zeros_like(x[:, :1])], 1))

    kd = build_kd("cwd=3,dist=0", 128, 128, K)
    task = TaskLoss(student.supervision, aux_weight=0.02)
    step = StudentStep(FourChannels(student), task, teacher, Planes(plane), kd).train()
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

    s, t = tensors(reference, "student_logits", "teacher_logits")
    # the release's commented-out KL has an epsilon of 1e-5 on both probabilities and no tau^2
    assert kd_loss(s.double(), t.double(), 4.0).item() / 16 == pytest.approx(
        float(reference["student_kl_lad"]), rel=0.02
    )
