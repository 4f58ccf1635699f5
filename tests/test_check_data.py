"""check_data.py counts pixels exactly and lists every problem with its path."""

import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datasets import get_dataset_spec
from scripts.data import check_data
from scripts.data.pool import map_in_processes
from tests.conftest import ENVIRONMENT, ROOT
from tests.trees import TREES, draw_label, write_label, write_picture
from utils.errors import explain_error

SCRIPT = Path(__file__).parent.parent / "scripts/data/check_data.py"


def run_check(monkeypatch, tmp_path, *flags):
    """Run check_data.py in this process. Return its exit status and its JSON."""
    result = tmp_path / "result.json"
    argv = [str(SCRIPT), "--workers", "0", "--json", str(result), *map(str, flags)]
    monkeypatch.setattr(sys, "argv", argv)
    try:
        runpy.run_path(str(SCRIPT), run_name="__main__")
        status = 0
    except SystemExit as stop:
        status = stop.code
    return status, json.loads(result.read_text()) if result.exists() else None


@pytest.mark.parametrize("tree", TREES)
def test_counts_of_an_official_layout(tree, tmp_path, monkeypatch):
    name, make = TREES[tree]
    root = tmp_path / "root"
    expected = make(root)
    status, result = run_check(monkeypatch, tmp_path, "--dataset", name, "--data", root)
    assert (status, result["problems"]) == (0, [])
    names = get_dataset_spec(name, str(root)).names
    for split, labels in expected.items():
        found = result["splits"][split]
        assert found["images"] == len(labels)
        counts = np.bincount(np.concatenate([x.ravel() for x in labels]), minlength=256)
        assert found["classes"] == dict(zip(names, counts.tolist(), strict=False))
        assert found["ignored"] == counts[255]
    assert result["images"] == sum(found["images"] for found in result["splits"].values())


def test_one_split_in_worker_processes(tmp_path):
    TREES["camvid"][1](tmp_path)
    alone, shared = (check_data.check(get_dataset_spec("camvid"), tmp_path, "val", workers) for workers in (0, 2))
    assert list(alone) == list(shared) == ["val"]
    assert (alone["val"].images, shared["val"].images, shared["val"].problems) == (1, 1, [])
    assert np.array_equal(alone["val"].pixels, shared["val"].pixels)


def kill_own_process(task):
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_worker_process_is_an_error():
    with pytest.raises(BrokenProcessPool) as raised:
        list(map_in_processes(kill_own_process, [(None, None, None)], 1))
    assert "fewer --workers" in str(explain_error(raised.value))


def test_worker_processes_end_if_their_parent_is_killed():
    """A killed parent cannot tell its workers to end."""
    code = """
import multiprocessing, os, time
from scripts.data.pool import map_in_processes
def wait(task): os.write(1, b"%d\\n" % os.getpid()); time.sleep(60)  # print may write the end of a line by itself
multiprocessing.set_start_method("fork")
list(map_in_processes(wait, range(32), 2))
"""
    flags = {"cwd": ROOT, "env": ENVIRONMENT, "stdout": subprocess.PIPE, "text": True}
    process = subprocess.Popen([sys.executable, "-c", code], **flags)
    workers = [int(process.stdout.readline()) for _ in range(2)]
    process.kill()
    try:
        process.communicate(timeout=30)  # returns when all processes that can write have ended
    except subprocess.TimeoutExpired:
        for worker in workers:
            os.kill(worker, signal.SIGKILL)
        raise


