"""Which messages for users do the tests trigger? Runs the tests and counts the places that make a UserError.

    python scripts/study/error_sites.py -n 4                  # arguments go to pytest
    python scripts/study/error_sites.py tests/test_faults.py

Prints the places that no test reached, and how many of all were reached. Processes that the tests start count as well;
runs that share a file ERROR_SITES=FILE add up.
"""

import ast
import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ERRORS = {"UserError", "NotFinite"}
# Python imports a module of this name at its start, in every process: it notes the line behind each UserError.
SITECUSTOMIZE = """
import builtins, os, sys
build = builtins.__build_class__

def noting(body, name, *bases, **options):
    made = build(body, name, *bases, **options)
    if name == "UserError":
        def note(self, *arguments):
            Exception.__init__(self, *arguments)
            frame = sys._getframe(1)
            try:
                with open(os.environ["ERROR_SITES"], "a") as file:
                    file.write(f"{frame.f_code.co_filename}\\t{frame.f_lineno}\\n")
            except OSError:
                pass  # a test lets no file grow
        made.__init__ = note
    return made

builtins.__build_class__ = noting
"""


def sites() -> dict[Path, list[tuple[int, int]]]:
    """First and last line of each expression that makes a UserError, by file; tests and this file left out."""
    found = defaultdict(list)
    for path in sorted(ROOT.rglob("*.py")):
        if path.relative_to(ROOT).parts[0] == "tests" or any(p.startswith(".") for p in path.relative_to(ROOT).parts):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ERRORS:
                found[path].append((node.lineno, node.end_lineno))
    return found


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "sitecustomize.py").write_text(SITECUSTOMIZE, encoding="utf-8")
        noted = Path(os.environ.get("ERROR_SITES") or Path(folder) / "sites")
        noted.touch()
        path = os.pathsep.join(filter(None, (folder, os.environ.get("PYTHONPATH"))))
        environment = {**os.environ, "PYTHONPATH": path, "ERROR_SITES": str(noted)}
        tests = subprocess.run([sys.executable, "-m", "pytest", *sys.argv[1:]], cwd=ROOT, env=environment, check=False)
        lines = {tuple(line.split("\t")) for line in noted.read_text(encoding="utf-8").splitlines()}
    reached = defaultdict(set)
    for name, line in lines:
        reached[Path(name).resolve()].add(int(line))
    every = [(path, first, last) for path, places in sites().items() for first, last in places]
    missed = [(path, first) for path, first, last in every if not reached[path] & set(range(first, last + 1))]
    for path, first in missed:
        print(f"not reached: {path.relative_to(ROOT)}:{first}")
    print(f"{len(every) - len(missed)} of {len(every)} places that make an error for users were reached by the tests")
    sys.exit(tests.returncode)


if __name__ == "__main__":
    main()
