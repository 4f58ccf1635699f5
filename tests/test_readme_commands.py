"""Every command of the READMEs: its script exists, its flags parse, and what it reads is there or made before."""

import dataclasses
import importlib
import re
import shlex
from itertools import pairwise

import pytest

from engine.settings import StudentConfig, TeacherConfig
from tests.conftest import ROOT, parse_settings
from tests.readme_commands import DOWNLOADED, PAGES, commands
from utils.options import parse_flags

READMES = [p for p in sorted(ROOT.rglob("README.md")) if not {".venv", "runs"} & set(p.parts)]
READMES += sorted((ROOT / "docs").glob("*.md"))
LINES = [(path.relative_to(ROOT), line) for path in READMES for line in commands(path)]
LINES = [(readme, part) for readme, line in LINES for part in line.split(" && ")]
BROUGHT = ("VOCdevkit", "runs", "my_photos", ".venv", "data", "bases", "results", *DOWNLOADED.values())


def config_class(module):
    """The settings of a script: the record it defines last."""
    made = [c for c in vars(module).values() if dataclasses.is_dataclass(c) and c.__module__ == module.__name__]
    return next((c for c in reversed(made) if c.__name__.endswith("Config")), None)


def check(words):
    """Parse the flags of one command.

    Raises:
        UserError: an unknown flag, a bad value.
    """
    first, script, *flags = words
    if first in ("export", "source", "pip"):
        return
    assert first in ("bash", "python"), first
    assert (ROOT / script).is_file(), script
    name = script.rpartition("/")[2]
    if name in ("train_teacher.sh", "train_student.sh"):
        made, role = (TeacherConfig, "teacher") if "teacher" in name else (StudentConfig, "student")
        data, model, backbone, *rest = flags
        recipe = ["--recipe", data, "--dataset", data, "--model", model, "--backbone", backbone]
        assert parse_settings(made, role, [*recipe, *rest]).model == model
    elif name == "eval.sh" or first == "python":
        module = "eval" if name == "eval.sh" else script.removesuffix(".py").replace("/", ".")
        made = config_class(importlib.import_module(module))
        if made is not None:  # a few small tools have no record of settings
            parse_flags(made, "", flags)


@pytest.mark.parametrize(("readme", "line"), LINES, ids=lambda x: str(x)[:60])
def test_a_command_parses_and_its_files_exist(readme, line):
    words = shlex.split(line)
    check(words)
    produced = {word for flag, word in pairwise(words) if flag in ("--output", "--export", "--json")}
    for word in words:
        if "/" in word and word not in produced and not word.startswith(BROUGHT):
            assert (ROOT / word).exists(), f"{readme}: {word}"


@pytest.mark.parametrize("page", ["method.md", "layout.md"])
def test_names_that_a_page_places_in_a_file_are_there(page):
    places = re.findall(r"`([\w.]+)` in \[?`?([\w/]+\.py)", (ROOT / "docs" / page).read_text(encoding="utf-8"))
    assert places
    for name, file in places:
        text = (ROOT / file).read_text(encoding="utf-8")
        for part in name.split("."):
            assert re.search(rf"^ *(def|class) {part}\b|^{part}\b.* = ", text, re.M), f"{name} in {file}"


def test_the_readme_is_short_and_has_commands():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) < 150
    assert sum(len(commands(ROOT / page)) for page in PAGES) > 20
    assert not [line for readme, line in LINES if "..." in line]
