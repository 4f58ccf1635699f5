"""Write small data sets in the layouts of the official archives. Return the labels that must be read from them."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat

from datasets.coco_stuff import UNUSED, USED

SIZE = (20, 30)  # height, width
Expected = dict[str, list[np.ndarray]]
TRAINED = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)


def write_picture(path: Path, seed: int = 0, **options: object) -> np.ndarray:
    """Write a smooth random picture. Return the pixels that PIL reads from the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    Image.fromarray(noise).resize(SIZE[::-1]).save(path, **options)
    with Image.open(path) as file:
        return np.array(file.convert("RGB"))


def write_label(path: Path, ids: np.ndarray, palette: bool = False) -> None:
    """Write a label map, with a palette if asked."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = Image.fromarray(ids)
    if palette:
        file.putpalette([(7 * i + 3 * c) % 256 for i in range(256) for c in range(3)])
    file.save(path)


def draw_label(values: object, seed: int) -> np.ndarray:
    """Return a random label map in which each of ``values`` occurs."""
    values = np.array(list(values), np.uint8)
    flat = np.resize(values, SIZE[0] * SIZE[1])
    return np.random.default_rng(seed).permutation(flat).reshape(SIZE)


def map_ids(ids: np.ndarray, classes: dict[int, int]) -> np.ndarray:
    """Return the class of each id in ``classes``, and 255 for other ids. Map pixel by pixel."""
    return np.array([classes.get(int(i), 255) for i in ids.ravel()], np.uint8).reshape(ids.shape)


def cityscapes(root: Path) -> Expected:
    expected: Expected = {"train": [], "val": [], "test": []}
    classes = {raw: k for k, raw in enumerate(TRAINED)}
    for split, cities in {"train": ["aachen", "zurich"], "val": ["munster"], "test": ["berlin"]}.items():
        for n, city in enumerate(cities):
            stem = f"{split}/{city}/{city}_000000_{n:06}"
            write_picture(root / f"leftImg8bit/{stem}_leftImg8bit.png", n + len(split))
            ids = draw_label((0, 1, 2, 3, 4) if split == "test" else range(34), n)
            write_label(root / f"gtFine/{stem}_gtFine_labelIds.png", ids)
            write_label(root / f"gtFine/{stem}_gtFine_instanceIds.png", ids.astype(np.uint16) * 100)
            write_label(root / f"gtFine/{stem}_gtFine_color.png", np.dstack([ids] * 3))
            expected[split].append(map_ids(ids, classes))
    return expected


def ade20k(root: Path) -> Expected:
    expected: Expected = {}
    for split, folder in {"train": "training", "val": "validation"}.items():
        for n in range(2):
            ids = draw_label(range(151), n)
            write_picture(root / f"ADEChallengeData2016/images/{folder}/ADE_{split}_{n:08}.jpg", n + len(split))
            write_label(root / f"ADEChallengeData2016/annotations/{folder}/ADE_{split}_{n:08}.png", ids)
            expected.setdefault(split, []).append(map_ids(ids, {k: k - 1 for k in range(1, 151)}))
    return expected


def voc(root: Path) -> Expected:
    """Write the devkit with augmented labels. Some are of validation images, as in the archive that people share."""
    base = root / "VOCdevkit/VOC2012"
    expected = {"train": [], "val": []}
    ids = {
        name: draw_label((*range(21), 255), n) for n, name in enumerate(("2007_01", "2008_02", "2009_03", "2010_04"))
    }
    for n, name in enumerate(ids):
        write_picture(base / f"JPEGImages/{name}.jpg", n)
    for name in ("2007_01", "2009_03"):
        write_label(base / f"SegmentationClass/{name}.png", ids[name], palette=True)
    for name in ("2008_02", "2009_03", "2010_04"):
        write_label(base / f"SegmentationClassAug/{name}.png", ids[name])
    lists = base / "ImageSets/Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_bytes(b"\xef\xbb\xbf2007_01\r\n\r\n")
    (lists / "val.txt").write_text("2009_03 \n")
    expected["train"] = [ids[name] for name in ("2007_01", "2008_02", "2010_04")]
    expected["val"] = [ids["2009_03"]]
    return expected


def coco_stuff_10k(root: Path) -> Expected:
    """Write labels as MATLAB files, and lists of images, as in the official archive."""
    names = {"train": ["COCO_train2014_01", "COCO_train2014_03"], "test": ["COCO_train2014_02"]}
    expected: Expected = {}
    classes = {raw + 1: k for k, raw in enumerate(USED)}
    for part, stems in names.items():
        for n, stem in enumerate(stems):
            ids = draw_label((0, *(raw + 1 for raw in USED)), n + len(part))
            write_picture(root / f"images/{stem}.jpg", n + len(part))
            (root / "annotations").mkdir(exist_ok=True)
            savemat(root / f"annotations/{stem}.mat", {"S": ids, "names": ["any"], "captions": ["any"]})
            expected.setdefault({"test": "val"}.get(part, part), []).append(map_ids(ids, classes))
        (root / "imageLists").mkdir(exist_ok=True)
        (root / f"imageLists/{part}.txt").write_text("\n".join(stems) + "\n")
    return expected


def coco_stuff_10k_mmseg(root: Path) -> Expected:
    """Write the files as MMSegmentation's converter does."""
    expected: Expected = {}
    for split, folder in {"train": "train2014", "val": "test2014"}.items():
        ids = draw_label(range(172), len(split))
        write_picture(root / f"images/{folder}/COCO_train2014_{split}.jpg", len(split))
        write_label(root / f"annotations/{folder}/COCO_train2014_{split}_labelTrainIds.png", ids)
        expected[split] = [map_ids(ids, {k: k - 1 for k in range(1, 172)})]
    return expected


