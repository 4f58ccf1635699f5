"""Make the VOC-Aug layout from PASCAL VOC 2012 and SBD.

    python scripts/data/prepare/voc.py --archives ~/Downloads --data data/VOC2012

SBD's labels become SegmentationClassAug/*.png for the 9118 images that the devkit does not label for segmentation.
"""

from pathlib import Path

from archives import Archive, convert_mat, prepare

from datasets.files import read_list

VOC = "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar"
SBD = "http://www.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/semantic_contours/benchmark.tgz"
FOLDERS = r"((?:JPEGImages|SegmentationClass|ImageSets/Segmentation)/[^/]+)"
ARCHIVES = (
    Archive("VOCtrainval_11-May-2012.tar", VOC, (f"VOC2012/{FOLDERS}", r"\1")),
    Archive("benchmark.tgz", SBD, (r"cls/([^/]+\.mat)", r"SBD/cls/\1")),
)


def convert(root: Path) -> None:
    lists = root / "ImageSets/Segmentation"
    labelled = {*read_list(lists / "train.txt"), *read_list(lists / "val.txt")}
    files = sorted(path for path in (root / "SBD/cls").glob("*.mat") if path.stem not in labelled)
    convert_mat(files, root / "SegmentationClassAug", ("GTcls", "Segmentation"))


if __name__ == "__main__":
    prepare(__doc__, ARCHIVES, convert)
