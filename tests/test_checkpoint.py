import os
import zipfile

import pytest
import torch

from utils import checkpoint
from utils.errors import UserError


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "last.pth"
    checkpoint.save({"model": {"w": torch.arange(5000.0)}, "iteration": 3, "name": "a"}, path)
    return path


def test_round_trip(file):
    content = checkpoint.read(file)
    assert content["iteration"] == 3
    assert torch.equal(content["model"]["w"], torch.arange(5000.0))
    assert [path.name for path in file.parent.iterdir()] == ["last.pth"]


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"not found: .*none\.pth"):
        checkpoint.read(tmp_path / "none.pth")


def test_a_flipped_byte_in_the_weights_is_found(file):
    data = bytearray(file.read_bytes())
    with zipfile.ZipFile(file) as archive:
        largest = max(archive.infolist(), key=lambda info: info.file_size)
    for offset in range(200, largest.file_size, 2000):
        changed = data.copy()
        changed[largest.header_offset + offset] ^= 1
        file.write_bytes(changed)
        with pytest.raises(UserError, match="damaged"):
            checkpoint.read(file)


def test_a_failed_save_keeps_the_old_file(file, monkeypatch):
    def fail_with_full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail_with_full_disk)
    with pytest.raises(UserError, match=r"last\.pth: .*No space"):
        checkpoint.save({"model": {}}, file)
    assert checkpoint.read(file)["iteration"] == 3
    assert [path.name for path in file.parent.iterdir()] == ["last.pth"]


def test_weights_that_do_not_fit_are_listed():
    module = torch.nn.Conv2d(3, 4, 1)
    with pytest.raises(UserError, match=r"x does not fit.*1 keys missing \(bias\).*1 unknown keys \(b\)"):
        checkpoint.load_weights(module, {"weight": torch.zeros(4, 3, 1, 1), "b": torch.zeros(4)}, "x")
    with pytest.raises(UserError, match=r"weight \[4, 2, 1, 1\] for \[4, 3, 1, 1\]"):
        checkpoint.load_weights(module, {"weight": torch.zeros(4, 2, 1, 1), "bias": torch.zeros(4)}, "x")
