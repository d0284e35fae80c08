"""H3: the one thing that is ever downloaded, ImageNet weights, is taken over HTTP alone and with its SHA-256 alone.

No archive is unpacked anywhere, so there is nothing to slip out of one; the last test keeps it so.
"""

import ast
import hashlib
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from detector.config import BackboneConfig
from detector.errors import CheckpointError
from detector.models import backbones
from detector.models.backbones import build_backbone, load_imagenet_weights

ROOT = Path(__file__).resolve().parents[2]
Reply = Callable[[BaseHTTPRequestHandler], None]


class Server:
    """A web server on the loopback device whose every reply is `reply`'s."""

    def __init__(self) -> None:
        self.reply: Reply = lambda request: request.send_error(404)
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.reply(self)

            def do_HEAD(self) -> None:
                outer.reply(self)

            def log_message(self, *_: object) -> None:
                """Says nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server.server_port}/{path}"


def sends(content: bytes, *, stated_length: int | None = None) -> Reply:
    def reply(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.send_header("Content-Length", str(stated_length or len(content)))
        request.end_headers()
        if request.command == "GET":
            request.wfile.write(content)

    return reply


def redirects(target: str) -> Reply:
    def reply(request: BaseHTTPRequestHandler) -> None:
        request.send_response(302)
        request.send_header("Location", target)
        request.end_headers()

    return reply


def says_nonsense(request: BaseHTTPRequestHandler) -> None:
    request.wfile.write(b"220 mail.example ESMTP\r\n")


@pytest.fixture
def server() -> Iterator[Server]:
    started = Server()
    yield started
    started.server.shutdown()
    started.server.server_close()
    started.thread.join()


@pytest.fixture
def weights(tmp_path: Path) -> bytes:
    """A sound file of ResNet-18's weights."""
    torch.save(build_backbone(BackboneConfig(name="resnet18")).state_dict(), tmp_path / "weights.pth")
    return (tmp_path / "weights.pth").read_bytes()


@pytest.fixture
def download(server: Server, weights: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Path]:
    """Loads weights as a run does, from the server and under the sum of the sound file; gives their place."""
    name = f"resnet18-{hashlib.sha256(weights).hexdigest()[:8]}.pth"
    entry = SimpleNamespace(IMAGENET1K_V1=SimpleNamespace(url=server.url(name)))
    monkeypatch.setattr(backbones, "get_model_weights", lambda _: entry)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setenv("no_proxy", "*")

    def load() -> Path:
        load_imagenet_weights(build_backbone(BackboneConfig(name="resnet18")), "resnet18", None)
        return tmp_path / "hub" / "checkpoints" / name

    return load


def test_H3_sound_weights_are_loaded(server: Server, weights: bytes, download: Callable[[], Path]) -> None:
    server.reply = sends(weights)
    assert download().read_bytes() == weights


@pytest.mark.parametrize("changed", ["a bit flipped", "cut off", "cut off, length as of the whole", "another file"])
def test_H3_another_sum_is_refused_and_nothing_kept(
    server: Server, weights: bytes, download: Callable[[], Path], changed: str, tmp_path: Path
) -> None:
    flipped = bytearray(weights)
    flipped[len(flipped) // 2] ^= 1
    server.reply = {
        "a bit flipped": sends(bytes(flipped)),
        "cut off": sends(weights[:-9]),
        "cut off, length as of the whole": sends(weights[:-9], stated_length=len(weights)),
        "another file": sends(b"x" * 1000),
    }[changed]
    with pytest.raises(CheckpointError, match=r"ImageNet weights cannot be downloaded from http://127\.0\.0\.1.*hash"):
        download()
    assert [path for path in (tmp_path / "hub").rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("target", ["file:///etc/passwd", "file://localhost/etc/passwd", "data:text/plain,x", "jar:x"])
def test_H3_a_redirection_out_of_the_network_is_refused(
    server: Server, download: Callable[[], Path], target: str, tmp_path: Path
) -> None:
    server.reply = redirects(target)
    with pytest.raises(CheckpointError, match="ImageNet weights cannot be downloaded"):
        download()
    assert [path for path in (tmp_path / "hub").rglob("*") if path.is_file()] == []


def test_H3_a_file_redirected_to_needs_the_sum_too(
    server: Server, weights: bytes, download: Callable[[], Path]
) -> None:
    def elsewhere(content: bytes) -> Reply:
        return lambda request: (sends(content) if request.path == "/other" else redirects(server.url("other")))(request)

    server.reply = elsewhere(b"x" * 1000)
    with pytest.raises(CheckpointError, match="hash"):
        download()
    server.reply = elsewhere(weights)
    assert download().read_bytes() == weights


@pytest.mark.parametrize("reply", [lambda request: request.send_error(503), says_nonsense, redirects("/")])
def test_H3_a_server_that_is_none_is_one_error(server: Server, download: Callable[[], Path], reply: Reply) -> None:
    server.reply = reply
    with pytest.raises(CheckpointError, match=r"cannot be downloaded .*--weights-file"):
        download()


def test_H3_nothing_unpacks_archives() -> None:
    """NumPy's own archives (`detector.data.cache`) are read member by member, and never written out."""
    unpackers = {"tarfile", "ZipFile", "unpack_archive", "extractall", "extract"}
    files = [path for folder in ("detector", "platform", "experiments") for path in (ROOT / folder).rglob("*.py")]
    assert len(files) > 50
    found = []
    for path in files:
        for node in ast.walk(ast.parse(path.read_text())):
            names = {getattr(node, "attr", None), getattr(node, "module", None)}
            names |= {alias.name for alias in getattr(node, "names", []) if isinstance(alias, ast.alias)}
            found += [f"{path}: {name}" for name in names & unpackers]
    assert found == []
