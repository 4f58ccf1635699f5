"""The import rules of the code base, walked on the syntax trees."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("utils", "datasets", "models", "losses")
ENTRY = ("train_teacher", "train_student", "eval")
FILES = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
FILES += [ROOT / f"{name}.py" for name in ENTRY]


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module)
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(path):
    layer = path.relative_to(ROOT).parts[0].removesuffix(".py")
    roots = {name.partition(".")[0] for name in imports(path)}
    allowed = {"utils": {"utils"}, **{entry: set(PACKAGES) for entry in ENTRY}}
    ours = roots & {*PACKAGES, *ENTRY}
    assert ours <= allowed.get(layer, {"utils", layer}), f"{path} imports {ours}"
    if layer != "models":
        assert not roots & {"timm", "mmcv"}, f"{path} imports timm or mmcv"
    if layer != "utils":
        assert not any(name.startswith("torch.distributed") for name in imports(path))


def test_mmcv_is_used_without_its_compiled_operators():
    assert not any(name.startswith("mmcv.ops") for path in FILES for name in imports(path))
