"""Test predictions for the test servers: they have official ids and file names, and need no labels."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

import eval
from datasets import get_dataset_spec
from tests.networks import write_checkpoint
from tests.trees import SIZE, TREES
from utils.errors import UserError


@pytest.mark.parametrize("name", ["cityscapes", "ade20k"])
def test_a_submission_has_the_official_ids_and_names(name, tmp_path):
    """Save the same predictions as palette PNG files and as a submission. Compare their class ids."""
    data = tmp_path / "data"
    TREES[name][1](data)
    split = {"cityscapes": "test", "ade20k": "val"}[name]
    if split == "test":
        shutil.rmtree(data / "gtFine/test")
    spec = get_dataset_spec(name)
    network = write_checkpoint(tmp_path / "model.pth", spec=spec, dataset=name, data=str(data))
    for folder, flags in (("shown", []), ("sent", ["--submission"])):
        out = ["--save-pred", str(tmp_path / folder), "--json", str(tmp_path / f"{folder}.json")]
        command = ["--pretrained", network, "--split", split, "--workers", "0"]
        eval.main([*command, *out, *flags])
    sent = sorted((tmp_path / "sent").iterdir())
    assert [path.name for path in sent] == [f"{image.stem}.png" for image, _ in spec.pairs(data, split)]
    official = np.array(
        {"cityscapes": [7, 8, 11, 12, 13, 17, *range(19, 29), 31, 32, 33], "ade20k": range(1, 151)}[name]
    )
    for path in sent:
        with Image.open(path) as file, Image.open(tmp_path / "shown" / path.name) as shown:
            assert (file.mode, shown.mode) == ("L", "P")
            assert file.size == SIZE[::-1]
            assert np.array_equal(np.array(file), official[np.array(shown)])
    result = json.loads((tmp_path / "sent.json").read_text())
    assert (result["miou"] is None) == (split == "test")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--save-pred", "ADEChallengeData2016/annotations/validation"],
            r"annotations/validation/\w+\.png is an input and would be overwr",
        ),
        (["--blend", "pictures", "--save-pred", "./pictures/../pictures"], r"are both pictures: give two names"),
        (["--json", "model.pth"], r"--json model\.pth is an input and would be overwritten"),
        (["--json", "other.pth"], r"--json other\.pth exists and is no \.json file"),
        (["--per-image", "other.pth"], r"--per-image other\.pth exists and is no \.npz file"),
        (["--per-image", "one", "--json", "./one"], r"--json and --per-image are both one: give two names"),
        (["--json", "one", "--save-pred", "one"], r"--json and --save-pred are both one: give two names"),
        (["--json", "."], r"--json \. is a folder: give the name of a file"),
        (["--json", "/dev/null"], r"--json /dev/null is no regular file: give the name of a file"),
        (["--json", "/proc/none/e.json"], r"--json /proc/none/e\.json cannot be written: No such file"),
        (["--per-image", "taken/e.npz"], r"--per-image taken/e\.npz cannot be written: (Not a directory|File exists)"),
        (["--save-pred", "taken"], r"--save-pred taken cannot be written: File exists"),
    ],
)
def test_outputs_do_not_overwrite_inputs_or_each_other(flags, message, tmp_path, monkeypatch):
    TREES["ade20k"][1](tmp_path)
    (tmp_path / "other.pth").write_bytes(b"another checkpoint")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*")}
    spec = get_dataset_spec("ade20k")
    write_checkpoint(tmp_path / "model.pth", spec=spec, dataset="ade20k", data=str(tmp_path))
    (tmp_path / "taken").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        eval.main(["model.pth", "--workers", "0", "--device", "cpu", *flags])
    (tmp_path / "model.pth").unlink()
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.*")} == before
