"""COCO-Stuff, 171 classes: the 10k version (9000 and 1000 images) and 164k (118287 and 5000).

The label files of 164k hold ids 0..181, and 255 where a pixel has no label. The label files of 10k hold ids 1..182, and
0 where a pixel has no label. Eleven of the 182 ids were never annotated. CIRKD's networks for 164k nevertheless have
outputs for them; the entry 164k_182 is for these networks. The colours are MMSegmentation's, where nine classes have
the colour of another class.
"""

from pathlib import Path

from datasets.base import DatasetSpec, make_voc_colors, parse_hex_colors, parse_names
from datasets.files import PathPair, find_base_folder, list_images, pair_labels, read_list
from datasets.ids import IdMap

UNUSED = (11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90)
USED = tuple(k for k in range(182) if k not in UNUSED)
TRAIN_IDS = "_labelTrainIds.png"  # the end of the names of labels that MMSegmentation's converters write

ALL_NAMES = """
    person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, street sign,
    stop sign, parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, hat, backpack,
    umbrella, shoe, eye glasses, handbag, tie, suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat,
    baseball glove, skateboard, surfboard, tennis racket, bottle, plate, wine glass, cup, fork, knife, spoon, bowl,
    banana, apple, sandwich, orange, broccoli, carrot, hot dog, pizza, donut, cake, chair, couch, potted plant, bed,
    mirror, dining table, window, desk, toilet, door, tv, laptop, mouse, remote, keyboard, cell phone, microwave,
    oven, toaster, sink, refrigerator, blender, book, clock, vase, scissors, teddy bear, hair drier, toothbrush, hair
    brush, banner, blanket, branch, bridge, building-other, bush, cabinet, cage, cardboard, carpet, ceiling-other,
    ceiling-tile, cloth, clothes, clouds, counter, cupboard, curtain, desk-stuff, dirt, door-stuff, fence,
    floor-marble, floor-other, floor-stone, floor-tile, floor-wood, flower, fog, food-other, fruit, furniture-other,
    grass, gravel, ground-other, hill, house, leaves, light, mat, metal, mirror-stuff, moss, mountain, mud, napkin,
    net, paper, pavement, pillow, plant-other, plastic, platform, playingfield, railing, railroad, river, road, rock,
    roof, rug, salad, sand, sea, shelf, sky-other, skyscraper, snow, solid-other, stairs, stone, straw,
    structural-other, table, tent, textile-other, towel, tree, vegetable, wall-brick, wall-concrete, wall-other,
    wall-panel, wall-stone, wall-tile, wall-wood, water-other, waterdrops, window-blind, window-other, wood
"""
COLORS = """
    00c040 00c040 004060 80c0c0 004040 00c0e0 00c0c0 80c040 00c060 80c040 8020c0 0000e0 000040 00a0c0 800060 8000c0
    0020c0 8080e0 0000c0 80a0c0 808000 800020 802000 800080 408020 00a000 000000 c080a0 002000 008080 4080a0 80a000
    008000 c08020 806080 000080 400020 00e080 800000 c000a0 006080 808080 4000a0 80e080 808040 c00020 806000 8000c0
    008020 40e000 000040 8080a0 406000 0080c0 0080a0 c0e000 008040 808020 c02080 0040c0 000020 40a080 804040 8000a0
    402080 80c0c0 0000a0 c0a080 80c000 800060 c02000 804080 408060 40a000 004000 c080e0 402000 00c080 4080e0 c0a000
    00c000 c08060 c06080 004080 400060 40e080 804000 c000e0 406080 80c080 4000e0 c0e080 80c040 c00060 c06000 8040c0
    008060 00e000 404040 8080e0 006000 40c0c0 0080e0 80e000 40c040 808060 802080 4000c0 004060 00a080 c00040 8040e0
    002080 c080c0 0040e0 80a080 c08000 804020 802040 c00080 40c020 00a040 400000 c0c0a0 002040 408080 40c0a0 80a040
    408000 c0c020 8060c0 400080 404020 00e0c0 c00000 c040a0 0060c0 c08080 4040a0 80e0c0 c08040 c04020 806040 c000c0
    00c020 40e040 400040 80c0a0 406040 4080c0 00c0a0 c0e040 408040 80c020 c020c0 4040c0 004020 40a0c0 c04040 8040a0
    4020c0 c0c0c0 0040a0 c0a0c0 c0c000 804060 c02040 c04080 40c060 40a040 404000
"""


