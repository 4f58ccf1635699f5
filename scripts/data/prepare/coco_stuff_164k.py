"""Make the layout of COCO-Stuff 164k: images/{train,val}2017 and annotations/{train,val}2017.

python scripts/data/prepare/coco_stuff_164k.py --archives ~/Downloads --data data/coco_stuff164k
"""

from archives import Archive, prepare

IMAGES = "http://images.cocodataset.org/zips"
LABELS = "http://calvin.inf.ed.ac.uk/wp-content/uploads/data/cocostuffdataset/stuffthingmaps_trainval2017.zip"
ARCHIVES = (
    Archive("train2017.zip", f"{IMAGES}/train2017.zip", (r"(train2017/[^/]+\.jpg)", r"images/\1")),
    Archive("val2017.zip", f"{IMAGES}/val2017.zip", (r"(val2017/[^/]+\.jpg)", r"images/\1")),
    Archive("stuffthingmaps_trainval2017.zip", LABELS, (r"((?:train|val)2017/[^/]+\.png)", r"annotations/\1")),
)

if __name__ == "__main__":
    prepare(__doc__, ARCHIVES)
