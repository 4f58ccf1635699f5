"""Test the user's own data: labels as ids and as colours, lists, and the script that describes an unknown folder."""

import shlex
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from PIL import Image

from datasets import build_dataset, get_dataset_spec
from datasets.base import convert_label, read_sample
from datasets.files import read_label
from scripts.data import describe_folder, shrink_dataset
from scripts.data.label_hints import find_split_in_path
from tests.trees import SIZE, draw_label, write_picture
from utils.errors import UserError

COLORS = np.array([(0, 0, 0), (128, 0, 0), (0, 128, 0), (64, 0, 128)], np.uint8)


def save_label(path: Path, ids: np.ndarray, form: str = "RGB") -> None:
    """Save a label. ``form`` is "ids", or a mode of PIL in which every id has its colour."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if form == "ids":
        file = Image.fromarray(ids)
    elif form == "P":
        file = Image.fromarray(3 - ids)  # so that the ids in a palette file differ from the classes
        file.putpalette(COLORS[::-1].ravel().tolist())
    else:
        file = Image.fromarray(COLORS[ids]).convert(form)
        if form == "RGBA":
            file.putalpha(Image.fromarray((ids * 80).astype(np.uint8)))
    file.save(path)


def write_dataset(root: Path, text: str, form: str = "RGB", ids: np.ndarray | None = None) -> np.ndarray:
    """Write a data set with two splits of one image each. Return the ids of both labels."""
    ids = draw_label(range(4), 1) if ids is None else ids
    for split in ("train", "val"):
        write_picture(root / f"{split}/a.jpg")
        save_label(root / f"{split}annot/a.png", ids, form)
    splits = "splits:\n  train: {images: train, labels: trainannot}\n  val: {images: val, labels: valannot}\n"
    (root / "dataset.yaml").write_text(splits + text)
    return ids


COLOR_CLASSES = "colors: {a: [128, 0, 0], b: [0, 128, 0], c: [64, 0, 128]}\nignore: [[0, 0, 0]]\n"
CLASS_OF_ID = np.array([255, 0, 1, 2], np.uint8)


@pytest.mark.parametrize("form", ["RGB", "RGBA", "P"])
def test_colour_labels_are_read_as_classes(form, tmp_path):
    ids = write_dataset(tmp_path, COLOR_CLASSES, form)
    dataset = build_dataset("folder", str(tmp_path), "val")
    assert dataset.spec.names == ("a", "b", "c")
    assert dataset.spec.palette == ((128, 0, 0), (0, 128, 0), (64, 0, 128))
    assert np.array_equal(dataset.read(0)[1], CLASS_OF_ID[ids])
    cached = build_dataset("folder", str(tmp_path), "val", cache_gb=0.1)
    assert all(np.array_equal(cached.read(0)[1], CLASS_OF_ID[ids]) for _ in range(2))
    official = dataset.spec.ids.to_official(np.array([[2, 0, 1]]))
    assert official.dtype == np.uint8
    assert official.tolist() == [[[64, 0, 128], [128, 0, 0], [0, 128, 0]]]


def test_a_key_without_a_value_counts_as_absent(tmp_path):
    ids = write_dataset(tmp_path, "names: [a, b, c, d]\npalette:\nignore: [[0, 0, 0]]\n")
    save_label(tmp_path / "valannot/a.png", ids, "ids")
    assert np.array_equal(build_dataset("folder", str(tmp_path), "val").read(0)[1], ids)


def test_a_class_of_several_colours_and_names_in_another_order(tmp_path):
    text = "names: [c, a]\npalette: [[1, 2, 3], [4, 5, 6]]\n"
    ids = write_dataset(tmp_path, text + "colors: {a: [[0, 0, 0], [128, 0, 0]], c: [[0, 128, 0], [64, 0, 128]]}\n")
    dataset = build_dataset("folder", str(tmp_path), "train")
    assert np.array_equal(dataset.read(0)[1], np.array([1, 1, 0, 0])[ids])
    assert dataset.spec.palette == ((1, 2, 3), (4, 5, 6))


def test_grey_labels_may_be_colours(tmp_path):
    ids = write_dataset(tmp_path, "colors: {a: [0, 0, 0], b: [255, 255, 255]}\n", "ids", draw_label((0, 255), 3))
    assert np.array_equal(build_dataset("folder", str(tmp_path), "val").read(0)[1], ids // 255)


def test_colour_labels_may_be_mixed_with_id_labels(tmp_path):
    ids = write_dataset(tmp_path, f"names: [w, x, y, z]\npalette: {COLORS.tolist()}\n")
    save_label(tmp_path / "valannot/a.png", ids, "ids")
    for split in ("train", "val"):
        assert np.array_equal(build_dataset("folder", str(tmp_path), split).read(0)[1], ids)
    text = f"names: [x, y, z]\nids: {{1: x, 2: y, 3: z}}\npalette: {COLORS[1:].tolist()}\nignore: [0, [0, 0, 0]]\n"
    write_dataset(tmp_path, text)
    save_label(tmp_path / "valannot/a.png", ids, "ids")
    for split in ("train", "val"):
        assert np.array_equal(build_dataset("folder", str(tmp_path), split).read(0)[1], CLASS_OF_ID[ids])


def test_a_shrunk_copy_keeps_its_colours(tmp_path):
    ids = write_dataset(tmp_path / "large", COLOR_CLASSES, "RGBA")
    small = tmp_path / "small"
    flags = ["--dataset", "folder", "--source", str(tmp_path / "large"), "--data", str(small), "--factor", "2"]
    shrink_dataset.main(flags)
    squares = CLASS_OF_ID[ids].reshape(SIZE[0] // 2, 2, -1, 2)
    label = build_dataset("folder", str(small), "val").read(0)[1]
    assert (squares == label[:, None, :, None]).any((1, 3)).all()


def test_unknown_colours_are_refused_with_their_counts(tmp_path):
    ids = draw_label(range(4), 1)
    ids[:3, :4] = 1
    ids[5, :5] = 3
    count = (ids == 1).sum(), (ids == 3).sum()
    write_dataset(tmp_path, "colors: {a: [0, 0, 0], b: [0, 128, 0]}\n", ids=ids)
    first, second = sorted([(count[0], [128, 0, 0]), (count[1], [64, 0, 128])], reverse=True)
    with pytest.raises(UserError) as error:
        build_dataset("folder", str(tmp_path), "val").read(0)
    found = f"{first[1]} ({first[0]} px), {second[1]} ({second[0]} px)"
    assert str(error.value) == f"{tmp_path}/valannot/a.png holds colours that are no class: {found}; 2 classes"


def test_labels_without_valid_colours_are_refused(tmp_path):
    write_dataset(tmp_path, COLOR_CLASSES)
    spec = get_dataset_spec("folder", str(tmp_path))
    deep, image = tmp_path / "deep.png", tmp_path / "val/a.jpg"
    Image.fromarray(np.full(SIZE, 300, np.uint16)).save(deep)
    with pytest.raises(UserError, match=r"deep.png: a label of colours must be an 8-bit picture, found mode I;16"):
        read_sample(spec, image, deep)
    Image.fromarray(COLORS[draw_label(range(4), 1)][:7]).save(deep)
    with pytest.raises(UserError, match=r"differ in size: .*a.jpg is 30x20, .*deep.png is 30x7"):
        read_sample(spec, image, deep)
    write_dataset(tmp_path, "names: [w, x, y, z]\n")
    with pytest.raises(UserError, match=r"a.png: a label must hold class ids .*found mode RGB; colours: see"):
        build_dataset("folder", str(tmp_path), "val").read(0)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("colors: [1, 2]\n", "colors must be {class"),
        ("colors: {a: [0, 0, 0], b: [0, 0]}\n", "colors must be one or more colours"),
        ("colors: {a: [0, 0, 0], b: [0, 0, 256]}\n", "colors must be one or more colours"),
        ("colors: {a: [0, 0, 0], b: [0, 0, 0]}\n", "colors must be different for different classes"),
        ("colors: {a: [0, 0, 0]}\n", "names must be 2 or more"),
        ("names: [a, c]\ncolors: {a: [0, 0, 0], b: [0, 0, 1]}\n", "one or more colours .* for each class"),
        ("ids: {0: a}\ncolors: {a: [0, 0, 0], b: [0, 0, 1]}\n", "colors must be left out where there are ids"),
        ("colors: {a: [0, 0, 0], b: [0, 0, 1]}\nignore: [[0, 0, 1]]\n", "ignore must be colours"),
        ("colors: {a: [0, 0, 0], b: [0, 0, 1]}\nignore: 255\n", "ignore must be colours"),
        ("names: [a, b]\nimage_suffix: 3\n", "image_suffix must be the end of a file name"),
        ("names: [a, b]\nlabel_prefix: 3\n", "label_prefix must be the beginning of a file name"),
        ("label_suffix: .png\n", "lacks the key 'names'"),
    ],
)
def test_a_wrong_description_of_colours_is_refused(text, problem, tmp_path):
    write_dataset(tmp_path, text)
    with pytest.raises(UserError, match=problem):
        get_dataset_spec("folder", str(tmp_path))


def test_a_list_picks_images_by_name(tmp_path):
    write_dataset(tmp_path, "names: [a, b, c, d]\n")
    for name in ("b", "c"):
        write_picture(tmp_path / f"train/{name}.jpg")
        save_label(tmp_path / f"trainannot/{name}.png", draw_label(range(4), 2), "ids")
    path = tmp_path / "dataset.yaml"
    path.write_text(path.read_text().replace("labels: trainannot}", "labels: trainannot, list: some.txt}"))
    (tmp_path / "some.txt").write_text("train/c.jpg\nb\n")
    pairs = get_dataset_spec("folder", str(tmp_path)).pairs(tmp_path, "train")
    assert [(image.name, label.name) for image, label in pairs] == [("b.jpg", "b.png"), ("c.jpg", "c.png")]
    (tmp_path / "some.txt").write_text("b\nnone\n")
    with pytest.raises(UserError, match=r"1 of 2 image and label pairs are incomplete; first missing: .*train/none"):
        build_dataset("folder", str(tmp_path), "train")
    (tmp_path / "some.txt").write_text("b\nother/b.jpg\n")
    with pytest.raises(UserError, match=r"some.txt has 2 lines for 1 images"):
        build_dataset("folder", str(tmp_path), "train")
    write_picture(tmp_path / "train/b.png")
    with pytest.raises(
        UserError, match=r"some.txt: b may be .*train/b.jpg or .*train/b.png: name its folder or suffix"
    ):
        build_dataset("folder", str(tmp_path), "train")
    path.write_text(path.read_text().replace(", list: some.txt", ""))
    with pytest.raises(UserError, match=r"train/b.jpg and b.png would have one label, .*b.png: set image_suffix"):
        build_dataset("folder", str(tmp_path), "train")


def test_images_of_one_name_and_two_suffixes_keep_their_suffixes(tmp_path):
    for name in ("a.jpg", "a.png", "b.jpg"):
        write_picture(tmp_path / "images" / name)
        save_label(tmp_path / f"labels/{name}.png", draw_label(range(4), 1), "ids")
    lines = ["names: [w, x, y, z]", 'label_suffix: "{suffix}.png"', "splits:"]
    lines.append("  val: {images: images, labels: labels}")
    (tmp_path / "dataset.yaml").write_text("\n".join(lines))
    assert build_dataset("folder", str(tmp_path), "val").names == ["a.jpg", "a.png", "b.jpg"]


def test_a_star_matches_any_folder_name(tmp_path):
    for drive, names in (("d1", "ab"), ("d2", "bc")):
        for name in names:
            write_picture(tmp_path / f"{drive}/rgb/{name}.jpg")
            save_label(tmp_path / f"{drive}/mask/{name}.png", draw_label(range(2), 1), "ids")

    def list_pairs(images: str, labels: str, lines: str = "") -> list[str]:
        """Return the parent folder, the image and the label of every pair that this description gives."""
        entry = {"images": images, "labels": labels} | ({"list": "some.txt"} if lines else {})
        (tmp_path / "some.txt").write_text(lines)
        (tmp_path / "dataset.yaml").write_text(yaml.safe_dump({"names": ["x", "y"], "splits": {"train": entry}}))
        found = get_dataset_spec("folder", str(tmp_path)).pairs(tmp_path, "train")
        assert all(image.parent.parent == label.parent.parent for image, label in found)
        return [f"{image.parent.parent.name}{image.stem}{label.stem}" for image, label in found]

    write_picture(tmp_path / ".hidden/rgb/a.jpg")
    assert list_pairs("*/rgb", "*/mask") == ["d1aa", "d1bb", "d2bb", "d2cc"]
    assert list_pairs("./d*/rgb/", "d*/mask") == ["d1aa", "d1bb", "d2bb", "d2cc"]
    names = build_dataset("folder", str(tmp_path), "train").names
    assert names == ["d1/rgb/a", "d1/rgb/b", "d2/rgb/b", "d2/rgb/c"]
    assert list_pairs("*/rgb", "*/mask", "c\nd1/a\nd2/rgb/b.jpg\n") == ["d1aa", "d2bb", "d2cc"]
    with pytest.raises(UserError, match=r"some.txt: b may be .*d1/rgb/b.jpg or .*d2/rgb/b.jpg: name its folder"):
        list_pairs("*/rgb", "*/mask", "a\nb\n")
    with pytest.raises(UserError, match=r"d1/rgb/b.jpg and b.jpg would have one label, .*: set image_suffix"):
        list_pairs("*/rgb", "d1/mask")
    with pytest.raises(UserError, match=r"holds no folder \*/image"):
        list_pairs("*/image", "*/mask")
    for images, labels in (
        ("*/rgb", "*/*"),
        ("rgb", "*/mask"),
        ("**/rgb", "**/mask"),
        ("/*/rgb", "*/mask"),
        ("a\0", "b"),
    ):
        with pytest.raises(UserError, match=r"splits must be train: .*a \* in both or in images alone"):
            list_pairs(images, labels)


FLAT = {"all": ("images/{}.jpg", "masks/{}.png")}
FLAT_SPLITS = {s: {"images": "images", "labels": "masks", "list": f"{s}_names.txt"} for s in ("train", "val")}
LONG_NAMES = {"train": "training", "val": "validation"}
# layout -> (places by split, form of the labels, what dataset.yaml must hold)
LAYOUTS = {
    "camvid": ({s: (f"{s}/{{}}.png", f"{s}annot/{{}}.png") for s in ("train", "val", "test")}, "ids", {"ignore": []}),
    "split below": (
        {s: (f"images/{folder}/{{}}.jpg", f"labels/{folder}/{{}}.png") for s, folder in LONG_NAMES.items()},
        "RGB",
        {
            "splits": {
                s: {"images": f"images/{folder}", "labels": f"labels/{folder}"} for s, folder in LONG_NAMES.items()
            }
        },
    ),
    "split above, RGBA": ({s: (f"{s}/img/{{}}.jpg", f"{s}/gt/{{}}.png") for s in ("train", "valid")}, "RGBA", {}),
    "no split": (FLAT, "RGB", {"splits": FLAT_SPLITS}),
    "palette": (FLAT, "P", {}),
    "endings": (
        {"train": ("train/{}_sat.jpg", "train/{}_mask.png")},
        "RGB",
        {"image_suffix": "_sat.jpg", "label_suffix": "_mask.png"},
    ),
    "side by side": ({"all": ("{}.jpg", "{}.png")}, "ids", {"names": [f"class_{k}" for k in range(4)]}),
    "two suffixes": ({"all": ("ds/img/{}.jpg", "ds/ann/{}.jpg.png")}, "RGB", {"label_suffix": ".jpg.png"}),
    "flat photos": (FLAT, "RGB", {}),  # only the names of the folders show which files are labels
    "folders of sequences": (
        {k: (f"images/{k}/{{}}.jpg", f"labels/{k}/{{}}.png") for k in ("a", "b", "c")},
        "ids",
        {
            "splits": {
                s: {"images": "images/*", "labels": "labels/*", "list": f"{s}_names.txt"} for s in ("train", "val")
            }
        },
    ),
    "a depth beside": (
        {k: (f"drives/{k}/rgb/{{}}.jpg", f"labels/{k}/{{}}.png") for k in ("a", "b", "c")},
        "RGB",
        {"splits": {s: {"images": "drives/*/rgb", "labels": "labels/*", "list": f"{s}_names.txt"} for s in LONG_NAMES}},
    ),
    "sequences, splits": (
        {f"{s}{k}": (f"{s}/{k}/rgb/{{}}.jpg", f"{s}/{k}/mask/{{}}.png") for s in ("train", "val") for k in "xy"},
        "RGB",
        {"splits": {s: {"images": f"{s}/*/rgb", "labels": f"{s}/*/mask"} for s in ("train", "val")}},
    ),
    "test without val": ({s: (f"{s}/{{}}.jpg", f"{s}_labels/{{}}.png") for s in ("train", "test")}, "RGB", {}),
}


def write_photos(root: Path, count: int) -> None:
    """Write images and labels of three classes into two folders."""
    for n in range(count):
        write_picture(root / f"images/{n}.jpg", n)
        save_label(root / f"masks/{n}.png", draw_label(range(3), n), "ids")


def describe(root: Path, *flags: str) -> dict:
    """Run the script that describes a folder. Return the content of the dataset.yaml that it writes."""
    describe_folder.main(["--data", str(root), *flags])
    return yaml.safe_load((root / "dataset.yaml").read_text())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_unknown_folder_is_described_so_that_it_can_be_read(layout, tmp_path):
    places, form, expected = LAYOUTS[layout]
    labels = {}
    for k, (image, label) in enumerate(places.values()):
        for n in range(6):
            path = tmp_path / image.format(n)
            write_picture(path, n + 10 * k)
            if layout == "flat photos":
                Image.new("RGB", SIZE[::-1], (n, n, n)).save(path)
            if layout == "a depth beside":
                save_label(path.parents[1] / f"depth/{n}.png", draw_label(range(9), n), "ids")
            labels[path] = draw_label(range(4), n + 10 * k)
            save_label(tmp_path / label.format(n), labels[path], form)
    content = describe(tmp_path)
    assert {key: content[key] for key in expected} == expected
    assert {"train", "val"} <= set(content["splits"])
    remark = "# not used, neither images with labels nor these: drives/a/depth, drives/b/depth, drives/c/depth\n"
    text = (tmp_path / "dataset.yaml").read_text()
    has_unused_folders = layout == "a depth beside"
    assert ("not used" in text) == has_unused_folders
    assert (remark in text) == has_unused_folders
    seen = []
    for split in content["splits"]:
        dataset = build_dataset("folder", str(tmp_path), split)
        for i, (image, _) in enumerate(dataset.pairs):
            label = dataset.read(i)[1]
            colors = np.array(dataset.spec.palette)[label]
            if form in ("RGB", "RGBA"):
                assert np.array_equal(colors, COLORS[labels[image]])
            else:
                assert np.array_equal(label, labels[image] if form == "ids" else 3 - labels[image])
            seen.append(image)
    assert sorted(seen) == sorted(labels)


def test_lists_become_splits(tmp_path):
    for n in range(8):
        write_picture(tmp_path / f"images/{n}.jpg", n)
        save_label(tmp_path / f"masks/{n}.png", draw_label(range(4), n))
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists/train_ids.txt").write_text("0\n1.jpg\nimages/2.jpg\n\n3\n4\n")
    (tmp_path / "lists/val.txt").write_text("5\r\n6\r\n7\r\n")
    (tmp_path / "lists/trainer.txt").write_text("some other words\n")
    splits = describe(tmp_path)["splits"]
    assert {name: entry["list"] for name, entry in splits.items()} == {
        "train": "lists/train_ids.txt",
        "val": "lists/val.txt",
    }
    assert len(build_dataset("folder", str(tmp_path), "train")) == 5


@pytest.mark.parametrize("other", ["trainval.txt", "train_and_val_all.txt", "train_extra.txt"])
def test_a_list_of_all_images_is_no_list_for_training(other, tmp_path):
    write_photos(tmp_path, 6)
    (tmp_path / "train.txt").write_text("0\n1\n2\n")
    (tmp_path / "val.txt").write_text("3\n4\n5\n")
    (tmp_path / other).write_text("0\n1\n2\n3\n4\n5\n")
    splits = describe(tmp_path)["splits"]
    assert {name: entry["list"] for name, entry in splits.items()} == {"train": "train.txt", "val": "val.txt"}


def test_images_in_two_lists_are_reported(tmp_path):
    write_photos(tmp_path, 6)
    (tmp_path / "train_all.txt").write_text("0\n1\n2\n3\n")
    (tmp_path / "val.txt").write_text("3\n4\n5\n")
    describe(tmp_path)
    assert "# 1 images are in train_all.txt and in val.txt" in (tmp_path / "dataset.yaml").read_text()


def test_labels_in_an_unsupported_format_are_reported(tmp_path):
    write_photos(tmp_path, 3)
    for path in (tmp_path / "masks").iterdir():
        path.rename(path.with_suffix(".gif"))
    with pytest.raises(UserError, match=r"There are also files that are not read: 3 \.gif; convert to PNG"):
        describe(tmp_path)


def test_lists_in_utf_16_become_splits(tmp_path):
    for n in range(4):
        write_picture(tmp_path / f"images/{n}.jpg", n)
        save_label(tmp_path / f"masks/{n}.png", draw_label(range(4), n))
    (tmp_path / "train.txt").write_bytes("0\r\n2.jpg\r\n".encode("utf-16"))
    (tmp_path / "val.txt").write_bytes("1\r\n3\r\n".encode("utf-16-le"))
    splits = describe(tmp_path)["splits"]
    assert {name: entry["list"] for name, entry in splits.items()} == {"train": "train.txt", "val": "val.txt"}
    assert len(get_dataset_spec("folder", str(tmp_path)).pairs(tmp_path, "val")) == 2
    (tmp_path / "train.txt").write_bytes(b"0\n\0\0\0\n2\n")
    with pytest.raises(UserError, match=r"train\.txt is no text file: zero bytes, the first in line 2"):
        describe(tmp_path, "--overwrite")


def test_images_without_a_label_are_reported(tmp_path):
    for n in range(6):
        write_picture(tmp_path / f"images/{n}.jpg", n)
        if n < 4:
            save_label(tmp_path / f"masks/{n}.png", draw_label(range(4), n))
    (tmp_path / "train.txt").mkdir()
    describe(tmp_path)
    assert "# 2 images of images have no label called NAME.png\n" in (tmp_path / "dataset.yaml").read_text()


def test_fewer_than_half_of_the_images_may_have_a_label(tmp_path):
    pairs = write_places(tmp_path, (".",), 20, "images/{n}.jpg", "masks/{n}.png")
    for n in range(8, 20):
        (tmp_path / f"masks/{n}.png").unlink()
    labelled = [image for image, label in pairs.items() if (tmp_path / label).exists()]
    names = list_names(tmp_path, describe(tmp_path))
    assert sorted(names["train"] + names["val"]) == [image.removesuffix(".jpg") for image in labelled]
    assert "# 12 images of images have no label called NAME.png\n" in (tmp_path / "dataset.yaml").read_text()


@pytest.mark.parametrize("place", ["{folder}/images/{n}.jpg", "images/{folder}/{n}.jpg"])
def test_the_few_labels_of_a_sequence_are_not_taken_for_those_of_another(place, tmp_path):
    pairs = write_places(tmp_path, ("a",), 8, place, place.replace("images", "masks").replace("jpg", "png"))
    for n in range(20):
        write_picture(tmp_path / place.format(folder="b", n=n), 50 + n)
    assert read_pairs(tmp_path, describe(tmp_path)) == pairs


# places of images and labels; all images and labels form pairs
ONE_NAMING = {
    "a suffix behind another": [("img/{}.jpg", "ann/{}.jpg.png"), ("img/{}.png", "ann/{}.png.png")],
    "in one folder": [("{}.jpg", "{}.jpg.png"), ("{}.png", "{}.png.png"), ("{}.jpeg", "{}.jpeg.png")],
    "in two folders": [("train/img/{}.jpg", "train/ann/{}.jpg.png"), ("val/img/{}.png", "val/ann/{}.png.png")],
    "a folder each": [("{}_json/img.png", "{}_json/label.png")],
    "a folder each, by split": [("train/{}/image.jpg", "train/{}/mask.png"), ("val/{}/image.jpg", "val/{}/mask.png")],
}
TWO_NAMINGS = {
    "labels in capitals": [("images/{}.jpg", "masks/{}.png"), ("images/{}.jpg", "masks/{}.PNG")],
    "labels of two suffixes": [("images/{}.jpg", "masks/{}.png"), ("images/{}.jpg", "masks/{}.bmp")],
    "labels of two endings": [("images/{}.jpg", "masks/{}_mask.png"), ("images/{}.jpg", "masks/{}_gt.png")],
    "images of two endings": [("images/{}_sat.jpg", "masks/{}_mask.png"), ("images/{}_sat.png", "masks/{}_mask.png")],
    "folders of two forms": [("train/img/{}.jpg", "train/ann/{}_mask.png"), ("val/img/{}.jpg", "val/ann/{}.png")],
}


def write_pairs(root: Path, places: list[tuple[str, str]]) -> dict[Path, Path]:
    """Write eight images and their labels, using the places in turn. Return the label of each image."""
    pairs = {}
    for n in range(8):
        image, label = (root / place.format(f"scene{n}") for place in places[n % len(places)])
        write_picture(image, n)
        save_label(label, draw_label(range(3), n), "ids")
        pairs[image] = label
    return pairs


@pytest.mark.parametrize("layout", ONE_NAMING)
def test_every_pair_is_found(layout, tmp_path):
    pairs = write_pairs(tmp_path, ONE_NAMING[layout])
    if layout == "a folder each":
        write_picture(tmp_path / "scene3_json/label_viz.png", 9)
        write_picture(tmp_path / "overview/map.jpg", 9)  # a folder without a label
    content = describe(tmp_path)
    spec = get_dataset_spec("folder", str(tmp_path))
    assert dict(pair for split in content["splits"] for pair in spec.pairs(tmp_path, split)) == pairs
    assert "left out" not in (tmp_path / "dataset.yaml").read_text()


@pytest.mark.parametrize("layout", TWO_NAMINGS)
def test_pairs_named_in_two_ways_are_refused(layout, tmp_path):
    write_pairs(tmp_path, TWO_NAMINGS[layout])
    with pytest.raises(UserError, match=r"name all (labels|images|of them) in one way"):
        describe(tmp_path)
    assert not (tmp_path / "dataset.yaml").exists()


def test_a_list_finds_labels_whose_names_contain_the_suffix_of_the_image(tmp_path):
    write_pairs(tmp_path, ONE_NAMING["a suffix behind another"])
    (tmp_path / "train.txt").write_text("scene0\nscene1.png\nimg/scene2.jpg\n")
    (tmp_path / "val.txt").write_text("scene4.jpg\nscene5\n")
    assert {name: entry["list"] for name, entry in describe(tmp_path)["splits"].items()} == {
        "train": "train.txt",
        "val": "val.txt",
    }
    labels = [label.name for _, label in get_dataset_spec("folder", str(tmp_path)).pairs(tmp_path, "train")]
    assert labels == ["scene0.jpg.png", "scene1.png.png", "scene2.jpg.png"]


def test_ignored_values_come_from_counts(tmp_path):
    ids = np.zeros(SIZE, np.uint8)
    ids[1:] = draw_label(range(1, 4), 0)[1:]  # black on 5 % of the pixels
    for n in range(5):
        write_picture(tmp_path / f"images/{n}.jpg", n)
        save_label(tmp_path / f"labels/{n}.png", ids)
    content = describe(tmp_path)
    assert content["ignore"] == [[0, 0, 0]]
    assert content["colors"]["class_800000"] == [128, 0, 0]
    text = (tmp_path / "dataset.yaml").read_text()
    assert "[0, 0, 0]: 5.00% of the pixels, in 5 of 5 files" in text
    for n in range(5):
        save_label(tmp_path / f"labels/{n}.png", np.where(ids == 0, 255, ids).astype(np.uint8), "ids")
    content = describe(tmp_path, "--overwrite")
    assert (content["names"], content["ignore"]) == (["class_1", "class_2", "class_3"], [255])
    assert content["ids"] == {1: 0, 2: 1, 3: 2}
    with pytest.raises(UserError, match=r"dataset\.yaml exists: --overwrite replaces it"):
        describe(tmp_path)


def write_masks(root: Path, change: Callable[[np.ndarray, int], np.ndarray]) -> None:
    """Write ten images and masks of 48x64 pixels. Pass each mask through ``change(mask, n)``.

    A mask has a rectangle of 255 (29 % of the pixels) on a background of 0.
    """
    for n in range(10):
        write_picture(root / f"images/{n}.jpg", n)
        mask = np.zeros((48, 64), np.uint8)
        mask[8:40, 8 + n : 36 + n] = 255
        mask = change(mask, n)
        path = root / f"masks/{n}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(mask).save(path)


def add_two_greys_to_mask_4(mask: np.ndarray, n: int) -> np.ndarray:
    if n == 4:
        mask[8, 12] = 127
        mask[39, 39] = 254
    return mask


def shrink_mask_4(mask: np.ndarray, n: int) -> np.ndarray:
    """Make one mask smaller by averaging, which blends the values at the edges."""
    if n == 4:
        return cv2.resize(mask, (43, 31), interpolation=cv2.INTER_AREA)
    return mask


@pytest.mark.parametrize("change", [add_two_greys_to_mask_4, shrink_mask_4])
def test_stray_greys_do_not_make_the_foreground_unlabelled(change, tmp_path):
    write_masks(tmp_path, change)
    content = describe(tmp_path)
    assert (content["names"], content["ids"]) == (["class_0", "class_255"], {0: 0, 255: 1})
    greys = sorted({value for n in range(10) for value in np.unique(read_label(tmp_path / f"masks/{n}.png")).tolist()})
    assert content["ignore"] == greys[1:-1] != []
    text = (tmp_path / "dataset.yaml").read_text()
    assert "# stray values, at the edges of others as in a mask that was resized: " in text
    assert "# 255 is taken for a class (" in text


def test_values_at_the_edges_of_small_masks_are_not_classes(tmp_path):
    """All masks are made smaller by averaging, so that many pixels at their edges have blended values."""
    write_masks(tmp_path, lambda mask, n: cv2.resize(mask, (31, 23), interpolation=cv2.INTER_AREA))
    content = describe(tmp_path)
    assert (content["names"], content["ids"]) == (["class_0", "class_255"], {0: 0, 255: 1})
    assert len(content["ignore"]) > 2


def test_one_folder_of_a_folder_per_image_may_lack_its_label(tmp_path):
    for n in range(10):
        write_picture(tmp_path / f"scene{n}_json/img.png", n)
        if n != 3:
            save_label(tmp_path / f"scene{n}_json/label.png", draw_label(range(3), n), "ids")
    content = describe(tmp_path)
    pairs = [pair for split in ("train", "val") for pair in build_dataset("folder", str(tmp_path), split).pairs]
    assert sorted(image.parent.name for image, _ in pairs) == [f"scene{n}_json" for n in range(10) if n != 3]
    assert content["splits"]["train"]["images"] == "*"
    assert "not used, neither images with labels nor these: scene3_json" in (tmp_path / "dataset.yaml").read_text()


@pytest.mark.parametrize("name", ["Train.TXT", "train.lst", "train.csv"])
def test_lists_of_other_suffixes_are_found(name, tmp_path):
    write_photos(tmp_path, 6)
    (tmp_path / name).write_text("0\n1\n2\n3\n")
    (tmp_path / "val.txt").write_text("4\n5\n")
    splits = describe(tmp_path)["splits"]
    assert {split: entry["list"] for split, entry in splits.items()} == {"train": name, "val": "val.txt"}


def test_a_list_of_two_columns_is_reported_as_not_used(tmp_path):
    write_photos(tmp_path, 6)
    (tmp_path / "train.txt").write_text("images/0.jpg masks/0.png\nimages/1.jpg masks/1.png\n")
    describe(tmp_path)
    assert "# not used: train.txt names images, but a list has one name" in (tmp_path / "dataset.yaml").read_text()


def test_stray_values_between_consecutive_ids_are_ignored(tmp_path):
    """A thin object of a rare class is not a stray value, because all its neighbours have lower ids."""

    def change(mask: np.ndarray, n: int) -> np.ndarray:
        mask = np.where(mask == 255, 6, 0).astype(np.uint8)
        mask[:8] = 1
        mask[40:] = 2
        mask[47] = 255
        mask[2, 5:9] = 3
        if n == 4:
            mask[20, 12] = 4
        return mask

    write_masks(tmp_path, change)
    content = describe(tmp_path)
    assert content["names"] == ["class_0", "class_1", "class_2", "class_3", "class_6"]
    assert content["ignore"] == [4, 255]
    assert "255 is taken" not in (tmp_path / "dataset.yaml").read_text()


def test_255_with_more_than_a_small_share_is_a_class(tmp_path):
    def change(mask: np.ndarray, n: int) -> np.ndarray:
        mask[:8] = 1
        return mask

    write_masks(tmp_path, change)
    content = describe(tmp_path)
    assert (content["names"], content["ignore"]) == (["class_0", "class_1", "class_255"], [])
    assert "# 255 is taken for a class (29.17% of the pixels" in (tmp_path / "dataset.yaml").read_text()


def test_stray_colours_are_ignored(tmp_path):
    def change(mask: np.ndarray, n: int) -> np.ndarray:
        colors = COLORS[[1, 2]][(mask > 0).astype(int)]
        if n == 4:
            return cv2.resize(colors, (43, 31), interpolation=cv2.INTER_AREA)
        return colors

    write_masks(tmp_path, change)
    content = describe(tmp_path)
    assert list(content["colors"].values()) == [[0, 128, 0], [128, 0, 0]]
    assert len(content["ignore"]) > 2
    path = tmp_path / "masks/4.png"
    label = convert_label(get_dataset_spec("folder", str(tmp_path)), read_label(path, False, colored=True), path)
    assert np.unique(label).tolist() == [0, 1, 255]


def test_a_folder_that_cannot_be_described_is_not_changed(tmp_path):
    for n in range(5):
        write_picture(tmp_path / f"images/{n}.jpg", n)
    with pytest.raises(UserError, match="no folder of labels found"):
        describe(tmp_path)
    for suffix, message in (("jpg", "stored without loss"), ("bmp", r"different colours \(the most frequent: \[")):
        for n in range(5):
            write_picture(tmp_path / f"masks/{n}.{suffix}", n)  # a smooth picture, so it has many colours
        with pytest.raises(UserError, match=message):
            describe(tmp_path)
        for n in range(5):
            (tmp_path / f"masks/{n}.{suffix}").unlink()
    for n in range(5):
        Image.fromarray(draw_label(range(3), n).astype(np.int32) * 40000).save(tmp_path / f"masks/{n}.tif")
    with pytest.raises(UserError, match=r"3 different ids \(the most frequent: "):
        describe(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "masks"]


def test_the_command_that_describes_a_folder_can_be_copied(tmp_path):
    root = tmp_path / "my photos"
    root.mkdir()
    with pytest.raises(UserError) as raised:
        get_dataset_spec("folder", str(root))
    assert shlex.split(str(raised.value))[-1] == str(root)


@pytest.mark.parametrize(
    "names", [("{}_road.png", "{}_car.png"), ("{}_0.png", "{}_1.png"), ("{}_mask0.png", "{}_mask1.png")]
)
def test_several_masks_per_image_are_refused(names, tmp_path):
    for n in range(5):
        write_picture(tmp_path / f"images/{n}.jpg", n)
        for seed, name in enumerate(names):
            save_label(tmp_path / "masks" / name.format(n), draw_label(range(2), 10 * seed + n), "ids")
    with pytest.raises(UserError, match=r"masks has several masks of two values for one image \(0_.*merge them"):
        describe(tmp_path)


def write_masks_of_two_values(root: Path, folders: tuple[str, ...]) -> None:
    """Write five masks of two values into each of the folders."""
    for k, folder in enumerate(folders):
        for n in range(5):
            save_label(root / folder / f"{n}.png", draw_label(range(2), 10 * k + n), "ids")


def test_a_folder_of_masks_for_each_class_is_refused(tmp_path):
    for n in range(5):
        write_picture(tmp_path / f"images/{n}.jpg", n)
    write_masks_of_two_values(tmp_path, ("masks/cat", "masks/dog"))
    with pytest.raises(UserError, match=r"images/0\.jpg has several masks of two values \(.*merge them"):
        describe(tmp_path)


def test_masks_of_two_values_of_other_images_are_left_alone(tmp_path):
    pairs = {}
    for folder in ("left", "right"):
        for n in range(5):
            write_picture(tmp_path / f"images/{folder}/{n}.jpg", n)
            pairs[f"images/{folder}/{n}.jpg"] = f"masks/{folder}_mask/{n}.png"
    write_masks_of_two_values(tmp_path, ("masks/left_mask", "masks/right_mask"))
    assert read_pairs(tmp_path, describe(tmp_path)) == pairs


@pytest.mark.parametrize("classes", [2, 4])
def test_other_pictures_beside_a_label_are_left_alone(classes, tmp_path):
    """Cityscapes, for example, has coloured labels beside its ids."""
    for n in range(5):
        write_picture(tmp_path / f"images/{n}.jpg", n)
        save_label(tmp_path / f"masks/{n}_gtFine_labelIds.png", draw_label(range(classes), n), "ids")
        save_label(tmp_path / f"masks/{n}_gtFine_color.png", draw_label(range(classes), n))
    assert describe(tmp_path)["label_suffix"] in ("_gtFine_labelIds.png", "_gtFine_color.png")


def test_labelmes_class_names_must_be_the_same_in_all_folders(tmp_path):
    for n in range(4):
        write_picture(tmp_path / f"{n}_json/img.png", n)
        save_label(tmp_path / f"{n}_json/label.png", draw_label(range(2), n), "ids")
        (tmp_path / f"{n}_json/label_names.txt").write_text("_background_\ndog\n")
    assert describe(tmp_path)["names"] == ["class_0", "class_1"]
    (tmp_path / "3_json/label_names.txt").write_text("_background_\ncat\n")
    with pytest.raises(
        UserError, match=r"3_json/label_names\.txt and .*0_json/label_names\.txt differ: an id means an"
    ):
        describe(tmp_path, "--overwrite")


def test_palettes_that_give_an_id_two_colours_are_refused(tmp_path):
    for n in range(4):
        write_picture(tmp_path / f"images/{n}.jpg", n)
        path = tmp_path / f"masks/{n}.png"
        save_label(path, draw_label(range(3), n), "P")
    describe(tmp_path)
    file = Image.fromarray(draw_label(range(3), 3))
    file.putpalette(COLORS.ravel().tolist())  # the colours in reverse order
    file.save(path)
    with pytest.raises(
        UserError, match=r"id \d has the colour \[.*\] in .*0\.png and \[.*\] in .*3\.png: the palettes"
    ):
        describe(tmp_path, "--overwrite")


def test_new_images_are_found_when_a_folder_is_described_again(tmp_path):
    for n in range(12):
        if n == 6:
            assert len(describe(tmp_path)["splits"]) == 2
        write_picture(tmp_path / f"images/{n}.jpg", n)
        save_label(tmp_path / f"masks/{n}.png", draw_label(range(3), n), "ids")
    splits = describe(tmp_path, "--overwrite")["splits"]
    assert sum(len(build_dataset("folder", str(tmp_path), split)) for split in splits) == 12


def test_lists_with_windows_paths_become_splits(tmp_path):
    write_photos(tmp_path, 5)
    (tmp_path / "train.txt").write_text("images\\0.jpg\r\nimages\\1.jpg\r\nimages\\2.jpg\r\n")
    (tmp_path / "val.txt").write_text("images\\3.jpg\r\nimages\\4.jpg\r\n")
    splits = describe(tmp_path)["splits"]
    assert {name: entry["list"] for name, entry in splits.items()} == {"train": "train.txt", "val": "val.txt"}
    assert [image.name for image, _ in build_dataset("folder", str(tmp_path), "val").pairs] == ["3.jpg", "4.jpg"]


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("Valletta", ""),
        ("valladolid", ""),
        ("valparaiso", ""),
        ("devon", ""),
        ("validation", "val"),
        ("valLeft", "val"),
        ("trainLeft", "train"),
        ("testpart1", "test"),
        ("trainonly", "train"),
        ("development", "val"),
    ],
)
def test_the_split_in_the_name_of_a_folder(name, split):
    assert find_split_in_path(Path(name)) == split


def test_images_without_a_label_in_folders_of_splits_are_left_out(tmp_path):
    pairs = write_places(tmp_path, ("train", "val"), 6, "{folder}/images/{n}.jpg", "{folder}/masks/{n}.png")
    write_picture(tmp_path / "train/images/more.jpg")
    content = describe(tmp_path)
    assert read_pairs(tmp_path, content) == pairs
    assert content["splits"]["val"] == {"images": "val/images", "labels": "val/masks"}


def test_a_second_list_for_a_split_is_reported(tmp_path):
    write_photos(tmp_path, 6)
    for folder, lines in (("a", "0\n1\n"), ("b", "2\n3\n"), (".ipynb_checkpoints", "4\n5\n0\n")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "train.txt").write_text(lines)
    assert describe(tmp_path)["splits"]["train"]["list"] == "train_names.txt"
    text = (tmp_path / "dataset.yaml").read_text()
    assert "# not used: a/train.txt (2 images), a second list for train\n" in text
    assert (tmp_path / "train_names.txt").read_text().split() == ["3"]


def test_a_folder_whose_name_only_starts_like_a_split_is_not_a_split(tmp_path):
    for place in ("valley", "forest", "devices", "valencia", "devon"):
        for n in range(4):
            write_picture(tmp_path / f"{place}/images/{place}{n}.jpg", n)
            save_label(tmp_path / f"{place}/masks/{place}{n}.png", draw_label(range(3), n), "ids")
    splits = describe(tmp_path)["splits"]
    assert sum(len(build_dataset("folder", str(tmp_path), split)) for split in splits) == 20
    assert len(build_dataset("folder", str(tmp_path), "train")) > 12


def test_a_list_of_validation_images_alone_leaves_the_rest_for_training(tmp_path):
    write_photos(tmp_path, 5)
    (tmp_path / "val.txt").write_text("3\nimages/4.jpg\n")
    describe(tmp_path)
    pairs = {split: build_dataset("folder", str(tmp_path), split).pairs for split in ("train", "val")}
    names = {split: [image.name for image, _ in found] for split, found in pairs.items()}
    assert names == {"train": ["0.jpg", "1.jpg", "2.jpg"], "val": ["3.jpg", "4.jpg"]}
    assert "# no list of training images: they are those in no other list" in (tmp_path / "dataset.yaml").read_text()


def list_names(root: Path, content: dict) -> dict[str, list[str]]:
    """Return the paths of the images of each split, without suffixes, relative to the root."""
    names = {}
    for split in content["splits"]:
        pairs = build_dataset("folder", str(root), split).pairs
        names[split] = [str(image.relative_to(root).with_suffix("")) for image, _ in pairs]
    return names


def test_images_of_a_test_list_are_in_no_other_split(tmp_path):
    write_photos(tmp_path, 10)
    (tmp_path / "test.txt").write_text("7\n8\n9\n")
    names = list_names(tmp_path, describe(tmp_path))
    assert names["test"] == [f"images/{n}" for n in (7, 8, 9)]
    assert sorted(names["train"] + names["val"]) == [f"images/{n}" for n in range(7)]


def test_dots_in_the_names_of_listed_images_are_no_suffixes(tmp_path):
    write_places(tmp_path, (".",), 6, "images/frame.000{n}.jpg", "masks/frame.000{n}.png")
    (tmp_path / "val.txt").write_text("frame.0003\nframe.0004\n")
    names = list_names(tmp_path, describe(tmp_path))
    assert names["val"] == ["images/frame.0003", "images/frame.0004"]
    assert names["train"] == [f"images/frame.000{n}" for n in (0, 1, 2, 5)]


def test_a_list_of_one_sequence_does_not_take_images_of_another_out_of_training(tmp_path):
    write_places(tmp_path, ("a", "b"), 5, "images/{folder}/{n}.jpg", "masks/{folder}/{n}.png")
    (tmp_path / "val.txt").write_text("".join(f"b/{n}.jpg\n" for n in range(5)))
    names = list_names(tmp_path, describe(tmp_path))
    assert names["val"] == [f"images/b/{n}" for n in range(5)]
    assert names["train"] == [f"images/a/{n}" for n in range(5)]
    (tmp_path / "train.txt").write_text("".join(f"a/{n}.jpg\n" for n in range(5)))
    names = list_names(tmp_path, describe(tmp_path, "--overwrite"))
    assert names["train"] == [f"images/a/{n}" for n in range(5)]
    assert "images are in" not in (tmp_path / "dataset.yaml").read_text()


def test_a_list_of_validation_images_is_used_beside_a_folder_of_test_images(tmp_path):
    write_places(tmp_path, ("train", "test"), 5, "{folder}/images/{folder}{n}.jpg", "{folder}/masks/{folder}{n}.png")
    (tmp_path / "val.txt").write_text("train3\ntrain4\n")
    names = list_names(tmp_path, describe(tmp_path))
    assert names["train"] == [f"train/images/train{n}" for n in (0, 1, 2)]
    assert names["val"] == ["train/images/train3", "train/images/train4"]
    assert names["test"] == [f"test/images/test{n}" for n in range(5)]


def test_a_list_for_a_split_with_a_folder_of_its_own_is_reported_as_not_used(tmp_path):
    write_places(tmp_path, ("train", "test"), 5, "{folder}/images/{n}.jpg", "{folder}/masks/{n}.png")
    (tmp_path / "test.txt").write_text("3\n4\n")
    content = describe(tmp_path)
    assert content["splits"]["test"] == {"images": "test/images", "labels": "test/masks"}
    assert list_names(tmp_path, content)["val"] == ["train/images/0"]
    assert "# not used: test.txt, a list for test, which has a folder" in (tmp_path / "dataset.yaml").read_text()


def test_no_list_is_written_that_dataset_yaml_does_not_name(tmp_path):
    write_places(tmp_path, ("a", "b", "c", "d"), 2, "images/{folder}/{n}.jpg", "masks/{folder}/{n}.png")
    write_picture(tmp_path / "images/e/other.jpg")  # without a label, so that a list would be needed
    (tmp_path / "train.txt").write_text("a/0\na/1\n")
    (tmp_path / "val.txt").write_text("b/0\nb/1\n")
    content = describe(tmp_path)
    assert [entry["list"] for entry in content["splits"].values()] == ["train.txt", "val.txt"]
    assert not (tmp_path / "train_names.txt").exists()


def test_a_star_in_the_name_of_a_folder_is_refused(tmp_path):
    write_photos(tmp_path / "take*1", 5)
    with pytest.raises(UserError, match=r"rename the folder take\*1/.*: in dataset\.yaml a \* stands for any name"):
        describe(tmp_path)
    assert not (tmp_path / "dataset.yaml").exists()


@pytest.mark.parametrize("content", ["", "\ufeff\n \r\n"])
@pytest.mark.parametrize(("empty", "other", "training_images"), [("train", "val", 3), ("val", "train", 1)])
def test_an_empty_list_is_reported(empty, other, training_images, content, tmp_path):
    write_photos(tmp_path, 5)
    (tmp_path / f"{other}.txt").write_text("0\n4\n")
    (tmp_path / f"{empty}.txt").write_text(content, encoding="utf-8")
    describe(tmp_path)
    assert len(build_dataset("folder", str(tmp_path), "train")) == training_images
    assert f"# not used: {empty}.txt, which is empty\n" in (tmp_path / "dataset.yaml").read_text()


def test_a_list_may_name_the_labels(tmp_path):
    write_photos(tmp_path, 5)
    (tmp_path / "train.txt").write_text("masks/0.png\nmasks/1.png\n")
    (tmp_path / "val.txt").write_text("masks/3.png\nmasks/4.png\n")
    describe(tmp_path)
    assert [image.name for image, _ in build_dataset("folder", str(tmp_path), "val").pairs] == ["3.jpg", "4.jpg"]


def test_a_list_does_not_take_an_image_of_another_folder(tmp_path):
    for place, count in (("a", 3), ("b", 2)):
        for n in range(count):
            write_picture(tmp_path / place / f"rgb/{n}.jpg", n)
            save_label(tmp_path / place / f"mask/{n}.png", draw_label(range(2), n), "ids")
    (tmp_path / "val.txt").write_text("b/rgb/0.jpg\nb/rgb/2.jpg\n")
    lines = ["names: [x, z]", "splits:", "  val: {images: '*/rgb', labels: '*/mask', list: val.txt}"]
    (tmp_path / "dataset.yaml").write_text("\n".join(lines))
    with pytest.raises(UserError, match=r"1 of 2 image and label pairs are incomplete; .*b/rgb/2\.jpg"):
        build_dataset("folder", str(tmp_path), "val")


def read_listed(root: Path, folders: tuple[str, ...], pattern: str, lines: list[str]) -> list[str]:
    """Write three pairs a folder and a list. Return the places of the images that the list means, sorted."""
    write_places(root, folders, 3, "{folder}/{n}.jpg", "{folder}/{n}_m.png")
    (root / "some.txt").write_text("\n".join(lines))
    entry = {"images": pattern, "labels": pattern, "list": "some.txt"}
    content = {"names": ["x", "y", "z"], "label_suffix": "_m.png", "splits": {"train": entry}}
    (root / "dataset.yaml").write_text(yaml.safe_dump(content))
    return [str(image.relative_to(root)) for image, _ in build_dataset("folder", str(root), "train").pairs]


SUBJECTS = ("s/01/01", "s/01/02", "s/02/01", "s/02/02")
VIEWS = ("day/rgb", "night/rgb")


@pytest.mark.parametrize(
    ("root", "folders", "pattern", "line", "image"),
    [
        ("x", SUBJECTS, "s/*/*", "01/01/0", "s/01/01/0.jpg"),
        ("x", SUBJECTS, "s/*/*", "s/02/01/0", "s/02/01/0.jpg"),
        ("01", SUBJECTS, "s/*/*", "01/s/01/02/0", "s/01/02/0.jpg"),
        ("day", VIEWS, "*/rgb", "day/rgb/0", "day/rgb/0.jpg"),
        ("day", VIEWS, "*/rgb", "day/night/0.jpg", "night/rgb/0.jpg"),
        ("2", ("1", "2", "3"), "*", "2/0", "2/0.jpg"),
        ("2", ("1", "2", "3"), "*", "1/0", "1/0.jpg"),
        ("2", ("1", "2", "3"), "*", "2/3/0", "3/0.jpg"),
        ("x", ("day/rgb", "rgb/rgb"), "*/rgb", "day/rgb/0", "day/rgb/0.jpg"),
        ("x", ("day/rgb", "rgb/rgb"), "*/rgb", "rgb/rgb/0", "rgb/rgb/0.jpg"),
    ],
)
def test_names_of_folders_in_a_list_count_in_their_order(root, folders, pattern, line, image, tmp_path):
    assert read_listed(tmp_path / root, folders, pattern, [line]) == [image]


@pytest.mark.parametrize("folders", [SUBJECTS, ("s/01/01", "s/02/02")])
def test_a_listed_image_that_is_missing_is_not_replaced_by_one_of_another_folder(folders, tmp_path):
    with pytest.raises(UserError, match=r"1 of 1 image and label pairs are incomplete; .*s/01/02/9\.jpg"):
        read_listed(tmp_path, folders, "s/*/*", ["01/02/9.jpg"])
    write_picture(tmp_path / "s/02/01/9.jpg")
    write_picture(tmp_path / "s/01/01/9.jpg")
    with pytest.raises(UserError, match=r"1 of 1 image and label pairs are incomplete; .*s/01/02/9\.jpg"):
        read_listed(tmp_path, folders, "s/*/*", ["01/02/9.jpg"])


@pytest.mark.parametrize("lines", [["d1/1", "d2/1", "d2/0"], ["d1/d2/1", "d2/d1/1", "d1/0"]])
def test_a_missing_image_does_not_get_the_label_of_another_folder(lines, tmp_path):
    write_places(tmp_path, ("d1", "d2"), 2, "{folder}/rgb/{n}.jpg", "{folder}/mask/{n}.png")
    (tmp_path / "d2/rgb/1.jpg").unlink()
    (tmp_path / "val.txt").write_text("\n".join(lines))
    lines = ["names: [x, y, z]", "splits:", "  val: {images: '*/rgb', labels: '*/mask', list: val.txt}"]
    (tmp_path / "dataset.yaml").write_text("\n".join(lines))
    with pytest.raises(UserError, match=r"of 3 image and label pairs are incomplete; first missing: .*d2/"):
        build_dataset("folder", str(tmp_path), "val")


def test_16_bit_pictures_are_not_taken_for_labels(tmp_path):
    """Depth maps or instance maps may lie beside the labels under the same names."""
    for n in range(5):
        write_picture(tmp_path / f"rgb/{n}.png", n)
        save_label(tmp_path / f"semantic/{n}.png", draw_label(range(3), n), "ids")
        deep = tmp_path / f"instance/{n}.png"
        deep.parent.mkdir(exist_ok=True)
        Image.fromarray(1000 + 256 * draw_label(range(9), n).astype(np.uint16)).save(deep)
    assert describe(tmp_path)["splits"]["train"]["labels"] == "semantic"


def read_pairs(root: Path, content: dict) -> dict[str, str]:
    """Read the pairs of all splits. Return the path of each image's label, both relative to the root."""
    pairs = {}
    for split in content["splits"]:
        for image, label in build_dataset("folder", str(root), split).pairs:
            pairs[str(image.relative_to(root))] = str(label.relative_to(root))
    return pairs


