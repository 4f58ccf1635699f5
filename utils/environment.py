"""Check that the required packages can be used. This module imports none of them, so it can be called first."""

import sys
import traceback
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType

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
ROOT = Path(__file__).resolve().parents[1]
ADVICE = (
    "'bash scripts/setup.sh' installs what is missing, into the active environment or else into .venv; "
    "'source .venv/bin/activate' activates that"
)
STATUS = 2  # exit status of every error that the user can mend


def require_packages() -> None:
    """End the program with a line that says what to do, if a package is missing, or later cannot be imported."""
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        print(f"error: {', '.join(missing)} not installed for {sys.executable}: {ADVICE}", file=sys.stderr)
        sys.exit(STATUS)
    sys.excepthook = _report_uncaught


def _report_uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print one line for a package that is damaged or lacks a library of the system; other errors as Python does."""
    frames = traceback.extract_tb(trace)
    place = Path(frames[-1].filename).resolve() if frames else ROOT
    is_own_code = place.is_relative_to(ROOT) and "site-packages" not in place.parts
    main_file = getattr(sys.modules["__main__"], "__file__", None)
    is_main_script = main_file is not None and place == Path(main_file).resolve()  # maybe a script of the user's
    if not isinstance(error, ImportError) or is_own_code or is_main_script:
        sys.__excepthook__(kind, error, trace)
        return
    reason = " ".join(str(error).split())
    print(f"error: a package of {sys.executable} cannot be imported: {reason} ({place}). {ADVICE}", file=sys.stderr)
    sys.exit(STATUS)
