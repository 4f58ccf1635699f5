"""Every data set reads small trees in its official layouts exactly, and explains what is wrong with other trees."""

import io
import pickle
import shutil
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, features

from datasets import DATASETS, build_dataset, dataset_spec, get_dataset_spec
from datasets.coco_stuff import UNUSED, USED
from datasets.files import read_label, read_list
from datasets.ids import IdMap
from tests.trees import SIZE, TREES, draw_label, map_ids, write_label, write_picture
from utils.errors import UserError
from utils.pictures import read_image

SPECS = {name: spec for name, spec in DATASETS.items() if not callable(spec)}


@pytest.mark.parametrize("tree", TREES)
def test_official_layout_is_read_exactly(tree, tmp_path):
    name, make = TREES[tree]
    for split, expected in make(tmp_path).items():
        dataset = build_dataset(name, str(tmp_path), split)
        assert len(dataset) == len(expected)
        for i, wanted in enumerate(expected):
            image, got, index = dataset[i]
            assert index == i
            assert np.array_equal(got.numpy(), wanted)
            with Image.open(dataset.pairs[i][0]) as file:
                assert np.array_equal(image.permute(1, 2, 0).numpy(), np.array(file.convert("RGB")))


@pytest.mark.parametrize("name", SPECS)
def test_names_and_colours_are_complete(name):
    spec = SPECS[name]
    classes = {"cityscapes": 19, "ade20k": 150, "voc": 21, "camvid": 11, "coco_stuff_10k": 171, "coco_stuff_164k": 171}
    classes |= {"coco_stuff_164k_182": 182, "toy": 7}
    assert len(spec.names) == len(spec.palette) == classes.get(name, len(spec.names))
    assert len(set(spec.names)) == len(spec.names)
    shared = {"ade20k": 1, "coco_stuff_10k": 9, "coco_stuff_164k": 9}.get(name, 0)
    assert len(spec.palette) - len(set(spec.palette)) == shared
    assert sorted(set(spec.ids.classes.values())) == list(range(len(spec.names)))
    assert all(0 <= value < 256 for color in spec.palette for value in color)
    pickle.loads(pickle.dumps(spec))


def test_known_names_colours_and_ids():
    city, ade, coco = (SPECS[name] for name in ("cityscapes", "ade20k", "coco_stuff_164k"))
    assert (city.names[10], city.palette[10]) == ("sky", (70, 130, 180))
    assert (ade.names[0], ade.palette[0], ade.names[149], ade.palette[149]) == (
        "wall", (120, 120, 120), "flag", (92, 0, 255),
    )  # fmt: skip
    assert (ade.names[12], ade.names[20], ade.names[127]) == ("person", "car", "bicycle")
    # raw id -> class; unused ids are skipped and the order is kept, as in MMSegmentation
    assert [coco.ids.classes[raw] for raw in (10, 12, 24, 26, 91, 181)] == [10, 11, 23, 24, 80, 170]
    assert (coco.names[11], coco.names[80], coco.names[170]) == ("stop sign", "banner", "wood")
    ten = SPECS["coco_stuff_10k"]
    assert ten.names == coco.names
    assert {raw - 1: k for raw, k in ten.ids.classes.items()} == coco.ids.classes
    assert tuple(SPECS["coco_stuff_164k_182"].names[k] for k in USED) == coco.names
    assert SPECS["voc"].palette[15] == (192, 128, 128)  # person


def test_train_ids_are_read_where_there_are_no_label_ids(tmp_path):
    TREES["cityscapes"][1](tmp_path)
    ids = draw_label((*range(19), 255), 3)
    for path in sorted((tmp_path / "gtFine/val").rglob("*labelIds.png")):
        write_label(path.with_name(path.name.replace("labelIds", "labelTrainIds")), ids)
        path.unlink()
    assert np.array_equal(build_dataset("cityscapes", str(tmp_path), "val").read(0)[1], ids)


def test_164k_train_ids_of_mmseg_for_171_and_182_classes(tmp_path):
    TREES["coco_stuff_164k"][1](tmp_path)
    path = next((tmp_path / "annotations/val2017").iterdir())
    path.unlink()
    ids = draw_label((*range(171), 255), 3)
    write_label(path.with_name(f"{path.stem}_labelTrainIds.png"), ids)
    assert np.array_equal(build_dataset("coco_stuff_164k", str(tmp_path), "val").read(0)[1], ids)
    raw = build_dataset("coco_stuff_164k", str(tmp_path), "val", classes=182).read(0)[1]
    assert np.array_equal(raw, map_ids(ids, dict(enumerate(USED))))


