"""Addresses of clouds: what is missing or cannot be read is one sentence, before anything is rented."""

from __future__ import annotations

import http.server
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.errors import WrongUse
from deploy.runs import session
from deploy.specs.request import parse_request
from deploy.steps.resolve import check
from deploy.workspace.sources import UrlFiles

PROJECT = Path(__file__).parents[3]
BODY = bytes(range(256)) * 40


class Bucket(http.server.BaseHTTPRequestHandler):
    """One object of a bucket, as S3 serves it: its size by HEAD, ranges by GET. Only signed requests are answered."""

    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer(BODY if self.path.partition("?")[0] == "/bucket/x.npy" else None)

    def do_GET(self) -> None:
        first, _, last = self.headers.get("Range", f"bytes=0-{len(BODY) - 1}")[6:].partition("-")
        self._answer(BODY[int(first) : int(last) + 1])

    def _answer(self, content: bytes | None) -> None:
        signed = self.headers.get("Authorization", "").startswith("AWS4-HMAC-SHA256 Credential=AKIATEST/")
        self.send_response((206 if self.command == "GET" else 200) if content and signed else 404)
        self.send_header("Content-Length", str(len(content or b"")))
        self.send_header("ETag", '"1"')
        self.send_header("Last-Modified", "Sun, 29 Nov 2026 00:00:00 GMT")
        self.end_headers()
        self.wfile.write(content or b"" if self.command == "GET" else b"")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Addresses of S3 lead to a server here."""
    pytest.importorskip("s3fs", reason="needs s3fs: python bootstrap.py pytest installs it")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Bucket) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIATEST")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "planted")
        yield
        server.shutdown()


@pytest.mark.usefixtures("s3")
def test_the_extra_s3_reads_sizes_and_ranges() -> None:
    files = UrlFiles()
    assert files.size("s3://bucket/x.npy") == len(BODY)
    assert files.read("s3://bucket/x.npy", 300, 7) == BODY[300:307]


@pytest.mark.parametrize("missing", ["s3fs", "fsspec"])
def test_an_address_of_s3_without_its_package_names_the_command_that_installs_it(
    missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = pytest.importorskip("fsspec.registry", reason="needs fsspec: it comes with torch")
    monkeypatch.delitem(registry._registry, "s3", raising=False)  # another test may have used s3fs in this process
    monkeypatch.setitem(sys.modules, missing, None)
    for ask in (UrlFiles().size, UrlFiles().read):
        with pytest.raises(WrongUse, match=r"^--data s3://bucket/x\.npy needs the package s3fs.*bootstrap\.py invoke"):
            ask("s3://bucket/x.npy")


def test_an_address_of_an_unknown_kind_is_named() -> None:
    pytest.importorskip("fsspec", reason="needs fsspec: it comes with torch")
    with pytest.raises(WrongUse, match=r"nonsense:// addresses: give an https:// or s3:// address"):
        UrlFiles().size("nonsense://bucket/x.npy")


def test_an_address_that_answers_with_an_error_of_its_own_is_one_sentence() -> None:
    """Each cloud has errors of its own: here, of no base class that Python's files raise."""
    fsspec = pytest.importorskip("fsspec", reason="needs fsspec: it comes with torch")

    class Cloud(fsspec.AbstractFileSystem):  # type: ignore[name-defined, misc]
        protocol = "cloud"

        def info(self, path: str, **_: object) -> dict[str, object]:
            raise RuntimeError(f"no\ncredentials for {path}")

    fsspec.register_implementation("cloud", Cloud, clobber=True)
    for ask in (UrlFiles().size, UrlFiles().read):
        with pytest.raises(WrongUse, match=r"cannot be read from here \(no credentials for .*AWS_ACCESS_KEY_ID"):
            ask("cloud://bucket/x.npy?sig=SECRET")


def test_wandb_without_its_package_names_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """On this computer only: other machines have it."""
    monkeypatch.setitem(sys.modules, "wandb", None)
    with session.target(PROJECT, "local") as at, pytest.raises(WrongUse, match=r"invoke train --set track=wandb` inst"):
        check(at, parse_request(target="local", overrides=("track=wandb",)))
