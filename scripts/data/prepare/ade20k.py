"""Make the layout of ADE20K's SceneParse150: images/ and annotations/, each with training/ and validation/.

python scripts/data/prepare/ade20k.py --archives ~/Downloads --data data/ade20k
"""

from archives import Archive, prepare

URL = "http://data.csail.mit.edu/places/ADEchallenge"
PLACE = (r"((?:images|annotations)/(?:training|validation)/[^/]+\.(?:jpg|png))", r"\1")
ARCHIVES = (
    Archive("ADEChallengeData2016.zip", f"{URL}/ADEChallengeData2016.zip", PLACE),
    Archive("release_test.zip", f"{URL}/release_test.zip", (r"testing/([^/]+\.jpg)", r"images/testing/\1"), True),
)

if __name__ == "__main__":
    prepare(__doc__, ARCHIVES)