def list_pairs_10k(root: Path, split: str) -> list[PathPair]:
    """List images and labels of the 10k version, in the archive's folders or in MMSegmentation's {train,test}2014.

    The archive has images/, annotations/*.mat and imageLists/. A label is ``<stem>.png`` with the official ids, else
    ``<stem>.mat``, else MMSegmentation's ``<stem>_labelTrainIds.png``.
    """
    base = find_base_folder(root, "images", ("", "coco_stuff10k"), "Unpack cocostuff-10k-v1.1.zip")
    part = "train" if split == "train" else "test"
    images = base / "images"
    labels = base / "annotations"
    if (images / f"{part}2014").is_dir():
        images /= f"{part}2014"
        labels /= f"{part}2014"
        found = list_images(images, [".jpg"])
    else:
        names = sorted(read_list(base / "imageLists" / f"{part}.txt"))
        found = [images / f"{name}.jpg" for name in names]
    return pair_labels(found, lambda image: [labels / f"{image.stem}{end}" for end in (".png", ".mat", TRAIN_IDS)])


def list_pairs_164k(root: Path, split: str) -> list[PathPair]:
    """List images and labels of the 164k version.

    They lie in images/{train,val}2017 and annotations/{train,val}2017, or in the folders of the three archives.
    """
    part = f"{split}2017"
    places = ("images", "", "coco_stuff164k/images")
    hint = "Unpack train2017.zip, val2017.zip and stuffthingmaps_trainval2017.zip"
    images = find_base_folder(root, part, places, hint)
    base = images.parent if images.name == "images" else images
    names = ("annotations", "stuffthingmaps", "stuffthingmaps_trainval2017", "")
    label_folders = [base / name / part for name in names]
    labels = next((folder for folder in label_folders if any(folder.glob("*.png"))), label_folders[0])
    found = list_images(images / part, [".jpg"])
    return pair_labels(found, lambda image: [labels / f"{image.stem}.png", labels / f"{image.stem}{TRAIN_IDS}"])


_ALL = parse_names(ALL_NAMES)
_NAMES = tuple(_ALL[k] for k in USED)

COCO_STUFF_10K = DatasetSpec(
    names=_NAMES,
    palette=parse_hex_colors(COLORS),
    pairs=list_pairs_10k,
    splits={"train": (9000,), "val": (1000,), "test": (1000,)},
    ids=IdMap.from_ids([k + 1 for k in USED], ignored=(0, 255, *(k + 1 for k in UNUSED))),
    other_ids={TRAIN_IDS: IdMap.from_ids(range(1, 172), ignored=(0, 255))},
)
COCO_STUFF_164K = DatasetSpec(
    names=_NAMES,
    palette=parse_hex_colors(COLORS),
    pairs=list_pairs_164k,
    splits={"train": (118287,), "val": (5000,), "test": (40670,)},
    ids=IdMap.from_ids(USED, ignored=(255, *UNUSED)),
    other_ids={TRAIN_IDS: IdMap.from_ids(range(171))},
)
COCO_STUFF_164K_182 = DatasetSpec(
    names=_ALL,
    palette=make_voc_colors(183)[1:],  # no published colours
    pairs=list_pairs_164k,
    splits=COCO_STUFF_164K.splits,
    ids=IdMap.from_ids(range(182)),
    other_ids={TRAIN_IDS: IdMap(dict(enumerate(USED)))},
)
