"""Two gloo processes do what one does."""

import json

import numpy as np
import pytest

from tests.conftest import TINY
from tests.test_engine import losses
from utils import checkpoint

# Frozen BatchNorm and no dropout: what is left does not depend on the split. In float64 one and two processes agree to
# 1e-15 at any rate; at 0.01 the loss first grows tenfold, and float32's rounding with it to 1e-3 within 8 iterations.
SAME_MATH = ["--freeze-bn", "--dropout", "0", "--lr", "0.001"]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    import train_teacher

    folder = tmp_path_factory.mktemp("teacher")
    train_teacher.main([*TINY, "--max-iterations", "3", "--save-dir", str(folder)])
    return folder / "last.pth"


@pytest.mark.parametrize("role", ["teacher", "student"])
def test_losses_and_scores_of_two_processes_are_those_of_one(command, tmp_path, teacher, role):
    script, flags = f"train_{role}.py", [*TINY, *SAME_MATH, "--max-iterations", "4"]
    if role == "student":
        flags += ["--teacher-pretrained", teacher, "--kd", "cwd=3,kd=1"]
    for processes in (1, 2):
        command(script, *flags, "--save-dir", tmp_path / str(processes), processes=processes)
    one, two = (losses(tmp_path / name) for name in "12")
    np.testing.assert_allclose(one, two, rtol=1e-5)
    weights = [checkpoint.read(tmp_path / name / "last.pth")["model"] for name in "12"]
    np.testing.assert_allclose(*(w["main.classifier.weight"].numpy() for w in weights), rtol=1e-3, atol=1e-5)


def test_confusion_matrices_do_not_depend_on_the_number_of_processes(command, tmp_path, teacher):
    results = []
    for processes in (1, 3):
        file = tmp_path / f"{processes}.json"
        command("eval.py", "--pretrained", teacher, "--device", "cpu", "--json", file, processes=processes)
        results.append(json.loads(file.read_text()))
    assert results[0]["confusion"] == results[1]["confusion"]
    assert results[0]["images"] == 60


def test_a_batch_that_does_not_divide_is_refused(command, tmp_path):
    flags = [*TINY, "--batch-size", "5", "--save-dir", tmp_path]
    result = command("train_teacher.py", *flags, processes=2, check=False)
    assert result.returncode != 0
    assert "--batch-size 5 does not divide over 2 processes" in result.stderr