def write_places(root: Path, folders: tuple[str, ...], count: int, image: str, label: str) -> dict[str, str]:
    """Write images and labels at places made of a folder and a number. Return the place of each image's label."""
    pairs = {}
    for k, folder in enumerate(folders):
        for n in range(count):
            place = image.format(folder=folder, n=n)
            pairs[place] = label.format(folder=folder, n=n)
            write_picture(root / place, 100 * k + n)
            save_label(root / pairs[place], draw_label(range(3), 100 * k + n), "ids")
    return pairs


@pytest.mark.parametrize("count", [3, 6, 12])
@pytest.mark.parametrize("folders", [("day", "night"), ("train", "val"), ("a/x", "a/y", "b/x"), ("s", "s/more")])
def test_sequences_with_equal_file_names_get_their_own_masks(folders, count, tmp_path):
    for label in ("_mask.png", "_L.png"):
        root = tmp_path / label
        pairs = write_places(root, folders, count, "{folder}/frame{n}.jpg", "{folder}/frame{n}" + label)
        content = describe(root)
        if folders == ("s", "s/more"):  # no pattern matches both folders, and a remark says so
            assert "# left out: s/more" in (root / "dataset.yaml").read_text()
            pairs = {image: pairs[image] for image in pairs if "more" not in image}
        assert read_pairs(root, content) == pairs
        assert content["label_suffix"] == label


