"""Check that the required packages are installed. This module imports none of them, so it can be called first."""

import sys
from importlib.util import find_spec

# import names of the packages in requirements.txt; commands that need others check for them
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
STATUS = 2  # exit status of every error that the user can mend


def require_packages() -> None:
    """End the program with a line that says what to do, if a package is missing."""
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        print(
            f"error: {', '.join(missing)} not installed for {sys.executable}: 'bash scripts/setup.sh' installs what is "
            "missing, into the active environment or else into .venv; 'source .venv/bin/activate' activates that",
            file=sys.stderr,
        )
        sys.exit(STATUS)
