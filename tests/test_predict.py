"""Test predict.py: it writes the classes of eval.py, names bad files and overwrites nothing."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from datasets.toy import TOY
from models.checkpoints.loading import from_checkpoint
from models.prediction import Predictor
from models.segmentor import Segmentor
from scripts.deploy import predict
from tests.networks import write_checkpoint
from utils.errors import UserError
from utils.pictures import read_image
from utils.pixels import CONVENTIONS
from utils.seeding import RowGenerator


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("student") / "last.pth", "pspnet")


def write_picture(path, height=45, width=70, mode="RGB", seed=0):
    """Write a picture of random pixels. Return its path."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)
    return path


def test_predicted_files_hold_the_classes_of_the_evaluator(student, tmp_path, capsys):
    source = write_picture(tmp_path / "a.png")
    predict.main([str(source), "--pretrained", student, "--output", f"{tmp_path}/out", "--blend"])
    loaded = from_checkpoint(student)
    image = torch.from_numpy(read_image(source).transpose(2, 0, 1).copy())[None]
    label = torch.zeros(1, 45, 70, dtype=torch.uint8)
    expected = Predictor(loaded.model, CONVENTIONS["bgr_mean"])(image, label, [RowGenerator(0)])[0].argmax(0).numpy()
    assert len(np.unique(expected)) > 1
    colored = Image.open(tmp_path / "out/a.png")
    assert np.array_equal(np.array(colored), expected)
    assert np.array_equal(np.array(colored.convert("RGB")), np.uint8(TOY.palette)[expected])
    half = (read_image(source).astype(int) + np.array(TOY.palette)[expected]) // 2
    assert np.array_equal(np.array(Image.open(tmp_path / "out/a_blend.png")), half)
    printed = capsys.readouterr().out
    assert all(name in printed for name in TOY.names)


def test_resize_predicts_at_that_size_and_writes_the_original_size(student, tmp_path):
    source = write_picture(tmp_path / "a.png", 200, 300)
    flags = [str(source), "--pretrained", student, "--output", f"{tmp_path}/out"]
    predict.main([*flags, "--resize", "96", "64"])
    loaded = from_checkpoint(student)
    image = torch.from_numpy(read_image(source).transpose(2, 0, 1).copy())[None]
    small = Predictor(loaded.model, CONVENTIONS["bgr_mean"], resize=(96, 64))
    expected = small(image, image[:, 0], [RowGenerator(0)])[0].argmax(0).numpy()
    assert np.array_equal(np.array(Image.open(tmp_path / "out/a.png")), expected)
    assert not np.array_equal(loaded.predict(source), expected)
    classes, shares = loaded.predict(source, probabilities=True, resize=(96, 64))
    assert np.array_equal(classes, expected)
    assert shares.shape == (7, 200, 300)


@pytest.mark.parametrize(
    ("flags", "options"),
    [
        (["--scales", "0.5", "1.0", "1.5", "--flip"], {"scales": (0.5, 1.0, 1.5), "flip": True}),
        (["--window", "64", "64"], {"window": (64, 64)}),
        (
            ["--window", "64", "96", "--stride", "32", "48", "--flip"],
            {"window": (64, 96), "stride": (32, 48), "flip": True},
        ),
        (["--amp", "bf16"], {"precision": torch.bfloat16}),
    ],
)
def test_test_time_flags_give_the_classes_of_the_evaluator(flags, options, student, tmp_path):
    source = write_picture(tmp_path / "a.png", 90, 120)
    predict.main([str(source), "--pretrained", student, "--output", f"{tmp_path}/out", "--device", "cpu", *flags])
    image = torch.from_numpy(read_image(source).transpose(2, 0, 1).copy())[None]
    model = from_checkpoint(student).model
    expected = Predictor(model, CONVENTIONS["bgr_mean"], **options).predict_classes(image)[0].numpy()
    assert np.array_equal(np.array(Image.open(tmp_path / "out/a.png")), expected)


def test_a_stride_without_a_window_is_refused(student, tmp_path):
    flags = ["--pretrained", student, "--output", f"{tmp_path}/out", "--stride", "8", "8"]
    with pytest.raises(UserError, match="--stride 8 8 needs a --window"):
        predict.main([str(write_picture(tmp_path / "a.png")), *flags])