def test_every_problem_is_listed_with_its_path(tmp_path, monkeypatch, capsys):
    root = tmp_path / "root"
    for n in range(9):
        for split in ("train", "val"):
            write_picture(root / f"{split}/{n}.jpg", n + (100 if split == "val" else 0))
            write_label(root / f"{split}annot/{n}.png", np.full((20, 30), n, np.uint8))
    train, annot = root / "train", root / "trainannot"
    (train / "0.jpg").write_bytes((train / "0.jpg").read_bytes()[:200])
    write_label(annot / "0.png", np.full((20, 30), 77, np.uint8))
    write_label(annot / "1.png", np.zeros((20, 31), np.uint8))
    (annot / "2.png").unlink()
    (train / "3.jpg").unlink()
    (train / "4.jpg").write_bytes(b"")
    write_label(annot / "5.png", np.zeros((20, 30, 3), np.uint8))
    shutil.copy(train / "6.jpg", root / "val/8.jpg")
    status, result = run_check(monkeypatch, tmp_path, "--dataset", "camvid", "--data", root)
    wanted = [
        f"{train}/0.jpg cannot be read",
        f"{annot}/0.png holds ids that are no class: 77 (600 px)",
        f"image and label differ in size: {train}/1.jpg is 30x20, {annot}/1.png is 31x20",
        f"file not found: {annot}/2.png",
        f"label without image: {annot}/3.png",
        f"{train}/4.jpg cannot be read",
        f"{annot}/5.png: a label must hold class ids",
        "no pixel in train is of class sky, building, pole, road, sidewalk, tree, pedestrian, bicyclist",
        f"the same image in val and train: {root}/val/8.jpg and {train}/6.jpg",
    ]
    assert status == 1
    for text in wanted:
        assert sum(problem.startswith(text) for problem in result["problems"]) == 1, text
    assert len(result["problems"]) == len(wanted)
    assert result["splits"]["train"]["classes"]["tree"] == 0
    assert result["splits"]["train"]["classes"]["sign"] == 600  # readable labels are counted
    printed = capsys.readouterr().out
    assert all(f"problem: {problem}\n" in printed for problem in result["problems"])
    assert "train: 8 images (official: 367), 8 problems" in printed


def test_problems_of_one_kind_are_one_line(tmp_path, monkeypatch, capsys):
    root = tmp_path / "a root, with blanks"
    for split in ("train", "val"):
        for n in range(9):
            write_picture(root / f"{split}/photo {n}.jpg", n + (100 if split == "val" else 0))
            write_label(root / f"{split}annot/photo {n}.png", np.full((20, 30), n + 10, np.uint8))
    (root / "trainannot/photo 3.png").unlink()
    status, result = run_check(monkeypatch, tmp_path, "--dataset", "camvid", "--data", root)
    assert (status, len(result["problems"])) == (1, 15)  # id 10 is a class, id 11 is ignored
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("problem: ")]
    assert len(lines) == 3
    assert "photo 2.png holds ids that are no class: 12 (600 px); 11 classes (13 like this; also " in lines[0]
    assert lines[0].count("photo ") == 6
    assert lines[1] == f"problem: file not found: {root}/trainannot/photo 3.png"
    assert lines[2].startswith("problem: no pixel in train is of class sky, building")


def test_files_of_one_problem_are_named_with_all_their_suffixes(tmp_path, monkeypatch, capsys):
    images = [f"i/{n}.jpg" for n in range(3)]
    write_pairs(tmp_path, images, [], "{train: {images: i, labels: m}}", "label_suffix: '{suffix}.png'")
    for n in range(3):
        write_label(tmp_path / f"m/{n}.jpg.png", np.full((20, 30), 7, np.uint8))
    run_check(monkeypatch, tmp_path, "--dataset", "folder", "--data", tmp_path, "--split", "train")
    assert f"(3 like this; also {tmp_path}/m/1.jpg.png, {tmp_path}/m/2.jpg.png)" in capsys.readouterr().out


def test_a_file_that_cannot_be_opened_hides_no_other_problem(tmp_path, monkeypatch):
    write_picture(tmp_path / "images/a.jpg")
    write_label(tmp_path / "labels/a.png", np.full((20, 30), 7, np.uint8))
    (tmp_path / "list.txt").write_text(f"a\n{'b' * 300}.jpg\n")
    split = "{images: images, labels: labels, list: list.txt}"
    (tmp_path / "dataset.yaml").write_text(f"names: [x, y]\nsplits: {{train: {split}, val: {split}}}\n")
    status, result = run_check(monkeypatch, tmp_path, "--dataset", "folder", "--data", tmp_path, "--split", "val")
    assert status == 1
    assert [problem.split(": ")[-1] for problem in result["problems"]] == [
        "7 (600 px); 2 classes",
        "File name too long",
        "File name too long",
    ]