def test_classes_pick_a_variant():
    assert len(get_dataset_spec("coco_stuff_164k", classes=182).names) == 182
    assert get_dataset_spec("voc", classes=21) is DATASETS["voc"]
    with pytest.raises(UserError, match="voc has 21 classes, not 22"):
        get_dataset_spec("voc", classes=22)


@pytest.mark.parametrize(
    ("name", "raw"),
    [("cityscapes", 34), ("cityscapes", 254), ("ade20k", 151), ("voc", 21), ("coco_stuff_164k", 182), ("camvid", 12)],
)
def test_an_id_that_is_no_class_is_named_with_its_file_and_count(name, raw, tmp_path):
    TREES[name][1](tmp_path)
    dataset = build_dataset(name, str(tmp_path), "val")
    path = dataset.pairs[0][1]
    ids = read_label(path).copy()
    ids[0, :4] = raw
    write_label(path, ids)
    with pytest.raises(UserError, match=rf"{path.name} holds ids that are no class: {raw} \(4 px\)"):
        dataset.read(0)
    with pytest.raises(UserError, match=path.name):
        dataset.load_sample(0)
    assert isinstance(dataset[0], UserError)


def test_unused_ids_and_unlabelled_are_ignored():
    coco, ade, city = (SPECS[name].ids for name in ("coco_stuff_164k", "ade20k", "cityscapes"))
    assert (coco(np.array([*UNUSED, 255], np.uint8)) == 255).all()
    assert ade(np.array([0, 1, 150, 255], np.uint8)).tolist() == [255, 0, 149, 255]
    assert city(np.arange(34, dtype=np.uint8)).tolist().count(255) == 34 - 19


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.int32, np.int64])
def test_id_map_of_any_integer_type(kind):
    table = IdMap({5: 0, 40: 1, 41: 1}, ignored=(0,))
    assert table(np.array([[5, 40], [41, 0]], kind)).tolist() == [[0, 1], [1, 255]]
    assert table(np.array([7, np.iinfo(kind).max, np.iinfo(kind).min], kind))[:2].tolist() == [254, 254]
    assert table.to_official(np.array([0, 1])).tolist() == [5, 40]


@pytest.mark.parametrize("name", SPECS)
def test_predictions_in_official_ids_are_read_back(name):
    """--submission writes predictions with the same ids as the labels of the data set."""
    ids = SPECS[name].ids
    classes = np.arange(len(SPECS[name].names))
    assert ids.to_official(classes).dtype == np.uint8
    assert np.array_equal(ids(ids.to_official(classes)), classes)


def test_submission_ids_by_hand():
    assert SPECS["cityscapes"].ids.to_official(np.array([0, 10, 18])).tolist() == [7, 23, 33]
    assert SPECS["ade20k"].ids.to_official(np.array([0, 149])).tolist() == [1, 150]
    assert SPECS["coco_stuff_164k"].ids.to_official(np.array([11, 170])).tolist() == [12, 181]
    assert SPECS["coco_stuff_10k"].ids.to_official(np.array([11, 170])).tolist() == [13, 182]


def test_split_test_without_labels(tmp_path):
    TREES["cityscapes"][1](tmp_path)
    assert (build_dataset("cityscapes", str(tmp_path), "test").read(0)[1] == 255).all()
    shutil.rmtree(tmp_path / "gtFine/test")
    dataset = build_dataset("cityscapes", str(tmp_path), "test")
    assert (dataset.read(0)[1] == 255).all()
    shutil.rmtree(tmp_path / "gtFine/val")
    with pytest.raises(UserError, match="1 of 1 image and label pairs"):
        build_dataset("cityscapes", str(tmp_path), "val")


def test_missing_files_are_counted_and_named(tmp_path):
    TREES["ade20k"][1](tmp_path)
    for path in (tmp_path / "ADEChallengeData2016/annotations/training").iterdir():
        path.unlink()
    with pytest.raises(UserError, match=r"2 of 2 .* first missing: .*ADE_train_00000000.png, .*ADE_train_00000001.png"):
        build_dataset("ade20k", str(tmp_path), "train")


@pytest.mark.parametrize("name", [n for n, spec in DATASETS.items() if n != "toy"])
def test_a_wrong_root_is_an_error_of_one_line(name, tmp_path):
    with pytest.raises(UserError, match="--data is missing"):
        build_dataset(name, "", "train")
    with pytest.raises(UserError, match="no such folder"):
        build_dataset(name, str(tmp_path / "x"), "train")
    (tmp_path / "something").mkdir()
    with pytest.raises(UserError, match=r"something|dataset\.yaml is missing"):
        build_dataset(name, str(tmp_path), "train")


