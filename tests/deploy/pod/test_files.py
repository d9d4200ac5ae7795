"""The copy that runs on the machine: from a file, from a web server with faults, from an fsspec address."""

from __future__ import annotations

import base64
import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deploy.pod.agent import files, sources
from tests.deploy.conftest import HOSTILE_NAMES, SOURCE

PIECE = 300_000
HEADER = b"the header"


@pytest.fixture(scope="module")
def data() -> bytes:
    return os.urandom(5 * PIECE + 77)


class Web(http.server.ThreadingHTTPServer):
    """Serve one file at every address, with range requests. Each fault applies to one request."""

    daemon_threads = True

    def __init__(self, data: bytes) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.data = data
        self.faults: list[str] = []
        self.asked: list[str] = []
        self.lock = threading.Lock()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/images.npy?signature=s3cr3t"


class Answer(http.server.BaseHTTPRequestHandler):
    server: Web

    def do_GET(self) -> None:
        wanted = self.headers["Range"]
        with self.server.lock:
            fault = self.server.faults.pop(0) if self.server.faults else ""
            self.server.asked.append(wanted)
        if fault.isdigit():
            self.send_response(int(fault))
            self.send_header("Retry-After", "0")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if fault == "close":
            self.close_connection = True
            self.connection.close()
            return
        first, last = map(int, wanted.removeprefix("bytes=").split("-"))
        if fault == "no ranges":
            first, last = 0, len(self.server.data)
        part = self.server.data[first : last + 1]
        self.send_response(200 if fault == "no ranges" else 206)
        self.send_header("Content-Length", str(len(part)))
        if fault != "no ranges":
            self.send_header("Content-Range", f"bytes {first}-{first + len(part) - 1}/{len(self.server.data)}")
        self.end_headers()
        self.wfile.write(part[: len(part) // 2 if fault == "half" else None])
        if fault == "half":
            self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def web(data: bytes, monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(sources, "DOWNLOAD_PAUSES_S", (0.01, 0.01, 0.01))
    with Web(data) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield server
        server.shutdown()


def order(source: str, part: Path, data: bytes, *, known: bool = True) -> dict[str, Any]:
    pieces = []
    for number, at in enumerate(range(0, len(data), PIECE)):
        block = data[at : at + PIECE]
        sha256 = hashlib.sha256(block).hexdigest() if known else None
        pieces.append({"name": f"block {number}", "offset": at, "bytes": len(block), "sha256": sha256})
    return {"source": source, "part": str(part), "header": base64.b64encode(HEADER).decode(), "pieces": pieces}


def copy(told: dict[str, Any]) -> list[str]:
    return files.copy(told, files.Progress(sum(piece["bytes"] for piece in told["pieces"])))


def test_a_file_arrives_as_a_command(data: bytes, tmp_path: Path) -> None:
    """The copy runs in its own process and prints progress and hashes as JSON lines. A second copy reads nothing."""
    folder = tmp_path / HOSTILE_NAMES[1]
    folder.mkdir()
    (folder / "images.npy").write_bytes(data)
    told = order(str(folder / "images.npy"), folder / "new" / "part", data)
    (folder / "order.json").write_text(json.dumps(told))
    argv = [sys.executable, "-m", "deploy.pod.agent.files", str(folder / "order.json")]
    done = subprocess.run(argv, cwd=SOURCE, capture_output=True, text=True, check=True)
    last = json.loads(done.stdout.splitlines()[-1])
    assert last == {"done_bytes": len(data), "all_bytes": len(data), "sha256": [p["sha256"] for p in told["pieces"]]}
    assert (folder / "new" / "part").read_bytes() == HEADER + data
    (folder / "images.npy").write_bytes(b"")
    assert subprocess.run(argv, cwd=SOURCE, capture_output=True, check=False).returncode == 0
    told["pieces"][1]["sha256"] = "0" * 64
    (folder / "order.json").write_text(json.dumps(told))
    done = subprocess.run(argv, cwd=SOURCE, capture_output=True, text=True, check=False)
    assert (done.returncode, "ends inside block 1" in done.stdout.splitlines()[-1]) == (1, True)
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("known", [True, False])
def test_an_address_is_read_by_ranges(web: Web, data: bytes, tmp_path: Path, known: bool) -> None:
    """Each piece is one request. A second copy requests nothing if the hashes are known, else everything again."""
    told = order(web.address, tmp_path / "part", data, known=known)
    hashes = copy(told)
    assert hashes == [hashlib.sha256(data[at : at + PIECE]).hexdigest() for at in range(0, len(data), PIECE)]
    assert (tmp_path / "part").read_bytes() == HEADER + data
    assert len(web.asked) == len(told["pieces"])
    assert copy(told) == hashes
    assert len(web.asked) == len(told["pieces"]) * (1 if known else 2)


@pytest.mark.parametrize("fault", ["half", "close", "503", "429"])
def test_a_range_that_breaks_off_goes_on(web: Web, data: bytes, tmp_path: Path, fault: str) -> None:
    """A broken range continues from its next byte. A closed connection or a busy server repeats the request."""
    web.faults = [fault] * 3
    copy(order(web.address, tmp_path / "part", data))
    assert (tmp_path / "part").read_bytes() == HEADER + data
    starts = [int(each.removeprefix("bytes=").split("-")[0]) for each in web.asked]
    assert any(start % PIECE for start in starts) == (fault == "half")
    assert len(starts) == 9


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("404", "answers 404"),
        ("403", "answers 403"),
        ("no ranges", "does not support range requests"),
        ("503", "cannot be read from byte"),
        ("close", "cannot be read from byte"),
    ],
)
def test_a_server_that_does_not_serve(web: Web, data: bytes, tmp_path: Path, fault: str, words: str) -> None:
    """The error is one sentence without the address's signature."""
    web.faults = [fault] * 1000
    with pytest.raises(sources.CopyFailed, match=words) as caught:
        copy(order(web.address, tmp_path / "part", data))
    assert "images.npy" in str(caught.value)
    assert "s3cr3t" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_wrong_and_short_data_are_told(web: Web, data: bytes, tmp_path: Path) -> None:
    """The error names the block."""
    told = order(web.address, tmp_path / "part", data)
    told["pieces"][2]["sha256"] = "0" * 64
    with pytest.raises(sources.CopyFailed, match=r"block 2 of .* is not what manifest\.json says"):
        copy(told)
    told = order(web.address, tmp_path / "part", data)
    web.data = data[: 3 * PIECE + 5]
    told["pieces"] = told["pieces"][3:4]
    with pytest.raises(sources.CopyFailed, match="ends inside block 3"):
        copy(told)


def test_other_addresses_go_through_fsspec(data: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If fsspec is missing or does not know the scheme, the error says what to install."""
    pytest.importorskip("fsspec", reason="needs fsspec: it comes with torch")
    (tmp_path / "images.npy").write_bytes(data)
    copy(order(f"file://{tmp_path}/images.npy", tmp_path / "part", data))
    assert (tmp_path / "part").read_bytes() == HEADER + data
    with pytest.raises(sources.CopyFailed, match=r"cannot be read"):
        copy(order(f"file://{tmp_path}/none.npy", tmp_path / "part2", data))
    with pytest.raises(sources.CopyFailed, match=r"nonsense:// needs the Python package fsspec"):
        sources.open_source("nonsense://bucket/images.npy")
    monkeypatch.setitem(sys.modules, "fsspec.core", None)
    with pytest.raises(sources.CopyFailed, match=r"s3:// needs the Python package fsspec"):
        sources.open_source("s3://bucket/images.npy")


def test_no_room_is_said_before_the_first_byte(data: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "ftruncate", full)
    (tmp_path / "images.npy").write_bytes(data)
    with pytest.raises(sources.CopyFailed, match=r"has no room for 0\.00 GiB"):
        copy(order(str(tmp_path / "images.npy"), tmp_path / "part", data))