@pytest.mark.parametrize("name", ["{folder}{n}", "{n}"])
def test_folders_of_images_may_share_a_folder_of_labels(name, tmp_path):
    pairs = write_places(tmp_path, ("a", "b"), 5, f"images/{{folder}}/{name}.jpg", f"masks/{name}.png")
    content = describe(tmp_path)
    if name == "{n}":  # these are two views of each scene
        assert "# left out: images/b" in (tmp_path / "dataset.yaml").read_text()
        pairs = {image: label for image, label in pairs.items() if "images/a" in image}
    assert read_pairs(tmp_path, content) == pairs


def test_a_sequence_without_masks_does_not_get_those_of_another(tmp_path):
    pairs = write_places(tmp_path, ("day",), 6, "{folder}/{n}.jpg", "{folder}/{n}_mask.png")
    for n in range(6):
        write_picture(tmp_path / f"night/{n}.jpg", 50 + n)
    assert read_pairs(tmp_path, describe(tmp_path)) == pairs


@pytest.mark.parametrize("masks", ["masks", "x"])
def test_previews_beside_labels_are_not_taken_for_images(masks, tmp_path):
    pairs = write_places(tmp_path, (masks,), 6, "images/{n}.jpg", "{folder}/{n}.png")
    for n in range(6):
        write_picture(tmp_path / masks / f"{n}.jpg", 50 + n)
    assert read_pairs(tmp_path, describe(tmp_path)) == pairs


