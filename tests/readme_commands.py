"""Run every command of README.md and docs/ in a fresh clone, with few environment variables and short trainings.

    python tests/readme_commands.py [--environment .venv] [--keep FOLDER]

Without --environment the clone makes its own .venv. Some commands need files of the user: VOC, a folder of masks, a
photograph. This script makes them from random images. A random file replaces a download from elsewhere than PyPI.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

# in this order, because a page may use files that an earlier page has made
PAGES = (
    "README.md",
    "docs/train.md",
    "docs/evaluate.md",
    "docs/datasets.md",
    "docs/own_data.md",
    "docs/deploy.md",
    "docs/losses.md",
    "docs/networks.md",
    "docs/reproduce.md",
    "docs/results_guide.md",
    "docs/reliability.md",
    "docs/contributing.md",
)
SMALL = {
    "TRAIN_FLAGS": "--max-iterations 2 --batch-size 4 --crop-size 64 64 --workers 0",
    "PYTEST_ADDOPTS": "-k layering",
    "NGPUS": "1",
    "OMP_NUM_THREADS": "1",
}
DOWNLOADED = {"download_checkpoints.py cirkd_resnet18_imagenet": "checkpoints/resnet18-imagenet.pth"}
NOT_RUN = (*DOWNLOADED, "prepare.py voc")  # a command that contains one of these needs a download and is not run


def commands(readme: Path) -> list[str]:
    """Return the commands in the bash blocks of a page. Join continued lines and leave out comments."""
    blocks = re.findall(r"^```bash\n(.*?)^```", readme.read_text(encoding="utf-8"), re.M | re.S)
    lines = [line.strip() for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [re.sub(r"\s+#.*", "", line) for line in lines if line and not line.startswith("#")]


def add_files_of_the_user(folder: Path) -> None:
    """Write the files that a user has and the repository does not contain."""
    import numpy as np
    import torch
    from PIL import Image

    from models import build_model
    from tests import trees

    trees.voc(folder / "VOCdevkit/VOC2012")
    trees.write_picture(folder / "photo.jpg")
    for split, n in (("train", 4), ("val", 2)):
        for i in range(n):
            trees.write_picture(folder / f"my_photos/{split}/images/{i}.jpg", len(split) * 10 + i)
            mask = folder / f"my_photos/{split}/masks/{i}.png"
            mask.parent.mkdir(parents=True, exist_ok=True)
            colors = np.array([[0, 0, 0], [128, 0, 0], [0, 128, 0]], np.uint8)
            Image.fromarray(colors[trees.draw_label(range(3), i)]).save(mask)
    page = (ROOT / "docs/networks.md").read_text(encoding="utf-8")
    (folder / "my_networks.py").write_text(page.partition("```python\n")[2].partition("```")[0])
    backbone = build_model("fcn", "resnet18_v1s", 2).backbone
    for file in DOWNLOADED.values():
        torch.save(backbone.state_dict(), folder / file)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--environment", type=Path, help="an environment to use as the clone's .venv")
    parser.add_argument("--keep", type=Path, help="folder of the clone, kept")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        clone = options.keep or Path(temporary) / "clone"
        subprocess.run(["git", "clone", "--quiet", ROOT, clone], check=True)
        if options.environment:
            (clone / ".venv").symlink_to(options.environment.resolve())
        add_files_of_the_user(clone)
        lines = [line for page in PAGES for line in commands(clone / page)]
        runnable = [line for line in lines if not any(text in line for text in NOT_RUN)]
        script = "set -e\n" + "\n".join(f"printf '%s\\n' {'$ ' + line!r}\n{line}" for line in runnable)
        environment = {"HOME": os.environ["HOME"], "PATH": "/usr/local/bin:/usr/bin:/bin", **SMALL}
        status = subprocess.run(["bash", "-c", script], cwd=clone, env=environment, check=False).returncode
        print(
            f"{len(runnable)} of {len(lines)} commands, {'all ran' if status == 0 else f'stopped with status {status}'}"
        )
        return status


if __name__ == "__main__":
    sys.exit(main())