def coco_stuff_164k(root: Path) -> Expected:
    expected: Expected = {}
    for n, split in enumerate(("train", "val")):
        ids = draw_label((*range(182), 255), n)
        assert set(UNUSED) < set(ids.ravel().tolist())
        write_picture(root / f"images/{split}2017/00000000000{n}.jpg", n)
        write_label(root / f"annotations/{split}2017/00000000000{n}.png", ids)
        expected[split] = [map_ids(ids, {raw: k for k, raw in enumerate(USED)})]
    return expected


def coco_stuff_164k_182(root: Path) -> Expected:
    """Write images and labels in the same folders, as when the three archives are unpacked in one place."""
    expected: Expected = {}
    for n, split in enumerate(("train", "val")):
        ids = draw_label((*range(182), 255), n)
        write_picture(root / f"{split}2017/00000000000{n}.jpg", n)
        write_label(root / f"{split}2017/00000000000{n}.png", ids)
        expected[split] = [ids]
    return expected


def camvid(root: Path) -> Expected:
    expected: Expected = {}
    for n, split in enumerate(("train", "val", "test")):
        ids = draw_label(range(12), n)
        write_picture(root / f"{split}/0001TP_{n}.png", n)
        write_label(root / f"{split}annot/0001TP_{n}.png", ids)
        expected[split] = [map_ids(ids, {k: k for k in range(11)})]
    return expected


def folder(root: Path) -> Expected:
    """Write a data set of three classes with labels beside the images. One class has two ids."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "dataset.yaml").write_text(
        "names: [road, sky, car]\nids: {7: road, 300: sky, 26: car, 27: 2}\nignore: 0\nlabel_suffix: _mask.png\n"
        "splits:\n  train: {images: a b, labels: a b}\n  val: {images: v, labels: m}\n"
    )
    expected: Expected = {}
    for n, (split, images, masks) in enumerate((("train", "a b", "a b"), ("val", "v", "m"))):
        ids = draw_label((0, 7, 26, 27, 200), n).astype(np.uint16)
        ids[ids == 200] = 300
        write_picture(root / images / "bild_ü.png", n)
        write_label(root / masks / "bild_ü_mask.png", ids)
        expected[split] = [map_ids(ids, {7: 0, 300: 1, 26: 2, 27: 2})]
    return expected


# name of the case: (data set, function that writes its files)
TREES: dict[str, tuple[str, Callable[[Path], Expected]]] = {
    "cityscapes": ("cityscapes", cityscapes),
    "ade20k": ("ade20k", ade20k),
    "voc": ("voc", voc),
    "coco_stuff_10k": ("coco_stuff_10k", coco_stuff_10k),
    "coco_stuff_10k as mmseg": ("coco_stuff_10k", coco_stuff_10k_mmseg),
    "coco_stuff_164k": ("coco_stuff_164k", coco_stuff_164k),
    "coco_stuff_164k_182": ("coco_stuff_164k_182", coco_stuff_164k_182),
    "camvid": ("camvid", camvid),
    "folder": ("folder", folder),
}