def test_unknown_names():
    with pytest.raises(UserError, match="did you mean 'cityscapes'"):
        get_dataset_spec("cityscape")
    with pytest.raises(UserError, match="unknown split of voc 'trian'; did you mean 'train'"):
        build_dataset("voc", "/", "trian")


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_a_truncated_picture_is_refused_by_name(share, tmp_path):
    for suffix, read in (("jpg", read_image), ("png", read_image), ("png", read_label)):
        path = tmp_path / f"cut.{suffix}"
        write_picture(path)
        if read is read_label:
            write_label(path, draw_label(range(20), 0))
        data = path.read_bytes()
        kept_share = share if suffix == "jpg" else min(share, 0.9)
        path.write_bytes(data[: int(len(data) * kept_share)])
        with pytest.raises(UserError, match=rf"cut.{suffix} cannot be read"):
            read(path)


@pytest.mark.filterwarnings("ignore::UserWarning")  # PIL warns of the damage, too
@pytest.mark.parametrize("suffix", ["avif", "dds", "gif", "jp2", "png", "tif", "webp"])
def test_a_picture_with_changed_bytes_is_read_or_refused_by_name(suffix, tmp_path):
    rng = np.random.default_rng(0)
    path = tmp_path / f"changed.{suffix}"
    pixels = rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)
    try:
        Image.fromarray(pixels).save(path)
    except (KeyError, OSError, ValueError):
        pytest.skip(f"Pillow here cannot write {suffix}")
    whole = path.read_bytes()
    messages = []
    for _ in range(60):
        data = bytearray(whole[: rng.integers(100, len(whole))] if rng.random() < 0.3 else whole)
        for place in rng.integers(0, len(data), 4):
            data[place] = rng.integers(256)
        path.write_bytes(data)
        try:
            assert read_image(path).ndim == 3
        except UserError as error:
            messages.append(str(error))
    assert messages
    assert all(f"changed.{suffix}" in message for message in messages)


@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_cut_anywhere_is_refused_even_with_a_thumbnail_in_it(progressive, tmp_path):
    small = io.BytesIO()
    Image.new("RGB", (16, 16), "red").save(small, "JPEG")
    path = tmp_path / "cut.jpg"
    whole = write_picture(path, exif=b"Exif\0\0" + small.getvalue(), progressive=progressive)
    data = path.read_bytes()
    path.write_bytes(data + b"\0" * 40 + b"a film of the camera: \xff\xda" + b"\0" * 40)
    assert np.array_equal(read_image(path), whole)
    for stop in range(0, len(data), 7):
        path.write_bytes(data[:stop])
        with pytest.raises(UserError, match=r"cut.jpg cannot be read"):
            read_image(path)


