"""Run a script with few images in the toy data set, as many as in the tests: small_toy.py SCRIPT [flags]."""

import runpy
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from datasets import toy

IMAGES = {"train": 6, "val": 3}

if __name__ == "__main__":
    toy.IMAGES = IMAGES
    del sys.argv[0]
    runpy.run_path(sys.argv[0], run_name="__main__")
