"""Make the layout of Cityscapes: leftImg8bit/ and gtFine/ with the labelIds files, without the other kinds of label.

python scripts/data/prepare/cityscapes.py --archives ~/Downloads --data data/cityscapes
"""

from archives import Archive, prepare

URL = "https://www.cityscapes-dataset.com/downloads/ (after registration)"
SPLIT = r"(?:train|val|test)/[^/]+/[^/]+"
ARCHIVES = (
    Archive("leftImg8bit_trainvaltest.zip", URL, (rf"(leftImg8bit/{SPLIT}_leftImg8bit\.png)", r"\1")),
    Archive("gtFine_trainvaltest.zip", URL, (rf"(gtFine/{SPLIT}_gtFine_labelIds\.png)", r"\1")),
)

if __name__ == "__main__":
    prepare(__doc__, ARCHIVES)