@pytest.mark.parametrize("label", ["label_{n}.png", "mask{n}.png"])
def test_numbered_images_are_not_taken_for_a_folder_per_image(label, tmp_path):
    pairs = {}
    for count, folders in ((3, ("train", "val")), (1, ("test",))):
        pairs |= write_places(tmp_path, folders, count, "{folder}/{n}.jpg", "{folder}/" + label)
    assert read_pairs(tmp_path, describe(tmp_path)) == pairs


@pytest.mark.parametrize(
    ("image", "label"),
    [
        ("images/img_{n}.jpg", "masks/mask_{n}.png"),
        ("all/image-{n}.png", "all/label-{n}.png"),
        ("a/frame{n}.jpg", "b/seg_mask{n}.png"),
        ("a/{n}.jpg", "a/gt_{n}.png"),
        ("a/photo_{n}.jpg", "b/{n}.png"),
        ("a/img_{n}.jpg", "a/mask_{n}_l.png"),
    ],
)
def test_images_and_labels_may_have_different_prefixes(image, label, tmp_path):
    pairs = write_places(tmp_path, ("train", "val"), 6, "{folder}/" + image, "{folder}/" + label)
    content = describe(tmp_path)
    assert {"image_prefix", "label_prefix"} & set(content)
    assert read_pairs(tmp_path, content) == pairs