@pytest.mark.parametrize("mode", ["L", "CMYK"])
@pytest.mark.parametrize("suffix", ["jpg", "tif"])
def test_gray_and_cmyk_pictures(mode, suffix, tmp_path):
    write_picture(tmp_path / "a.png")
    path = tmp_path / f"b.{suffix}"
    Image.open(tmp_path / "a.png").convert(mode).save(path, quality=95)
    with Image.open(path) as file:
        assert file.mode == mode
        assert np.abs(read_image(path).astype(int) - np.array(file.convert("RGB"))).max() <= 1


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_exif_orientation(orientation, suffix, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{suffix}"
    stored = write_picture(path, exif=exif)
    upright = np.rot90(stored, {1: 0, 3: 2, 6: 3, 8: 1}[orientation])
    assert np.array_equal(read_image(path), upright)
    assert np.array_equal(read_image(path, upright.shape[:2]), upright)
    # the size of a label shows whether it was drawn on the pixels as stored
    wanted = stored if orientation in (6, 8) else upright
    assert np.array_equal(read_image(path, stored.shape[:2]), wanted)


def test_deep_and_transparent_pictures_are_refused(tmp_path):
    path = tmp_path / "deep.png"
    Image.fromarray(np.arange(600, dtype=np.uint16).reshape(SIZE) * 100).save(path)
    with pytest.raises(UserError, match=r"deep.png has 16 bits a channel"):
        read_image(path)
    rgba = np.zeros((*SIZE, 4), np.uint8)
    Image.fromarray(rgba).save(path)
    with pytest.raises(UserError, match=r"deep.png has transparent pixels"):
        read_image(path)
    rgba[..., 3] = 255
    rgba[..., 0] = 9
    Image.fromarray(rgba).save(path)
    assert np.array_equal(read_image(path), rgba[..., :3])


def test_labels_of_other_kinds(tmp_path):
    ids = draw_label(range(20), 0)
    path = tmp_path / "label.png"
    for palette in (False, True):
        write_label(path, ids, palette)
        assert np.array_equal(read_label(path), ids)
    write_label(path, ids.astype(np.uint16) * 300)
    assert np.array_equal(read_label(path), ids.astype(int) * 300)
    Image.fromarray(ids % 2 == 1).save(path)
    assert np.array_equal(read_label(path), ids % 2)
    write_label(path, np.dstack([ids] * 3))
    with pytest.raises(UserError, match=r"label.png: a label must hold class ids .* mode RGB"):
        read_label(path)
    (tmp_path / "l.mat").write_bytes(b"MATLAB 5.0 nonsense" * 20)
    with pytest.raises(UserError, match=r"cannot be read as a MATLAB file with S"):
        read_label(tmp_path / "l.mat")


def make_grey_png(ids: np.ndarray, bits: int) -> bytes:
    """Return a grey PNG with 1, 2 or 4 bits per pixel. PIL can read such files but cannot write them."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    bit_rows = np.unpackbits(ids[..., None], axis=2)[..., 8 - bits :].reshape(len(ids), -1)
    rows = b"".join(b"\0" + row.tobytes() for row in np.packbits(bit_rows, axis=1))
    header = struct.pack(">IIBBBBB", ids.shape[1], ids.shape[0], bits, 0, 0, 0, 0)
    data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + data


def test_grey_labels_that_pil_rescales_are_refused(tmp_path):
    ids = draw_label(range(4), 0)
    path = tmp_path / "label"
    path.write_bytes(make_grey_png(ids % 2, 1))
    assert np.array_equal(read_label(path), ids % 2)
    for bits in (2, 4):  # PIL would multiply the ids by 85 or 17, as grey levels
        path.write_bytes(make_grey_png(ids, bits))
        with pytest.raises(UserError, match="label holds grey levels that are not 8-bit numbers as stored"):
            read_label(path)
    for maximum in (255, 20):
        path.write_bytes(b"P5 30 20 %d\n" % maximum + ids.tobytes())
        if maximum == 255:
            assert np.array_equal(read_label(path), ids)
        else:
            with pytest.raises(UserError, match="not 8-bit numbers as stored"):
                read_label(path)


LOSSY = [
    ("JPEG", {"quality": 95}, "JPEG"),
    ("MPO", {}, "JPEG"),
    ("TIFF", {"compression": "jpeg"}, "JPEG"),
    ("WEBP", {}, "lossy WebP"),
    ("JPEG2000", {"irreversible": True}, "lossy JPEG 2000"),
    ("DDS", {"pixel_format": "DXT1"}, "block compression"),
    ("AVIF", {}, "AVIF"),
]


@pytest.mark.parametrize(("kind", "options", "name"), LOSSY)
def test_labels_in_lossy_formats_are_refused(kind, options, name, tmp_path):
    if kind == "AVIF" and not features.check("avif"):
        pytest.skip("this PIL has no AVIF")
    path = tmp_path / "label"
    Image.fromarray(draw_label(range(9), 0)).convert("RGB").save(path, kind, **options)
    for colored in (False, True):
        with pytest.raises(UserError, match=f"a label must be stored without loss, such as PNG: {name} blends classes"):
            read_label(path, colored=colored)


LOSSLESS = [
    ("PNG", {}),
    ("TIFF", {}),
    ("TIFF", {"compression": "tiff_lzw"}),
    ("WEBP", {"lossless": True}),
    ("JPEG2000", {}),
    ("DDS", {}),
    ("BMP", {}),
]


@pytest.mark.parametrize(("kind", "options"), LOSSLESS)
def test_colour_labels_in_lossless_formats_are_read(kind, options, tmp_path):
    path = tmp_path / "label"
    ids = draw_label(range(9), 0)
    Image.fromarray(ids).convert("RGB").save(path, kind, **options)
    assert np.array_equal(read_label(path, colored=True)[..., 0], ids)


@pytest.mark.parametrize("kind", ["TIFF", "PNG", "MPO"])
def test_files_of_several_pictures_are_refused(kind, tmp_path):
    first, *others = [Image.fromarray(draw_label(range(n), 0)) for n in (9, 7, 5)]
    first.save(tmp_path / "pages", kind, save_all=True, append_images=others)
    readers = [read_label]
    if kind != "MPO":  # of several pictures in a JPEG, read_image takes the first
        readers.append(read_image)
    for read in readers:
        with pytest.raises(UserError, match="pages holds 3 pictures"):
            read(tmp_path / "pages")


def test_two_images_of_one_label_are_refused(tmp_path):
    TREES["ade20k"][1](tmp_path)
    image = build_dataset("ade20k", str(tmp_path), "val").pairs[0][0]
    image.with_suffix(".JPG").write_bytes(image.read_bytes())
    with pytest.raises(UserError, match=rf"{image.stem}\.JPG and {image.name} would have one label"):
        build_dataset("ade20k", str(tmp_path), "val")


def test_a_jpeg_that_is_called_png_is_read_as_a_jpeg(tmp_path):
    buffer = io.BytesIO()
    write_picture(tmp_path / "a.jpg")
    Image.open(tmp_path / "a.jpg").save(buffer, "JPEG")
    (tmp_path / "b.png").write_bytes(buffer.getvalue())
    assert read_image(tmp_path / "b.png").shape == (*SIZE, 3)


def test_dataset_spec_is_still_found_under_its_former_name():
    assert dataset_spec("toy") is get_dataset_spec("toy")


def test_image_and_label_must_agree_in_size(tmp_path):
    TREES["camvid"][1](tmp_path)
    dataset = build_dataset("camvid", str(tmp_path), "val")
    write_label(dataset.pairs[0][1], np.zeros((7, 9), np.uint8))
    with pytest.raises(UserError, match=r"differ in size: .*0001TP_1.png is 30x20, .*0001TP_1.png is 9x7"):
        dataset.read(0)


def test_lists_of_names_are_read_and_checked(tmp_path):
    path = tmp_path / "list.txt"
    path.write_bytes("\ufeffa b\r\n\r\n  ü \r\n".encode())
    assert read_list(path) == ["a b", "ü"]
    for text, problem in (
        ("a\nb\na\n", "twice, in lines 1 and 3"),
        ("a\n../b\n", "line 2: ../b names no file"),
        ("/a\n", "line 1: /a names no file"),
        ("./\n", "line 1: ./ names no file"),
    ):
        path.write_text(text)
        with pytest.raises(UserError, match=problem):
            read_list(path)


def test_255_may_be_a_class(tmp_path):
    write_label(tmp_path / "m/a.png", np.array([[0, 255]], np.uint8))
    write_picture(tmp_path / "i/a.png", 0)
    split = "splits: {train: {images: i, labels: m}}\n"
    (tmp_path / "dataset.yaml").write_text("names: [sea, ship]\nids: {0: sea, 255: ship}\n" + split)
    assert get_dataset_spec("folder", str(tmp_path)).ids(np.array([[0, 255]], np.uint8)).tolist() == [[0, 1]]


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("names:", "nmaes:", "unknown key 'nmaes'; did you mean 'names'"),
        ("ids: {7: road, ", "ids: {", "ids must be an id for each class: road has none$"),
        ("26: car", "26: cat", "ids must be of classes in names: 26: 'cat' is none; did you mean 'car'"),
        ("26: car", "26: [car]", r"ids must be of classes in names: 26: \['car'\] is none"),
        ("26: car", "26: yes", r"ids must be of classes in names: 26: True is none \(yes, no, on, off in quotes\)"),
        ("26: car", "x: car", "ids must be {id in the files, 0..65535: class, ...}"),
        ("ignore: 0", "ignore: 7", "ignore must be ids 0..65535 or colours \\[R, G, B\\] that are no class"),
        ("[road, sky, car]", "[road, road]", "names must be 2 or more different names"),
        ("[road, sky, car]", "[on, off, car]", r"names, words \(yes, no, on, off and numbers in quotes\)"),
        ("{images: v, labels: m}", "{images: v}", "splits must be"),
        ("splits:", "palette: [[1, 2, 300]]\nsplits:", "palette must be 3 colours"),
        ("names:", "names: !!python/object:os.system {}\nx:", "no plain yaml"),
    ],
)
def test_a_bad_dataset_yaml_is_explained(old, new, problem, tmp_path):
    TREES["folder"][1](tmp_path)
    path = tmp_path / "dataset.yaml"
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(UserError, match=problem):
        get_dataset_spec("folder", str(tmp_path))