def test_subfolders_are_kept_in_the_output(student, tmp_path):
    names = ["a.jpg", "trip/a.png", "trip/day 1/a.png", ".hidden/a.png"]
    for seed, name in enumerate(names):
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        write_picture(tmp_path / "photos" / name, seed=seed)
    (tmp_path / "photos/trip/loop").symlink_to(tmp_path / "photos")
    (tmp_path / "photos/latest").symlink_to(tmp_path / "photos/trip")
    flags = [str(tmp_path / "photos"), "--pretrained", student, "--output", f"{tmp_path}/photos/out", "--blend"]
    for _ in range(2):  # the second run must not read the output of the first
        predict.main(flags)
    out = tmp_path / "photos/out"
    found = {str(path.relative_to(out)) for path in out.rglob("*.png")}
    assert found == {f"{place}a{end}.png" for place in ("", "trip/", "trip/day 1/") for end in ("", "_blend")}
    single = tmp_path / "single"
    predict.main([f"{tmp_path}/photos/trip/day 1/a.png", "--pretrained", student, "--output", str(single)])
    assert (single / "a.png").read_bytes() == (out / "trip/day 1/a.png").read_bytes()


@pytest.mark.parametrize("output", [".", "frames"])
def test_folders_in_a_folder_that_lies_in_the_output_are_searched(output, tmp_path):
    for name in ("a.jpg", "day 2/b.jpg"):
        (tmp_path / "frames" / name).parent.mkdir(parents=True, exist_ok=True)
        write_picture(tmp_path / "frames" / name)
    found = predict.find_images([str(tmp_path / "frames")], tmp_path / output)
    assert list(found.values()) == [Path("a"), Path("day 2/b")]


def test_a_link_in_place_of_a_prediction_is_not_followed(student, tmp_path):
    source = write_picture(tmp_path / "a.png")
    other_file = tmp_path / "victim"
    out = tmp_path / "out"
    other_file.write_text("precious")
    out.mkdir()
    for name in ("a.png", ".a.png.tmp", "a_blend.png"):
        (out / name).symlink_to(other_file)
    predict.main([str(source), "--pretrained", student, "--output", str(out), "--blend"])
    assert other_file.read_text() == "precious"
    assert {path.name for path in out.iterdir()} == {"a.png", "a_blend.png"}
    assert all(Image.open(path).size == (70, 45) and not path.is_symlink() for path in out.iterdir())


def test_images_of_every_size_and_mode(student, tmp_path):
    images = [((1, 1), "RGB", "png"), ((7, 3), "L", "png"), ((33, 17), "RGBA", "png"), ((40, 40), "CMYK", "jpg")]
    for i, (size, mode, suffix) in enumerate(images):
        write_picture(tmp_path / f"{i}.{suffix}", *size, mode)
    (tmp_path / "notes.txt").write_text("no image")
    predict.main([str(tmp_path), "--pretrained", student, "--output", f"{tmp_path}/out"])
    sizes = [Image.open(tmp_path / f"out/{i}.png").size for i in range(4)]
    assert sizes == [(1, 1), (3, 7), (17, 33), (40, 40)]


def test_transparent_pixels_are_white(student, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 4), dtype=np.uint8)
    pixels[:20, :, 3] = 0
    pixels[20:, :, 3] = 255
    Image.fromarray(pixels).save(tmp_path / "clear.png")
    pixels[:20, :, :3] = 255
    Image.fromarray(pixels[..., :3]).save(tmp_path / "white.png")
    files = [f"{tmp_path}/clear.png", f"{tmp_path}/white.png"]
    predict.main([*files, "--pretrained", student, "--output", f"{tmp_path}/out", "--blend"])
    for end in ("", "_blend"):
        clear = np.array(Image.open(tmp_path / f"out/clear{end}.png"))
        white = np.array(Image.open(tmp_path / f"out/white{end}.png"))
        assert np.array_equal(clear, white)


@torch.no_grad()
def test_an_image_that_is_too_small_is_named_and_skipped(student, tmp_path, monkeypatch, capsys):
    def fail(self, x, with_aux=True):
        raise RuntimeError("Calculated padded input size: (5 x 7). Kernel size can't be greater than actual input size")

    small = write_picture(tmp_path / "small.png")
    monkeypatch.setattr(Segmentor, "forward", fail)
    with pytest.raises(SystemExit):
        predict.main([str(small), "--pretrained", student, "--output", f"{tmp_path}/out"])
    assert f"skipped: {small}: an image, or a part of one, is too small for this network" in capsys.readouterr().err