def test_prefixes_that_name_different_views_do_not_form_pairs(tmp_path):
    write_places(tmp_path, ("train", "val"), 6, "{folder}/rgb/left_{n}.jpg", "{folder}/gt/right_{n}.png")
    with pytest.raises(UserError, match="no folder of labels found"):
        describe(tmp_path)


@pytest.mark.parametrize("other", ["depth.png", "normals.png", "a_viz.png"])
def test_other_pictures_in_a_folder_are_not_taken_for_its_image(other, tmp_path):
    folders = tuple(f"scene{n}" for n in range(5))
    pairs = write_places(tmp_path, folders, 1, "{folder}/image.jpg", "{folder}/mask.png")
    for n, folder in enumerate(folders):
        noise = np.random.default_rng(n).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / folder / other)  # it has more colours than the image
    assert read_pairs(tmp_path, describe(tmp_path)) == pairs


def test_a_folder_with_several_possible_images_or_labels_is_refused(tmp_path):
    folders = tuple(f"scene{n}" for n in range(5))
    write_places(tmp_path / "images", folders, 1, "{folder}/left.jpg", "{folder}/mask.png")
    write_places(tmp_path / "labels", folders, 1, "{folder}/image.jpg", "{folder}/mask_car.png")
    for n, folder in enumerate(folders):
        write_picture(tmp_path / f"images/{folder}/right.jpg", 50 + n)
        save_label(tmp_path / f"labels/{folder}/mask_road.png", draw_label(range(3), 50 + n), "ids")
    with pytest.raises(UserError, match=r"scene0 has several .* the image of its label \(left\.jpg, right\.jpg\)"):
        describe(tmp_path / "images")
    with pytest.raises(UserError, match=r"scene0 has several .* \(mask_car\.png, mask_road\.png\)"):
        describe(tmp_path / "labels")


