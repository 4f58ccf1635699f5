"""Test the download script with a local server that can misbehave."""

import hashlib
import re
import shlex
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import timm
import yaml

from datasets import DATASETS
from engine.settings import StudentConfig
from eval import EvalConfig
from models import ARCHITECTURES
from models.backbones import BACKBONES
from scripts.deploy import download_checkpoints as download
from scripts.deploy.manifest import find_problem, read_manifest
from utils.errors import UserError
from utils.options import parse_flags

CONTENT = b"PK\x03\x04" + bytes(range(256)) * 4096  # starts like a file that torch.save wrote
SHA = hashlib.sha256(CONTENT).hexdigest()
BLOB = hashlib.sha1(f"blob {len(CONTENT)}\0".encode() + CONTENT).hexdigest()

# addresses to which the server redirects
FILE_ADDRESS = "file:///etc/hostname"
OWN_ADDRESS = "/release/net%2Ba.pth"  # the address of the request itself
BAD_ADDRESS = "http://[net.pth"
REDIRECTS = (FILE_ADDRESS, OWN_ADDRESS, BAD_ADDRESS)


class Handler(BaseHTTPRequestHandler):
    """Answer each request with CONTENT, or with the fault that the test has set on the server."""

    def do_GET(self):
        self.server.requested_paths.append(self.path)
        fault = self.server.fault
        if fault == "missing":
            self.send_error(404)
            return
        if fault in REDIRECTS:
            self.send_response(302)
            self.send_header("Location", fault)
            self.end_headers()
            return
        body = b"<html>please log in</html>" if fault == "page" else CONTENT
        if fault == "stalled":
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[:100])
            self.wfile.flush()
            self.server.stall_may_end.wait(10)
            return
        if fault == "other bytes":
            body = body[: len(body) // 2] + b"x" + body[len(body) // 2 + 1 :]
        self.send_response(200)
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if fault == "cut" else body)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    """Run a local server without any proxy."""
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.fault = None
    server.requested_paths = []
    server.stall_may_end = threading.Event()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def entry(server):
    """Return the manifest entry of the file that the server offers."""
    url = f"http://127.0.0.1:{server.server_port}/release/net%2Ba.pth"
    return download.Entry("net", url, "fcn", "resnet18", "voc", 70.0, "val", f"sha256:{SHA[:8]}", len(CONTENT))


def test_a_server_that_stalls_does_not_block(server, entry, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "TIMEOUT", 0.2)
    server.fault = "stalled"
    try:
        with pytest.raises(UserError, match=r"interrupted .*timed out.*: run again"):
            download.fetch(entry, tmp_path)
    finally:
        server.stall_may_end.set()
        socket.setdefaulttimeout(None)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("digest", [f"sha256:{SHA[:8]}", f"sha256:{SHA}", f"git-blob:{BLOB}", None])