def test_a_wrong_root_and_bad_flags(tmp_path, monkeypatch, capsys):
    status, result = run_check(monkeypatch, tmp_path, "--dataset", "voc", "--data", tmp_path)
    assert status == 1
    assert "JPEGImages" in result["problems"][0]
    for flags, message in (
        (["--dataset", "voc"], "--data ROOT: no such folder"),
        (["--dataset", "vok", "--data", tmp_path], "did you mean 'voc'"),
        (["--dataset", "voc", "--data", tmp_path, "--split", "va"], "did you mean 'val'"),
    ):
        assert run_check(monkeypatch, tmp_path, *flags)[0] == 2
        assert message in capsys.readouterr().err


def test_a_cityscapes_label_without_image_is_listed(tmp_path, monkeypatch):
    root = tmp_path / "root"
    TREES["cityscapes"][1](root)
    image = next((root / "leftImg8bit/train/aachen").iterdir())
    shutil.copy(image, image.with_name("aachen_000009_000009_leftImg8bit.png"))
    found = next((root / "gtFine/train/aachen").glob("*labelIds.png"))
    shutil.copy(found, found.with_name("aachen_000009_000009_gtFine_labelIds.png"))
    image.unlink()
    status, result = run_check(monkeypatch, tmp_path, "--dataset", "cityscapes", "--data", root, "--split", "train")
    assert (status, result["problems"]) == (1, [f"label without image: {found}"])


def test_a_label_without_image_is_listed_if_names_have_prefixes(tmp_path, monkeypatch):
    for n in range(3):
        write_picture(tmp_path / f"img_{n}.png")
    for n in range(4):
        write_label(tmp_path / f"mask_{n}.png", np.arange(600, dtype=np.uint8).reshape(20, 30) % 2)
    (tmp_path / "dataset.yaml").write_text(
        "names: [a, b]\nimage_prefix: img_\nlabel_prefix: mask_\nsplits: {train: {images: ., labels: .}}\n"
    )
    status, result = run_check(monkeypatch, tmp_path, "--dataset", "folder", "--data", tmp_path, "--split", "train")
    assert (status, result["problems"]) == (1, [f"label without image: {tmp_path / 'mask_3.png'}"])


def write_pairs(root: Path, images: list[str], labels: list[str], splits: str, more: str = "") -> None:
    """Write images, labels of two classes, and a dataset.yaml. more: further lines of it."""
    for n, place in enumerate(images):
        write_picture(root / place, n)
    for n, place in enumerate(labels):
        write_label(root / place, draw_label(range(2), n))
    (root / "dataset.yaml").write_text(f"names: [a, b]\nsplits: {splits}\n{more}")


@pytest.mark.parametrize(
    "splits",
    [
        "{train: {images: i/a, labels: m}, val: {images: i/b, labels: m}}",
        "{train: {images: i/*, labels: m}}",
        "{train: {images: i/*, labels: m, list: some.txt}}",
    ],
)
def test_labels_of_several_folders_of_images_may_lie_in_one_folder(splits, tmp_path, monkeypatch):
    images = ["i/a/0.jpg", "i/a/1.jpg", "i/b/2.jpg", "i/b/3.jpg"]
    write_pairs(tmp_path, images, [f"m/{n}.png" for n in range(5)], splits)
    (tmp_path / "some.txt").write_text("0\n2\n")
    status, result = run_check(monkeypatch, tmp_path, "--dataset", "folder", "--data", tmp_path)
    assert (status, result["problems"]) == (1, [f"label without image: {tmp_path}/m/4.png"])


