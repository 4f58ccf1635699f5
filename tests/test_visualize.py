"""Test the grid of predictions and TensorBoard's pictures: a column per network, under a title that fits."""

from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pytest
from PIL import Image

from datasets.toy import TOY
from engine.preview import MAX_RATIO, draw_heading, tile
from scripts.study import method_figure, visualize
from scripts.study.analysis.text import wrap_text
from tests.networks import write_checkpoint
from utils.errors import UserError

LONG = "student-voc-deeplabv3-resnet18_v1s-kd=cwd=3-seed=1"


def draw_and_get_titles(monkeypatch, *flags):
    """Run visualize.py. Return the titles in each row of its grid."""
    drawn = []
    draw = visualize.style.draw_picture_table

    def keep_rows(rows, *legends):
        drawn.extend(rows)
        return draw(rows, *legends)

    with monkeypatch.context() as patch:
        patch.setattr(visualize.style, "draw_picture_table", keep_rows)
        visualize.main([*map(str, flags)])
    return [list(row) for row in drawn]


def test_a_grid_of_a_teacher_and_several_students(tmp_path, monkeypatch):
    teacher = write_checkpoint(tmp_path / "t/last.pth", codes="random")
    students = [write_checkpoint(tmp_path / f"{name}/last.pth") for name in ("baseline", LONG)]
    output = tmp_path / "new/grid.png"
    flags = ("--teacher", teacher, "--student", *students, "--count", 2, "--output", output)
    errors = ["error (baseline)", f"error ({LONG})"]
    titles = ["image", "label", "noised label", "teacher", "baseline", LONG, *errors]
    assert draw_and_get_titles(monkeypatch, *flags) == [titles] * 2
    assert Image.open(output).width > 1000
    one = draw_and_get_titles(monkeypatch, "--student", students[0], "--count", 1, "--output", output)
    assert one == [["image", "label", "student", "error (student)"]]
    assert (
        draw_and_get_titles(monkeypatch, "--teacher", teacher, "--count", 1, "--output", output)[0][-1]
        == "error (teacher)"
    )


def test_networks_that_cannot_be_compared_are_refused(tmp_path, monkeypatch):
    student = write_checkpoint(tmp_path / "a/last.pth")
    reversed_spec = replace(TOY, names=TOY.names[::-1], palette=TOY.palette[::-1])
    other = write_checkpoint(tmp_path / "b/last.pth", spec=reversed_spec)
    for flags, message in (
        (("--student", student, other), "b has the classes in another order"),
        ((), "give --teacher FILE, --student FILE.. or both"),
        (("--student", student, student), "the same file twice"),
    ):
        with pytest.raises(UserError, match=message):
            draw_and_get_titles(monkeypatch, *flags)


@pytest.mark.parametrize("text", [LONG, "a b", "x" * 70, "words that are many and short, but long together"])
def test_titles_are_wrapped_without_losing_text(text):
    lines = wrap_text(text, 20).split("\n")
    assert max(map(len, lines)) <= 20
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")


def test_tensorboard_pictures_have_titles():
    picture = np.full((96, 128, 3), 100, np.uint8)
    titled = tile([{"image": picture, "a longer title than fits into the width": picture}] * 2)
    plain = tile([{"": picture, " ": picture}] * 2)
    assert titled.shape == plain.shape
    assert titled[:22].min() < 100 < plain[:22].min()  # the title is written in dark letters
    assert np.array_equal(titled[22:], plain[22:])
    assert draw_heading("long" * 30, 80).shape == (18, 80, 3)


def test_a_wide_picture_is_limited_in_width():
    picture = np.zeros((16, 8000, 3), np.uint8)
    height, width, _ = tile([{"image": picture, "label": picture}] * 2, height=32, gap=0).shape
    assert width == 2 * MAX_RATIO * 32
    assert height < 2 * 32


def test_the_method_figure_shows_math_symbols(tmp_path):
    """Other figures turn math text off, to show a dollar sign in a name as it is. The method figure needs math text."""
    figure = method_figure.draw_method()
    figure.canvas.draw()
    symbols = [text for axis in figure.axes for text in axis.texts if "$" in text.get_text()]
    assert symbols
    assert all(text.get_parse_math() for text in symbols)
    assert not plt.rcParams["text.parse_math"]
    method_figure.main(["--output", str(tmp_path / "method.png")])
    assert (tmp_path / "method.png").is_file()
