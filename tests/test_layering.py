"""The import rules of the code base, walked on the syntax trees."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("utils", "datasets", "models", "losses")
ENTRY = ("train_teacher", "train_student", "eval")
FILES = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
FILES += [ROOT / f"{name}.py" for name in ENTRY]
SCRIPTS = sorted((ROOT / "scripts").rglob("*.py"))
ABOVE = {"scripts", "recipes", "tests", "results", "figures"}  # folders that no package knows of


def imports(path: Path) -> set[str]:
    """Modules, and what may be modules among the names that are imported from packages."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def folders_named(path: Path) -> set[str]:
    """Constant parts of paths that are put together by ``/``."""
    parts = [n.right for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.BinOp)]
    texts = [part.value for part in parts if isinstance(part, ast.Constant) and isinstance(part.value, str)]
    return {name for text in texts for name in text.split("/")}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(path):
    layer = path.relative_to(ROOT).parts[0].removesuffix(".py")
    roots = {name.partition(".")[0] for name in imports(path)}
    allowed = {"utils": {"utils"}, **{entry: set(PACKAGES) for entry in ENTRY}}
    ours = roots & {*PACKAGES, *ENTRY, "scripts", "tests"}
    assert ours <= allowed.get(layer, {"utils", layer}), f"{path} imports {ours}"
    if layer != "models":
        assert not roots & {"timm", "mmcv"}, f"{path} imports timm or mmcv"
    if layer != "utils":
        assert not any(name.startswith("torch.distributed") for name in imports(path))


def test_mmcv_is_used_without_its_compiled_operators():
    assert not any(name.startswith("mmcv.ops") for path in FILES for name in imports(path))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_paths_point_down(path):
    layer = path.relative_to(ROOT).parts[0]
    above = ABOVE | ({"datasets", "models", "losses", "checkpoints"} if layer == "utils" else set())
    if layer.removesuffix(".py") not in ENTRY:
        assert not folders_named(path) & above


def test_no_module_imports_itself_by_a_detour():
    named = {str(p.relative_to(ROOT).with_suffix("")).replace("/", ".").removesuffix(".__init__"): p for p in FILES}
    named |= {str(p.relative_to(ROOT).with_suffix("")).replace("/", "."): p for p in SCRIPTS}
    left = {name: (imports(path) & named.keys()) - {name} for name, path in named.items()}
    # a package's own modules run before the rest of its __init__: what it imports of itself is no circle
    left = {name: {n for n in needs if not n.startswith(f"{name}.")} for name, needs in left.items()}
    while free := [name for name, needs in left.items() if not needs & left.keys()]:
        for name in free:
            del left[name]
    assert not left
