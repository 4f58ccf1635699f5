"""Make the layout of COCO-Stuff 10k: images, the official lists, and labels as PNG with the official ids.

python scripts/data/prepare/coco_stuff_10k.py --archives ~/Downloads --data data/coco_stuff10k
"""

from pathlib import Path

from archives import Archive, convert_mat, prepare

URL = "http://calvin.inf.ed.ac.uk/wp-content/uploads/data/cocostuffdataset/cocostuff-10k-v1.1.zip"
ARCHIVES = (Archive("cocostuff-10k-v1.1.zip", URL, (r"((?:images|annotations|imageLists)/[^/]+)", r"\1")),)


def convert(root: Path) -> None:
    convert_mat(sorted((root / "annotations").glob("*.mat")), root / "annotations", ("S",))


if __name__ == "__main__":
    prepare(__doc__, ARCHIVES, convert)
