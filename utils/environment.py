"""Whether the packages are there. Needs none of them, so that an entry script can ask before it imports any."""

import sys
from importlib.util import find_spec

# names to import of requirements.txt; what only some commands need is asked for by those
PACKAGES = (
    "torch",
    "torchvision",
    "timm",
    "segmentation_models_pytorch",
    "mmcv",
    "cv2",
    "numpy",
    "scipy",
    "PIL",
    "safetensors",
    "yaml",
    "matplotlib",
    "tqdm",
    "tensorboard",
)
STATUS = 2  # as of every error that the user can mend


def require_packages() -> None:
    """End the program with one line that says what to do where a package is missing."""
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        print(
            f"error: {', '.join(missing)} not installed for {sys.executable}: 'bash scripts/setup.sh' installs what is "
            "missing, into the active environment or else into .venv; 'source .venv/bin/activate' activates that",
            file=sys.stderr,
        )
        sys.exit(STATUS)
