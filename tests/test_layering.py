"""The import rules of the code base, checked on the syntax trees."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MIDDLE = ("datasets", "models", "losses")  # they exchange tensors and never import each other
ENTRY = ("train_teacher", "train_student", "eval")
MAY_IMPORT = {  # package or script -> the packages that it may import besides itself
    "utils": set(),
    **{package: {"utils"} for package in MIDDLE},
    "engine": {"utils", *MIDDLE},
    **{script: {"utils", *MIDDLE, "engine"} for script in ENTRY},
}
SCRIPTS = sorted((ROOT / "scripts").rglob("*.py"))
RECIPE_READER = ROOT / "engine/recipes.py"  # the only file that may name the folder of the recipes
# folders that no package may name
ABOVE = {"scripts", "recipes", "tests", "results", "figures"}


def list_files(floor: str) -> list[Path]:
    """Return the files of a package, or an entry script."""
    script = ROOT / f"{floor}.py"
    return [script] if script.exists() else sorted((ROOT / floor).rglob("*.py"))


FILES = [path for floor in MAY_IMPORT for path in list_files(floor)]


def list_imports(path: Path) -> set[str]:
    """Return all names that a file imports as modules.

    ``from a import b`` counts as ``a`` and as ``a.b``, because ``b`` may be a module.
    """
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def list_named_folders(path: Path) -> set[str]:
    """Return the constant names on the right of a ``/`` in paths."""
    parts = [n.right for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.BinOp)]
    texts = [part.value for part in parts if isinstance(part, ast.Constant) and isinstance(part.value, str)]
    return {name for text in texts for name in text.split("/")}


def name_module(path: Path) -> str:
    """Return the name under which a file is imported."""
    return str(path.relative_to(ROOT).with_suffix("")).replace("/", ".")


@pytest.mark.parametrize("floor", MAY_IMPORT)
def test_imports_and_paths_point_to_lower_floors(floor):
    floors = {*MAY_IMPORT, "scripts", "tests"}
    above = ABOVE | ({*MIDDLE, "engine", "checkpoints"} if floor == "utils" else set())
    for path in list_files(floor):
        names = list_imports(path)
        roots = {name.partition(".")[0] for name in names}
        assert roots & floors <= MAY_IMPORT[floor] | {floor}, f"{path} imports {roots & floors}"
        if floor != "models":
            assert not roots & {"timm", "mmcv", "segmentation_models_pytorch"}, f"{path} builds networks"
        if floor not in ("utils", "engine"):
            assert not any(name.startswith("torch.distributed") for name in names), f"{path} imports torch.distributed"
        if floor not in ENTRY and path != RECIPE_READER:
            assert not list_named_folders(path) & above, f"{path} names a folder of a higher floor"


def test_mmcv_is_used_without_its_compiled_operators():
    assert not any(name.startswith("mmcv.ops") for path in FILES for name in list_imports(path))


def test_imports_have_no_cycle():
    modules = {name_module(path).removesuffix(".__init__"): path for path in FILES}
    modules |= {name_module(path): path for path in SCRIPTS}
    imports_left = {}
    for module, path in modules.items():
        imports_left[module] = {
            name
            for name in list_imports(path) & modules.keys()
            # a package may import its own modules in its __init__: that is no cycle
            if name != module and not name.startswith(f"{module}.")
        }
    while without_imports := [module for module, names in imports_left.items() if not names & imports_left.keys()]:
        for module in without_imports:
            del imports_left[module]
    assert not imports_left