LAYOUTS_WITH_COLOURED_LABELS = {
    "flat": (("all",), "images/{n}_img.png", "gt/{n}_labelIds.png"),
    "stems": (("all",), "images/{n}.jpg", "gt/{n}_labelIds.png"),
    "cityscapes": (
        ("train/aachen", "train/ulm", "val/bonn"),
        "leftImg8bit/{folder}/{n}_leftImg8bit.png",
        "gtFine/{folder}/{n}_gtFine_labelIds.png",
    ),
    "sequences": (("day", "night"), "{folder}/rgb/{n}.png", "{folder}/gt/{n}_labelIds.png"),
    "in one folder": (("all",), "d/{n}.jpg", "d/{n}_labelIds.png"),
    "beside, in sequences": (("day", "night"), "{folder}/{n}.jpg", "{folder}/{n}_labelIds.png"),
}


@pytest.mark.parametrize("layout", LAYOUTS_WITH_COLOURED_LABELS)
def test_id_labels_are_found_beside_colours_and_instances(layout, tmp_path):
    folders, image, label = LAYOUTS_WITH_COLOURED_LABELS[layout]
    pairs = write_places(tmp_path, folders, 6, image, label)
    for seed, place in enumerate(pairs.values()):
        save_label(tmp_path / place.replace("_labelIds", "_color"), draw_label(range(3), seed))
        instances = 1000 * draw_label(range(3), seed).astype(np.uint16) + np.arange(SIZE[1], dtype=np.uint16)
        Image.fromarray(instances).save(tmp_path / place.replace("_labelIds", "_instanceIds"))
    content = describe(tmp_path)
    assert read_pairs(tmp_path, content) == pairs
    assert len(content["names"]) == 3


