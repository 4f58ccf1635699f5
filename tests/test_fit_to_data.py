"""--fit-to-data derives settings from the images, and a resumed run keeps these settings."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

import train_student
from engine.fit_to_data import compute_fitted_settings, measure_images
from engine.settings import StudentConfig
from tests.conftest import BACKBONE
from utils.errors import UserError
from utils.files import read_yaml

SETTINGS = StudentConfig(crop_size=(320, 320), batch_size=4, max_iterations=4000)


@pytest.mark.parametrize(
    ("sizes", "crop_size", "batch_size", "max_iterations"),
    [
        ({"count": 30, "height": 300, "width": 500}, (288, 320), 4, 500),  # the crop is not larger than the images
        ({"count": 200, "height": 1080, "width": 1920}, (320, 320), 4, 2500),  # 50 epochs
        ({"count": 10000, "height": 480, "width": 640}, (320, 320), 4, 4000),  # no more iterations than in the recipe
        ({"count": 2, "height": 20, "width": 40}, (32, 32), 2, 500),
    ],
)
def test_settings_are_fitted_to_the_number_and_size_of_the_images(sizes, crop_size, batch_size, max_iterations):
    fitted = compute_fitted_settings(SETTINGS, sizes)
    assert (fitted["crop_size"], fitted["batch_size"], fitted["max_iterations"]) == (
        crop_size,
        batch_size,
        max_iterations,
    )
    assert fitted["val_per_iters"] == fitted["save_per_iters"] == max_iterations // 10


def test_fitted_settings_follow_the_settings_that_are_given():
    sizes = {"count": 100, "height": 300, "width": 300}
    settings = replace(SETTINGS, max_iterations=4000, batch_size=4)
    fitted = compute_fitted_settings(settings, sizes, given=("max_iterations",))
    assert (fitted["max_iterations"], fitted["val_per_iters"]) == (4000, 400)
    fitted = compute_fitted_settings(replace(settings, batch_size=200), sizes, given=("batch_size",))
    assert (fitted["batch_size"], fitted["max_iterations"]) == (200, 500)


@pytest.mark.parametrize(
    ("count", "ranks", "accumulate", "batch_size"),
    [(5, 2, 1, 4), (3, 1, 2, 2), (1, 2, 1, 2), (100, 2, 1, 4), (6, 1, 3, 3), (100, 3, 1, 3)],
)
def test_the_batch_size_divides_over_ranks_and_parts_with_few_images(count, ranks, accumulate, batch_size):
    settings = replace(SETTINGS, accumulate=accumulate)
    fitted = compute_fitted_settings(settings, {"count": count, "height": 300, "width": 300}, ranks)
    assert fitted["batch_size"] == batch_size


def write_folder(root, count=6, size=(96, 128)):
    """Write a folder of images and masks of two classes."""
    for split in ("train", "val"):
        for n in range(count):
            mask = np.zeros(size, np.uint8)
            mask[:, size[1] // 2 :] = 1
            for kind, pixels in (("images", np.stack([90 * mask] * 3, 2)), ("masks", mask)):
                (root / split / kind).mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(root / split / kind / f"{n}.png")
    lines = ["names: [left, right]", "splits:"]
    lines += [f"  {split}: {{images: {split}/images, labels: {split}/masks}}" for split in ("train", "val")]
    (root / "dataset.yaml").write_text("\n".join(lines))


def test_a_resumed_run_keeps_its_fitted_settings(tmp_path, capsys, monkeypatch):
    write_folder(tmp_path / "data")
    assert measure_images(replace(SETTINGS, dataset="folder", data=str(tmp_path / "data"))) == {
        "count": 6,
        "height": 96,
        "width": 128,
    }
    flags = ["--dataset", "folder", "--data", str(tmp_path / "data"), "--fit-to-data", "--kd", "none", "--model", "fcn"]
    flags += ["--backbone", BACKBONE, "--workers", "0", "--save-dir", str(tmp_path / "run"), "--device", "cpu"]
    train_student.main([*flags, "--max-iterations", "2"])  # a flag overrides the fitted value
    assert "fitted to the training images of" in capsys.readouterr().out
    saved = read_yaml(tmp_path / "run/config.yaml")
    assert (saved["crop_size"], saved["batch_size"], saved["max_iterations"]) == ([96, 128], 6, 2)

    text = (tmp_path / "run/config.yaml").read_text()
    (tmp_path / "run/config.yaml").write_text(text.replace("val_per_iters: 1", "val_per_iters: 3"))
    train_student.main([*flags, "--max-iterations", "2", "--resume", "auto"])
    out = capsys.readouterr().out
    assert "--val-per-iters 3 " in out  # taken from the run, not fitted again
    assert "is finished: 2 iterations" in out

    train_student.main(["--recipe", str(tmp_path / "run/config.yaml"), "--save-dir", str(tmp_path / "again")])
    assert "fitted" not in capsys.readouterr().out
    again = read_yaml(tmp_path / "again/config.yaml")
    assert (again["batch_size"], again["val_per_iters"]) == (6, 3)

    with monkeypatch.context() as patch:
        patch.setenv("TORCHELASTIC_RESTART_COUNT", "1")  # torchrun starts the job again, with the same flags
        train_student.main([*flags, "--max-iterations", "2"])
    assert "--val-per-iters 3 " in capsys.readouterr().out

    (tmp_path / "run/config.yaml").write_text(text.replace("batch_size: 6", "batch_size: a"))
    with pytest.raises(UserError, match=r"config\.yaml of the run that is resumed: batch_size: 'a' is not a int"):
        train_student.main([*flags, "--max-iterations", "2", "--resume", "auto"])
