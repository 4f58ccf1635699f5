"""Two ranks (gloo) give the results of one rank."""

import json

import numpy as np
import pytest

import eval as evaluation
import train_student
import train_teacher
from engine.runtime import Runtime
from engine.settings import TeacherConfig
from engine.trainer import check_batch
from tests.conftest import TINY, WIDE_BACKBONE
from tests.networks import write_checkpoint
from tests.test_engine import read_losses
from utils import checkpoint
from utils.errors import UserError

# With frozen BatchNorm and without dropout, the results do not depend on how the batch is split over ranks.
# In float64, one and two ranks agree to 1e-15 at any learning rate. In float32 the learning rate must be small:
# at 0.01 the loss first grows tenfold, and within 8 iterations the rounding errors reach 1e-3.
INDEPENDENT_OF_SPLIT = ["--freeze-bn", "--dropout", "0", "--lr", "0.001"]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """Write the checkpoint of a label-assisted teacher and return its path."""
    return write_checkpoint(tmp_path_factory.mktemp("teacher") / "last.pth", codes="random")


@pytest.mark.parametrize("script", [train_teacher, train_student], ids=lambda script: script.__name__)
def test_two_ranks_give_the_losses_and_weights_of_one(command, tmp_path, teacher, script):
    flags = [*TINY, *INDEPENDENT_OF_SPLIT, "--max-iterations", "4"]
    if script is train_student:
        flags += ["--teacher-pretrained", teacher, "--kd", "cwd=3,kd=1", "--backbone", WIDE_BACKBONE]
    script.main([*flags, "--save-dir", str(tmp_path / "1")])
    command(f"{script.__name__}.py", *flags, "--save-dir", tmp_path / "2", processes=2)
    one, two = (read_losses(tmp_path / name) for name in "12")
    np.testing.assert_allclose(one, two, rtol=1e-5)
    weights = [checkpoint.read(tmp_path / name / "last.pth")["model"] for name in "12"]
    np.testing.assert_allclose(*(w["main.classifier.weight"].numpy() for w in weights), rtol=1e-3, atol=1e-5)


def test_confusion_matrices_do_not_depend_on_the_number_of_processes(command, tmp_path, teacher):
    files = [tmp_path / f"{processes}.json" for processes in (1, 2)]
    flags = ["--pretrained", teacher, "--device", "cpu", "--json"]
    evaluation.main([*flags, str(files[0])])
    command("eval.py", *flags, files[1], processes=2)
    one, two = (json.loads(file.read_text()) for file in files)
    assert one["confusion"] == two["confusion"]
    assert one["images"] == 3  # an odd number, so that the ranks evaluate different numbers of images


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 5}, r"--batch-size 5 does not divide over 2 processes$"),
        ({"batch_size": 6, "accumulate": 2}, r"6 does not divide over 2 processes in 2 parts \(--accumulate\)$"),
    ],
)
def test_a_batch_that_does_not_divide_is_refused(settings, message):
    with pytest.raises(UserError, match=message):
        check_batch(TeacherConfig(**settings), Runtime(size=2))
