"""Files are read and written completely or not at all, and errors name the file."""

import io
import os
import re
import resource
import signal
import sys
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from datasets.base import read_sample
from datasets.camvid import CAMVID
from datasets.files import read_list
from utils import checkpoint, files
from utils.entry import run_main
from utils.errors import UserError, explain_error
from utils.jpeg import collect_complaints
from utils.pictures import read_image


def test_a_closed_or_ascii_stream_does_not_end_a_program(monkeypatch):
    printed = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(printed, "ascii", errors="strict"))
    monkeypatch.setattr(sys, "stderr", None)

    def main():
        print("a\udcff \u00b1")
        sys.stderr.flush()

    run_main(main)
    assert printed.getvalue() == b"a\\udcff \\xb1\n"
    sys.stderr.close()


def test_an_interrupt_prints_one_line_and_sets_the_status(capsys):
    def interrupt():
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as raised:
        run_main(interrupt)
    assert (raised.value.code, capsys.readouterr().err) == (130, "ended: interrupted\n")


def test_names_that_are_not_utf8_are_written_unchanged(tmp_path):
    files.write_text(tmp_path / "list.txt", "a\udcff\n\u00fc\n")
    assert (tmp_path / "list.txt").read_bytes() == b"a\xff\n\xc3\xbc\n"


@pytest.mark.parametrize("room", [0, 100, 5000, 40_000])
def test_a_full_disk_keeps_the_old_checkpoint(tmp_path, room):
    """torch.save hides the error of a write behind its own error. The message must name the real cause."""
    checkpoint.save({"model": {}}, tmp_path / "last.pth")
    before = (tmp_path / "last.pth").read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
    try:
        with pytest.raises(UserError, match=r"cannot write .*last\.pth: File too large$"):
            checkpoint.save({"model": torch.zeros(10000)}, tmp_path / "last.pth")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"last.pth": before}


def test_pipes_and_devices_are_neither_read_nor_written(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    for name in ("pipe", "zero"):
        with pytest.raises(OSError, match="no regular file"):
            files.read_bytes(tmp_path / name)
        with pytest.raises(UserError, match="no regular file"):
            files.write_text(tmp_path / name, "x")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lr: 1\nlr: 2", "line 2: the key 'lr' is there twice"),
        ("[" * 5000, "no plain yaml"),
        ("lr: " + "9" * 5000, "no plain yaml"),
        ("a: !!python/object/apply:os.system [ls]", "no plain yaml"),
    ],
)
def test_bad_yaml_is_refused(tmp_path, text, message):
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(UserError, match=message):
        files.read_yaml(tmp_path / "r.yaml")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (RuntimeError("DataLoader worker (pid 3) is killed by signal: Killed."), "fewer --workers"),
        (RuntimeError("Caught X in DataLoader worker process 0.\nTraceback\nX: No space left on device"), "--shm-size"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "out of memory: a smaller --batch-size"),
        (
            RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be"),
            "out of memory: a smaller --batch-size",
        ),
        (
            RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
            "out of memory: a",
        ),
        (torch.OutOfMemoryError("CUDA out of memory."), "Try a smaller --batch-size or --amp bf16; in training"),
        (RuntimeError("Expected to have finished reduction in the prior iteration"), "took no part in a step"),
        (PermissionError(13, "Permission denied", "a/b.png"), "a/b.png: Permission denied"),
        (MemoryError(), "out of memory"),
        (RuntimeError("Could not determine home directory."), "a path begins with ~"),
    ],
)
def test_failures_of_the_machine_are_explained(error, message):
    assert message in str(explain_error(error))


def test_a_lost_connection_is_explained_only_in_a_process_group(monkeypatch):
    error = RuntimeError("[gloo/pair.cc:1] Connection closed by peer [::1]:3")
    assert explain_error(error) is None
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "another process" in str(explain_error(error))


def test_an_image_too_small_for_a_network_is_explained():
    with pytest.raises(RuntimeError) as raised:
        torch.conv2d(torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 4, 4))
    assert "is too small for this network" in str(explain_error(raised.value))


def test_failures_of_the_program_keep_their_traceback():
    assert explain_error(RuntimeError("shapes differ")) is None
    assert explain_error(RuntimeError("Caught X in DataLoader worker process 0.\nTraceback\nX: shapes differ")) is None
    assert explain_error(KeyError("x")) is None