@pytest.mark.parametrize(
    ("image", "label", "more"),
    [
        ("{}.jpg", "{}.png", ""),
        ("{}.jpg", "{}_mask.png", "label_suffix: _mask.png"),
    ],
)
def test_a_label_without_image_is_listed_if_labels_lie_beside_their_images(image, label, more, tmp_path, monkeypatch):
    images = [f"d/{image.format(n)}" for n in range(3)]
    labels = [f"d/{label.format(n)}" for n in range(4)]
    write_pairs(tmp_path, images, labels, "{train: {images: d, labels: d}}", more)
    status, result = run_check(monkeypatch, tmp_path, "--dataset", "folder", "--data", tmp_path, "--split", "train")
    assert (status, result["problems"]) == (1, [f"label without image: {tmp_path / labels[3]}"])


def write_image_and_label(
    root: Path, name: str, orientation: int, size: tuple[int, int], label_size: tuple[int, int]
) -> None:
    """Write an image with an EXIF orientation, and a label that may have another size."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = np.random.default_rng(orientation).integers(0, 256, (*size, 3), dtype=np.uint8)
    (root / "images").mkdir(exist_ok=True, parents=True)
    Image.fromarray(pixels).save(root / f"images/{name}", exif=exif)
    write_label(
        root / f"masks/{Path(name).stem}.png", np.arange(size[0] * size[1], dtype=np.uint8).reshape(label_size) % 2
    )


def test_images_are_warned_of_if_the_label_does_not_show_the_orientation(tmp_path, monkeypatch, capsys):
    suffixes = ["png", "jpg", "tif", "webp"]
    for suffix in suffixes:
        for orientation in (1, 2, 3, 4):
            write_image_and_label(tmp_path, f"{suffix}{orientation}.{suffix}", orientation, (6, 8), (6, 8))
        for orientation in (5, 6, 7, 8):
            write_image_and_label(tmp_path, f"{suffix}{orientation}.{suffix}", orientation, (6, 6), (6, 6))
            # here the size of the label shows that it was drawn on the rotated image
            write_image_and_label(tmp_path, f"{suffix}_told{orientation}.{suffix}", orientation, (6, 8), (8, 6))
    (tmp_path / "dataset.yaml").write_text("names: [a, b]\nsplits:\n  train: {images: images, labels: masks}\n")
    status, result = run_check(monkeypatch, tmp_path, "--dataset", "folder", "--data", tmp_path, "--split", "train")
    assert (status, result["problems"]) == (0, [])
    expected = sorted(f"{suffix}{orientation}.{suffix}" for suffix in suffixes for orientation in range(2, 9))
    assert sorted(Path(warning.split()[0]).name for warning in result["warnings"]) == expected
    printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning: ")]
    assert sorted(printed) == sorted(f"warning: {warning}" for warning in result["warnings"])


def test_a_label_with_an_exif_orientation_is_warned_of(tmp_path, monkeypatch):
    write_image_and_label(tmp_path, "a.png", 1, (6, 8), (6, 8))
    exif = Image.Exif()
    exif[0x0112] = 3
    with Image.open(tmp_path / "masks/a.png") as file:
        ids = np.array(file)
    Image.fromarray(ids).save(tmp_path / "masks/a.png", exif=exif)
    (tmp_path / "dataset.yaml").write_text("names: [a, b]\nsplits:\n  train: {images: images, labels: masks}\n")
    status, result = run_check(monkeypatch, tmp_path, "--dataset", "folder", "--data", tmp_path, "--split", "train")
    assert status == 0
    assert result["warnings"] == [f"{tmp_path}/masks/a.png is a label with EXIF orientation 3, which is not applied"]


def test_a_data_set_without_a_train_split_is_warned_of(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    TREES["folder"][1](tmp_path)
    path = tmp_path / "dataset.yaml"
    path.write_text(path.read_text().replace("train: {", "test: {"))
    flags = ["--dataset", "folder", "--data", str(tmp_path), "--workers", "0"]
    check_data.main([*flags, "--json", "found.json"])
    assert f"warning: {tmp_path} has no train split (only test, val)" in capsys.readouterr().out
    found = json.loads(Path("found.json").read_text())
    assert found["problems"] == []
    assert "no train split" in found["warnings"][0]
    check_data.main([*flags, "--split", "val"])
    assert "warning" not in capsys.readouterr().out
