"""The import rules of the code base, walked on the syntax trees."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MIDDLE = ("datasets", "models", "losses")  # they meet as tensors and never import each other
ENTRY = ("train_teacher", "train_student", "eval")
MAY_IMPORT = {  # besides itself
    "utils": set(),
    **{package: {"utils"} for package in MIDDLE},
    "engine": {"utils", *MIDDLE},
    **{script: {"utils", *MIDDLE, "engine"} for script in ENTRY},
}
SCRIPTS = sorted((ROOT / "scripts").rglob("*.py"))
RECIPE_READER = ROOT / "engine/recipes.py"  # it alone knows where the recipes lie
# folders that the packages do not know of
ABOVE = {"scripts", "recipes", "tests", "results", "figures"}


def files_of(floor: str) -> list[Path]:
    """Return the files of a package, or an entry script."""
    script = ROOT / f"{floor}.py"
    return [script] if script.exists() else sorted((ROOT / floor).rglob("*.py"))


FILES = [path for floor in MAY_IMPORT for path in files_of(floor)]


def imports(path: Path) -> set[str]:
    """Return the modules, and what may be modules among the names that are imported from packages."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def folders_named(path: Path) -> set[str]:
    """Return the constant parts of paths that are put together by ``/``."""
    parts = [n.right for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.BinOp)]
    texts = [part.value for part in parts if isinstance(part, ast.Constant) and isinstance(part.value, str)]
    return {name for text in texts for name in text.split("/")}


@pytest.mark.parametrize("floor", MAY_IMPORT)
def test_imports_and_paths_point_down(floor):
    floors = {*MAY_IMPORT, "scripts", "tests"}
    above = ABOVE | ({*MIDDLE, "engine", "checkpoints"} if floor == "utils" else set())
    for path in files_of(floor):
        names = imports(path)
        roots = {name.partition(".")[0] for name in names}
        assert roots & floors <= MAY_IMPORT[floor] | {floor}, f"{path} imports {roots & floors}"
        if floor != "models":
            assert not roots & {"timm", "mmcv", "segmentation_models_pytorch"}, f"{path} builds networks"
        if floor not in ("utils", "engine"):
            assert not any(name.startswith("torch.distributed") for name in names), f"{path} imports torch.distributed"
        if floor not in ENTRY and path != RECIPE_READER:
            assert not folders_named(path) & above, f"{path} names a folder of a higher floor"


def test_mmcv_is_used_without_its_compiled_operators():
    assert not any(name.startswith("mmcv.ops") for path in FILES for name in imports(path))


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