def test_an_image_that_would_fill_the_memory_is_skipped_with_advice(student, tmp_path, capsys):
    image = write_picture(tmp_path / "image.png")
    flags = ["--pretrained", student, "--output", f"{tmp_path}/out", "--resize", "1000000", "1000000"]
    with pytest.raises(SystemExit):
        predict.main([str(image), *flags])
    error = capsys.readouterr().err
    assert f"skipped: {image}: an image of " in error
    assert "a smaller --resize or --scales" in error


def test_bad_images_are_named_and_skipped(student, tmp_path, capsys):
    good = write_picture(tmp_path / "good.png")
    cut = tmp_path / "cut.png"
    deep = tmp_path / "deep.png"
    cut.write_bytes(good.read_bytes()[:200])
    Image.fromarray(np.full((9, 9), 40000, np.uint16)).save(deep)
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    files = [str(cut), str(deep), str(tmp_path / "none.png"), str(tmp_path / "loop.png"), str(good)]
    with pytest.raises(SystemExit) as stopped:
        predict.main([*files, "--pretrained", student, "--output", f"{tmp_path}/out"])
    assert stopped.value.code == 1
    errors = capsys.readouterr().err.splitlines()
    assert [line.split(":")[0] for line in errors] == ["skipped"] * 4 + ["error"]
    assert "cut.png cannot be read" in errors[0]
    assert "8-bit RGB" in errors[1]
    assert "file not found" in errors[2]
    assert "symbolic links" in errors[3]
    assert "4 of 5" in errors[4]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["good.png"]


def test_bad_flags_are_refused(student, tmp_path):
    source = str(write_picture(tmp_path / "a.png"))
    other = tmp_path / "more"
    other.mkdir()
    write_picture(other / "a.jpg")
    empty = tmp_path / "empty"
    empty.mkdir()
    teacher = write_checkpoint(tmp_path / "teacher.pth", codes="random")
    for flags, message in (
        ([source, "--pretrained", teacher], "label-assisted teacher: it needs labels"),
        ([source, str(other), "--pretrained", student, "--output", f"{tmp_path}/out"], "would both be written"),
        ([source, "--pretrained", student, "--output", str(tmp_path)], "would be overwritten"),
        ([str(empty), "--pretrained", student], "holds no images"),
        (["--pretrained", student], "no images given"),
        (["", "--pretrained", student], "the name of an image is empty"),
        ([source], "--pretrained FILE is missing"),
        ([source, "--pretrained", student, "--output", "/proc/out"], r"cannot write /proc/out/\w+\.png: "),
    ):
        with pytest.raises(UserError, match=message) as raised:
            predict.main(flags)
        assert "\n" not in str(raised.value)
    assert not (tmp_path / "out").exists()


def test_the_size_of_the_training_crops_is_printed(tmp_path, capsys):
    network = write_checkpoint(tmp_path / "net.pth", config={"crop_size": [96, 128]})
    predict.main([str(write_picture(tmp_path / "a.png")), "--pretrained", network, "--output", f"{tmp_path}/out"])
    assert "trained on crops of 96x128 (height x width)" in capsys.readouterr().out


def test_a_checkpoint_without_names_and_colours(tmp_path, capsys):
    foreign = write_checkpoint(tmp_path / "foreign.pth", class_names=[], palette=[])
    source = write_picture(tmp_path / "a.png")
    predict.main([str(source), "--pretrained", foreign, "--output", f"{tmp_path}/out"])
    assert "class 3" in capsys.readouterr().out
    colors = Image.open(tmp_path / "out/a.png").getpalette()
    assert len({tuple(colors[i : i + 3]) for i in range(0, 21, 3)}) == 7


@pytest.mark.parametrize(
    "error", [RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), torch.OutOfMemoryError("CUDA")]
)
def test_other_images_are_predicted_when_one_runs_out_of_memory(error, student, tmp_path, capsys, monkeypatch):
    small = write_picture(tmp_path / "a.png")
    large = write_picture(tmp_path / "b.png", height=50)
    predict_classes = Predictor.predict_classes

    def fail_for_large_images(predictor, image, *more):
        if image.shape[2] == 50:
            raise error
        return predict_classes(predictor, image, *more)

    monkeypatch.setattr(Predictor, "predict_classes", fail_for_large_images)
    with pytest.raises(SystemExit):
        predict.main([str(large), str(small), "--pretrained", student, "--output", f"{tmp_path}/out"])
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a.png"]
    errors = capsys.readouterr().err
    assert f"skipped: {large}: out of memory for an image of 50x70: --window H W, or --resize LONG SHORT" in errors
    assert errors.endswith("error: 1 of 2 images were skipped\n")
