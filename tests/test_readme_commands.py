"""Test every command of the documentation: its script exists, its flags parse, and its input files exist."""

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
LINES = []
for path in READMES:
    for line in commands(path):
        LINES += [(path.relative_to(ROOT), part) for part in line.split(" && ")]
# paths that begin so come from the reader or from an earlier command
NOT_IN_REPOSITORY = ("VOCdevkit", "runs", "my_photos", ".venv", "data", "bases", "results", *DOWNLOADED.values())


def find_config_class(module):
    """Return the last settings class that a script defines, or None."""
    classes = [c for c in vars(module).values() if dataclasses.is_dataclass(c) and c.__module__ == module.__name__]
    return next((c for c in reversed(classes) if c.__name__.endswith("Config")), None)


def check_command(words):
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
        if name == "train_teacher.sh":
            config_class, role = TeacherConfig, "teacher"
        else:
            config_class, role = StudentConfig, "student"
        data, model, backbone, *rest = flags
        recipe = ["--recipe", data, "--dataset", data, "--model", model, "--backbone", backbone]
        assert parse_settings(config_class, role, [*recipe, *rest]).model == model
    elif name == "eval.sh" or first == "python":
        module = "eval" if name == "eval.sh" else script.removesuffix(".py").replace("/", ".")
        config_class = find_config_class(importlib.import_module(module))
        if config_class is not None:  # a few small tools have no settings class
            parse_flags(config_class, "", flags)


@pytest.mark.parametrize(("readme", "line"), LINES, ids=lambda x: str(x)[:60])
def test_a_command_parses_and_its_files_exist(readme, line):
    words = shlex.split(line)
    check_command(words)
    produced = {word for flag, word in pairwise(words) if flag in ("--output", "--export", "--json")}
    for word in words:
        if "/" in word and word not in produced and not word.startswith(NOT_IN_REPOSITORY):
            assert (ROOT / word).exists(), f"{readme}: {word}"


@pytest.mark.parametrize("page", ["method.md", "layout.md"])
def test_names_that_a_page_places_in_a_file_exist(page):
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
