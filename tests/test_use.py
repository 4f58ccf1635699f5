"""Test ``from_checkpoint(file).predict(image)``: it returns the classes of paths, arrays and PIL images."""

import numpy as np
import pytest
import torch
from PIL import Image

from models import from_checkpoint
from tests.networks import write_checkpoint
from utils.errors import UserError
from utils.pixels import CONVENTIONS


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    return from_checkpoint(write_checkpoint(tmp_path_factory.mktemp("student") / "last.pth", "pspnet"))


PIXELS = np.random.default_rng(0).integers(0, 256, (45, 70, 3), dtype=np.uint8)


def test_a_path_an_array_and_a_picture_give_the_same_classes(student, tmp_path):
    Image.fromarray(PIXELS).save(tmp_path / "a.png")
    classes = student.predict(PIXELS)
    assert (classes.shape, classes.dtype) == ((45, 70), np.uint8)
    x = CONVENTIONS["bgr_mean"].normalize(torch.from_numpy(PIXELS.transpose(2, 0, 1).copy())[None])
    with torch.inference_mode():
        logits = torch.nn.functional.interpolate(student.model(x).logits, (45, 70), mode="bilinear", align_corners=True)
    expected_probabilities = logits.softmax(1)[0].numpy()
    expected = expected_probabilities.argmax(0)
    assert len(np.unique(expected)) > 1
    for image in (PIXELS, tmp_path / "a.png", str(tmp_path / "a.png"), Image.fromarray(PIXELS)):
        assert np.array_equal(student.predict(image), expected)
    again, probabilities = student.predict(PIXELS, probabilities=True)
    assert np.array_equal(again, expected)
    assert probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities, expected_probabilities, atol=1e-5)


def test_grey_transparent_and_rotated_images(student, tmp_path):
    grey = PIXELS[..., 0]
    assert np.array_equal(student.predict(grey), student.predict(np.dstack([grey] * 3)))
    clear = np.dstack([PIXELS, np.full(grey.shape, 255, np.uint8)])
    clear[:20, :, 3] = 0
    white = PIXELS.copy()
    white[:20] = 255
    assert np.array_equal(student.predict(clear), student.predict(white))
    assert np.array_equal(student.predict(Image.fromarray(clear)), student.predict(white))
    exif = Image.Exif()
    exif[0x0112] = 6  # a viewer must rotate the image by 90 degrees
    Image.fromarray(PIXELS).save(tmp_path / "turned.png", exif=exif)
    assert np.array_equal(student.predict(tmp_path / "turned.png"), student.predict(np.rot90(PIXELS, -1).copy()))


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ("/nowhere/a.png", "file not found: /nowhere/a.png"),
        (PIXELS.astype(np.float32) / 255, r"an image array must be uint8 .*this is float32 \[45, 70, 3\]"),
        (PIXELS.transpose(2, 0, 1), r"an image array must be uint8 .*this is uint8 \[3, 45, 70\]"),
        (Image.fromarray(np.zeros((5, 5), np.uint16)), "the image has pixels of mode I;16"),
        (torch.zeros(3, 5, 5), "an image is a path, a PIL image or an array, not Tensor"),
    ],
)
def test_bad_images_are_refused(student, image, message):
    with pytest.raises(UserError, match=message):
        student.predict(image)


def test_a_damaged_file_and_a_teacher_are_refused(student, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"none")
    with pytest.raises(UserError, match=r"bad\.png cannot be read"):
        student.predict(tmp_path / "bad.png")
    Image.fromarray(PIXELS).save(tmp_path / "a.jpg")
    data = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "a.jpg").write_bytes(data[: len(data) // 2] + b"\xff\xd9")
    with pytest.raises(UserError, match=r"a\.jpg cannot be read: damaged JPEG"):
        student.predict(tmp_path / "a.jpg")
    teacher = from_checkpoint(write_checkpoint(tmp_path / "teacher.pth", codes="random"))
    with pytest.raises(UserError, match="a label-assisted teacher cannot predict from an image alone"):
        teacher.predict(PIXELS)