@pytest.fixture
def jpeg(tmp_path):
    """Write a JPEG that looks like a photograph. Return its path and its bytes."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 255, (12, 16, 3), dtype=np.uint8)).resize((256, 192), Image.BICUBIC)
    pixels = np.clip(np.asarray(coarse) + rng.normal(0, 15, (192, 256, 3)), 0, 255).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.jpg", quality=90)
    return tmp_path / "a.jpg", (tmp_path / "a.jpg").read_bytes()


DAMAGE = {
    "zeros at a third": lambda data: data[: len(data) // 3] + bytes(200) + data[len(data) // 3 + 200 :],
    "zeros in the middle": lambda data: data[: len(data) // 2] + bytes(200) + data[len(data) // 2 + 200 :],
    "half, and an end marker": lambda data: data[: len(data) // 2] + b"\xff\xd9",
    "a tenth, and an end marker": lambda data: data[: len(data) // 10] + b"\xff\xd9",
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_jpeg_is_refused_by_name(jpeg, damage, capfd):
    path, data = jpeg
    path.write_bytes(DAMAGE[damage](data))
    with pytest.raises(UserError, match=r"a\.jpg cannot be read: damaged JPEG \(Corrupt JPEG data: "):
        read_image(path)
    assert capfd.readouterr().err == ""


def test_a_few_extra_bytes_in_a_jpeg_change_no_pixel(jpeg):
    path, data = jpeg
    expected = read_image(path)
    path.write_bytes(data[:-2] + bytes([1] * 5) + data[-2:])
    assert np.array_equal(read_image(path), expected)


def test_other_messages_on_stderr_are_passed_on(capfd):
    with collect_complaints() as complaints:
        os.write(2, b"something else\nPremature end of JPEG file\n")
    assert complaints == ["Premature end of JPEG file"]
    assert capfd.readouterr().err == "something else\n"


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_an_image_that_is_no_regular_file_is_refused(tmp_path, kind):
    path = tmp_path / "a.png"
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")
    for pair in ((path, None), (tmp_path / "none.png", path)):
        with pytest.raises(UserError, match=r"(a|none)\.png"):
            read_sample(CAMVID, *pair)


@pytest.mark.parametrize("content", [None, "pipe", b"\xff\xfe\x00", b"a\nb\na", b"../a", b"/a"])
def test_a_bad_list_file_is_refused(tmp_path, content):
    path = tmp_path / "train.txt"
    if content == "pipe":
        os.mkfifo(path)
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"train\.txt"):
        read_list(path)


LIST_TEXT = "s0\r\nordner/caf\u00e9 1.jpg\r\n"


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-16-le with a mark"]
)
def test_a_list_in_an_encoding_of_windows_is_read(tmp_path, encoding):
    text = "\ufeff" + LIST_TEXT if encoding.endswith("mark") else LIST_TEXT
    (tmp_path / "train.txt").write_bytes(text.encode(encoding.split()[0]))
    assert read_list(tmp_path / "train.txt") == ["s0", "ordner/caf\u00e9 1.jpg"]


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_names_of_mixed_scripts_in_utf_16_without_a_byte_order_mark_are_read(tmp_path, encoding):
    (tmp_path / "train.txt").write_bytes("\u0434\u043e\u043c_1.jpg\r\n".encode(encoding))
    assert read_list(tmp_path / "train.txt") == ["\u0434\u043e\u043c_1.jpg"]


def test_invisible_characters_in_a_list_are_removed(tmp_path):
    (tmp_path / "train.txt").write_bytes("\ufeffs0\r\n\ufeffs1\u200b\r\n\x1a".encode())
    assert read_list(tmp_path / "train.txt") == ["s0", "s1"]


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"s0\n\0\0\0\n", r"zero bytes, the first in line 2: .*; save it as UTF-8"),
        (b"s0\n\0\0\0", "zero bytes, the first in line 2"),
        (b"\0", "zero bytes, the first in line 1"),
        (b"a\0b\n", "zero bytes"),
        ("\u6b66\u6c49\u5e02 1\n".encode("utf-16-le"), "no text file"),
        ("s0\n\0\n".encode("utf-16"), "zero bytes, the first in line 2"),
        (b"\xff\xfes0\n", "no text file: .*truncated data"),
        ("caf\u00e9\n".encode("latin-1"), "no text file: .*; save it as UTF-8"),
    ],
)
def test_a_list_that_is_no_text_is_refused(tmp_path, data, problem):
    (tmp_path / "train.txt").write_bytes(data)
    prefix = "(no text file: )?" if problem.startswith("zero bytes") else ""
    with pytest.raises(UserError, match=rf"train\.txt is {prefix}{problem}"):
        read_list(tmp_path / "train.txt")


def test_yaml_in_an_encoding_of_windows_is_read(tmp_path):
    for encoding in ("utf-8-sig", "utf-16", "utf-16-le"):
        (tmp_path / "a.yaml").write_bytes("names: [caf\u00e9, b]\r\n".encode(encoding))
        assert files.read_yaml(tmp_path / "a.yaml") == {"names": ["caf\u00e9", "b"]}


def test_a_checkpoint_that_unpacks_to_many_more_bytes_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(10**7))
    with pytest.raises(UserError, match="unpacked it would be larger"):
        checkpoint.read(tmp_path / "bomb.pth")


@pytest.mark.parametrize(
    "data", [b"\x10" + bytes(7) + b"{}", b"", b"garbage", bytes(100), b"\x80\x02." * 9, b"PK\x03\x04"]
)
def test_garbage_is_refused_as_a_checkpoint(tmp_path, data):
    for name in ("x.safetensors", "x.pth"):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UserError, match=re.escape(str(tmp_path / name))):
            checkpoint.read(tmp_path / name)