def test_a_download_is_verified_and_not_repeated(server, entry, tmp_path, digest):
    entry = entry._replace(hash=digest)
    path = download.fetch(entry, tmp_path / "new")
    assert path.name == "net+a.pth"
    assert path.read_bytes() == CONTENT
    assert download.fetch(entry, tmp_path / "new") == path
    assert len(server.requested_paths) == 1
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("other bytes", "not the published file .sha256"),
        ("cut", "interrupted .*got only .*: run again"),
        ("missing", "answers 404"),
        (FILE_ADDRESS, "(?i)redirect"),
        (OWN_ADDRESS, r"answers 302 .*infinite loop\.$"),
        (BAD_ADDRESS, "sends on to an address that is none"),
    ],
)
def test_a_failed_download_leaves_no_file(server, entry, tmp_path, fault, message):
    server.fault = fault
    with pytest.raises(UserError, match=message):
        download.fetch(entry, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_web_page_is_not_kept_as_a_checkpoint(server, entry, tmp_path):
    server.fault = "page"
    with pytest.raises(UserError, match=r"not the published file \(it holds no weights\)"):
        download.fetch(entry._replace(hash=None, size=None), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_half_a_file_without_a_published_hash_is_not_kept(server, entry, tmp_path):
    server.fault = "cut"
    with pytest.raises(UserError, match="interrupted"):
        download.fetch(entry._replace(hash=None, size=None), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_file_on_disk_that_differs_is_not_overwritten(entry, tmp_path):
    (tmp_path / entry.file).write_bytes(b"mine")
    with pytest.raises(UserError, match="delete it and fetch again"):
        download.fetch(entry, tmp_path)
    assert (tmp_path / entry.file).read_bytes() == b"mine"


def test_an_unreachable_server_or_proxy_is_reported(entry, tmp_path, monkeypatch):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/net.pth"
        with pytest.raises(UserError, match="cannot be reached; behind a proxy, set https_proxy"):
            download.fetch(entry._replace(url=url), tmp_path)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with pytest.raises(UserError, match=r"through the proxy http://127.0.0.1:9"):
        download.fetch(entry._replace(url="http://example.invalid/net.pth"), tmp_path)


def test_a_folder_that_cannot_be_written_is_named(entry, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file.* cannot be written"):
        download.fetch(entry, tmp_path / "file")


def test_a_file_that_comes_with_the_project_is_not_downloaded(entry, tmp_path):
    shipped = entry._replace(url="", hash=None, size=None)
    with pytest.raises(UserError, match=r"net\.safetensors is missing: it comes with the project"):
        download.fetch(shipped, tmp_path)
    (tmp_path / "net.safetensors").write_bytes(bytes(8) + b"{}")
    assert download.fetch(shipped, tmp_path) == tmp_path / "net.safetensors"


def run_download(*flags):
    """Run the download script."""
    download.main([*map(str, flags)])


def test_the_printed_command_evaluates_as_the_authors_did(server, entry, tmp_path, capsys):
    manifest = tmp_path / "manifest.yaml"
    resized = entry._replace(resize=[2048, 512])
    manifest.write_text(yaml.safe_dump([resized._asdict()]))
    run_download("--manifest", manifest, "--folder", tmp_path / "files", "--fetch", entry.name)
    _, _, command = capsys.readouterr().out.partition("python eval.py ")
    flags = parse_flags(EvalConfig, "", shlex.split(command, comments=True))
    assert flags["resize"] == (2048, 512)
    assert flags["dataset"] == entry.dataset
    run_download("--manifest", manifest, "--folder", tmp_path / "files", "--verify")
    assert f"{entry.file}: ok" in capsys.readouterr().out


def test_every_printed_command_can_be_parsed(tmp_path):
    for entry in read_manifest(Path(download.ROOT) / "checkpoints/manifest.yaml"):
        use = entry.describe_use(tmp_path / entry.file)
        words = shlex.split(use, comments=True)
        if entry.arch == "backbone":
            parse_flags(StudentConfig, "", words)
            continue
        assert words[:2] == ["python", "eval.py"]
        flags = parse_flags(EvalConfig, "", words[2:])
        assert flags.get("absent_as_zero", False) == (entry.dataset == "coco_stuff_164k_182")
        assert ("the published score is of the test server" in use) == (entry.protocol == "test server")


def test_files_are_listed_fetched_and_verified(server, entry, tmp_path, capsys):
    manifest = tmp_path / "manifest.yaml"
    manifest.write_text(yaml.safe_dump([entry._asdict()]))
    location_flags = ("--manifest", manifest, "--folder", tmp_path / "files")
    run_download(*location_flags)
    assert "net " in capsys.readouterr().out
    run_download(*location_flags, "--fetch", "n*", "--verify")
    assert "ok" in capsys.readouterr().out
    (tmp_path / "files" / entry.file).write_bytes(b"x" * len(CONTENT))
    with pytest.raises(UserError, match=r"1 files in .* not the published"):
        run_download(*location_flags, "--verify")
    with pytest.raises(UserError, match="did you mean 'net'"):
        run_download(*location_flags, "--fetch", "nett")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"url": "file:///etc/passwd"}, "no http address"),
        ({"url": "https://example.org/a/..%2Fb.pth"}, "no http address"),
        ({"hash": "md5:0"}, "unknown hash of net"),
        ({"hash": "sha256:"}, "net: 'sha256:' has not the 8 digits a hash needs"),
        ({"colour": "red"}, "colour"),
        ({"url": 3}, "net: url: 3"),
        ({"miou": "high"}, "net: miou: 'high'"),
        ({"hash": 5}, "net: hash: 5"),
        ({"url": "http://[x/a.pth"}, "manifest .*Invalid IPv6 URL"),
    ],
)
def test_a_bad_manifest_is_refused(entry, tmp_path, change, message):
    (tmp_path / "manifest.yaml").write_text(yaml.safe_dump([{**entry._asdict(), **change}]))
    with pytest.raises(UserError, match=message):
        download.read_manifest(tmp_path / "manifest.yaml")


def test_the_manifest_names_known_networks_and_valid_hashes():
    entries = download.read_manifest(Path(download.ROOT) / "checkpoints/manifest.yaml")
    for entry in entries:
        kind, _, digits = (entry.hash or "").partition(":")
        if not entry.url:
            assert find_problem(entry, Path(download.ROOT) / "checkpoints" / entry.file) is None
            continue
        assert entry.url.startswith("https://")
        assert kind != "sha256" or entry.file.endswith(f"-{digits}.pth")
        assert kind != "git-blob" or re.fullmatch("[0-9a-f]{40}", digits)
    assert {entry.arch for entry in entries} <= {*ARCHITECTURES, "backbone"}
    assert all(entry.backbone in BACKBONES or timm.is_model(entry.backbone) for entry in entries)
    assert {"voc"} <= {entry.dataset for entry in entries} & set(DATASETS)