def test_class_labels_are_preferred_to_object_labels(tmp_path):
    pairs = write_places(tmp_path, ("all",), 6, "JPEGImages/{n}.jpg", "SegmentationClass/{n}.png")
    for n in range(6):
        save_label(tmp_path / f"SegmentationObject/{n}.png", draw_label(range(2), n), "ids")
    assert read_pairs(tmp_path, describe(tmp_path)) == pairs


@pytest.mark.parametrize("split", ["val", "test"])
def test_the_only_split_is_taken_for_training(split, tmp_path):
    pairs = write_places(tmp_path, (f"{split}_a", f"{split}_b"), 4, "{folder}/images/{n}.jpg", "{folder}/masks/{n}.png")
    content = describe(tmp_path)
    assert list(content["splits"]) == ["train", "val"]
    assert read_pairs(tmp_path, content) == pairs
    assert f"# no training split: all folders are called {split}" in (tmp_path / "dataset.yaml").read_text()


def test_splits_without_one_for_training_are_refused(tmp_path):
    write_places(tmp_path / "folders", ("val", "test"), 4, "{folder}/images/{n}.jpg", "{folder}/masks/{n}.png")
    with pytest.raises(
        UserError, match=r"all folders are for test or val .*: rename the folder of the training images"
    ):
        describe(tmp_path / "folders")
    write_photos(tmp_path / "lists", 4)
    (tmp_path / "lists/val.txt").write_text("0\n1\n2\n3\n")
    with pytest.raises(UserError, match=r"val\.txt name all images of .*: write a list of the training images"):
        describe(tmp_path / "lists")


def test_one_image_cannot_be_split(tmp_path):
    write_photos(tmp_path, 1)
    with pytest.raises(UserError, match="at least two images are needed"):
        describe(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "masks"]


@pytest.mark.parametrize("folders", [(".",), ("a", "b"), (" a", "b")])
@pytest.mark.parametrize("name", ["pic {n} ", " pic {n}", " {n} "])
def test_lists_keep_spaces_at_the_ends_of_names(name, folders, tmp_path):
    pairs = write_places(tmp_path, folders, 6, f"{{folder}}/images/{name}.jpg", f"{{folder}}/masks/{name}.png")
    pairs = {image.removeprefix("./"): label.removeprefix("./") for image, label in pairs.items()}
    assert read_pairs(tmp_path, describe(tmp_path)) == pairs


def test_a_name_that_no_list_can_hold_is_refused(tmp_path):
    write_places(tmp_path / "no splits", ("all",), 6, "images/a\\{n}.jpg", "masks/a\\{n}.png")
    with pytest.raises(UserError, match="cannot be named in a list: rename it"):
        describe(tmp_path / "no splits")
    root = tmp_path / "splits"
    pairs = write_places(root, ("train", "val"), 3, "{folder}/images/a\\{n}.jpg", "{folder}/masks/a\\{n}.png")
    assert read_pairs(root, describe(root)) == pairs
