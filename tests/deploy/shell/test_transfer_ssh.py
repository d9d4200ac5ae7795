"""Copies to and from a machine by SSH run in parallel, survive cuts, and move only what is missing."""

from __future__ import annotations

import hashlib
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from deploy.border import chosen
from deploy.errors import StepFailed
from deploy.shell import lanes, link, transfer
from deploy.shell.lanes import Lanes, count_for
from deploy.shell.ranges import Piece, WrongPiece
from deploy.shell.ssh import SshShell
from deploy.shell.transfer import send_pieces
from tests.deploy.conftest import HOSTILE_NAMES
from tests.deploy.support.proxy import Proxy, proxy
from tests.deploy.support.servers import SSHD, Server, asyncssh_server, openssh

MIB = 1 << 20
SIZE = 24 * MIB + 12345


# By default one of the two servers; both with the slow tests.
SECOND = pytest.param("asyncssh", marks=pytest.mark.slow if SSHD else ())


@pytest.fixture(scope="module", params=["openssh", SECOND])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    if request.param == "openssh" and SSHD is None:
        pytest.skip("needs an SSH server: apt-get install openssh-server")
    make: Callable[..., Any] = openssh if request.param == "openssh" else asyncssh_server
    with make(tmp_path_factory.mktemp(request.param)) as made:
        yield made


@pytest.fixture
def line(server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    monkeypatch.setattr(link, "SILENCE_S", 2.5)
    with proxy(server.port) as made:
        yield made


@pytest.fixture
def shell(server: Server, line: Proxy, tmp_path: Path) -> Iterator[SshShell]:
    made = SshShell(server.machine(port=line.port), tmp_path / "notes")
    made.clock()
    yield made
    made.close()


@pytest.fixture(scope="module")
def data() -> bytes:
    return os.urandom(SIZE)


@pytest.fixture
def here(tmp_path: Path, data: bytes) -> Path:
    path = tmp_path / HOSTILE_NAMES[1] / "a b.pt"
    path.parent.mkdir()
    path.write_bytes(data)
    return path


class Seen:
    """A progress function that records its calls, and calls `at_half` once when half is done."""

    def __init__(self, at_half: Callable[[], Any] = lambda: None) -> None:
        self.told: list[tuple[int, int]] = []
        self.at_half: Callable[[], Any] | None = at_half

    def __call__(self, done: int, total: int) -> None:
        self.told.append((done, total))
        if self.at_half and 2 * done >= total:
            act, self.at_half = self.at_half, None
            act()


def fetch(shell: SshShell, source: Path, destination: Path, **options: Any) -> None:
    transfer.fetch(shell, source, chosen(destination), **options)


def test_there_and_back(shell: SshShell, line: Proxy, here: Path, data: bytes, tmp_path: Path) -> None:
    """Files arrive whole, under the final name only, with growing progress. A second copy moves no data."""
    there, back = tmp_path / "far away" / "ü.pt", tmp_path / "back" / "a.pt"
    sha256 = hashlib.sha256(data).hexdigest()
    up, down = Seen(), Seen()
    transfer.push(shell, here, there, progress=up)
    assert there.read_bytes() == data
    fetch(shell, there, back, sha256=sha256, progress=down)
    assert back.read_bytes() == data
    assert [path.name for folder in (there, back) for path in folder.parent.iterdir()] == ["ü.pt", "a.pt"]
    for seen in (up, down):
        assert seen.told == sorted(seen.told)
        assert seen.told[-1] == (SIZE, SIZE)
    before = line.counters()
    transfer.push(shell, here, there)
    transfer.push(shell, here, there, sha256=sha256)
    fetch(shell, there, back, sha256=sha256)
    after = line.counters()
    assert sum(after[way] - before[way] for way in ("up", "down")) < 20_000
    assert after["connections"] == before["connections"]


def test_small_files_take_no_connection_of_their_own(shell: SshShell, line: Proxy, tmp_path: Path) -> None:
    """Small files, even empty ones, use the open connection. A file with a wrong SHA-256 is refused."""
    before = line.counters()["connections"]
    for size in (0, 1, 70_000, transfer.SMALL_BYTES, transfer.SMALL_BYTES + 1):
        content = os.urandom(size)
        (tmp_path / "small").write_bytes(content)
        transfer.push(shell, tmp_path / "small", tmp_path / "there")
        fetch(shell, tmp_path / "there", tmp_path / "back")
        assert (tmp_path / "back").read_bytes() == content
    assert line.counters()["connections"] == before
    for copy in (
        lambda: transfer.push(shell, tmp_path / "small", tmp_path / "there", sha256="0" * 64),
        lambda: fetch(shell, tmp_path / "there", tmp_path / "new", sha256="0" * 64),
    ):
        with pytest.raises(StepFailed, match="does not match its SHA-256"):
            copy()
    assert not (tmp_path / "new").exists()


class Stop(Exception):
    """Stands for a laptop that is switched off."""


def stop() -> None:
    raise Stop


@pytest.mark.parametrize("way", ["up", "down"])
def test_only_the_missing_half_moves_again(
    shell: SshShell, line: Proxy, here: Path, data: bytes, tmp_path: Path, way: str
) -> None:
    """After an interruption at half, the next copy moves only the other half, as the proxy counts it."""
    place = tmp_path / "place.pt"
    copy: Callable[..., None] = transfer.push if way == "up" else fetch
    with pytest.raises(Stop):
        copy(shell, here, place, progress=Seen(stop))
    assert not place.exists()
    before, seen = line.counters()[way], Seen()
    copy(shell, here, place, progress=seen)
    moved = line.counters()[way] - before
    assert place.read_bytes() == data
    assert moved < 0.55 * SIZE + 500_000  # includes the source of the agents
    assert seen.told[-1] == (SIZE, SIZE)
    assert [path.name for path in tmp_path.iterdir() if "part" in path.name] == []


@pytest.mark.parametrize("way", ["up", "down"])
@pytest.mark.parametrize("fault", ["drop", pytest.param("cut", marks=pytest.mark.slow)])
def test_a_copy_goes_on_over_a_cut(
    shell: SshShell, line: Proxy, here: Path, data: bytes, tmp_path: Path, way: str, fault: str
) -> None:
    """The copy continues after all connections break, and after no data passes for longer than SILENCE_S."""
    place = tmp_path / "place.pt"
    copy: Callable[..., None] = transfer.push if way == "up" else fetch
    restored = threading.Timer(3.5, line.restore)

    def break_it() -> None:
        getattr(line, fault)()
        if fault == "cut":
            restored.start()

    copy(shell, here, place, progress=Seen(break_it))
    if fault == "cut":
        restored.join()
    assert place.read_bytes() == data


def test_a_spoiled_part_does_not_survive(shell: SshShell, here: Path, data: bytes, tmp_path: Path) -> None:
    """The ranges of an existing part are compared, whatever it contains, and wrong ranges are moved again."""
    sha256 = hashlib.sha256(data).hexdigest()
    part = tmp_path / f"place.pt.{sha256[:8]}.part"
    for junk in (b"x" * (SIZE + 5), data[: SIZE // 2]):
        for copy in (fetch, transfer.push):
            part.write_bytes(junk)
            copy(shell, here, tmp_path / "place.pt", sha256=sha256)  # type: ignore[operator]
            assert (tmp_path / "place.pt").read_bytes() == data
            (tmp_path / "place.pt").unlink()


def test_wrong_bytes_never_arrive(shell: SshShell, here: Path, tmp_path: Path) -> None:
    """The old file stays, and no part is left."""
    place = tmp_path / "place.pt"
    place.write_bytes(b"old")
    for copy in (fetch, transfer.push):
        with pytest.raises(StepFailed, match="does not match its SHA-256"):
            copy(shell, here, place, sha256="0" * 64)  # type: ignore[operator]
        assert place.read_bytes() == b"old"
    assert not list(tmp_path.glob("*.part"))


def test_an_error_waits_for_the_answers_to_what_was_sent(server: Server, tmp_path: Path) -> None:
    """Else the machine could write to a part, and so create it again, after the caller has removed it."""
    part, sent = tmp_path / "a.part", list[int]()

    def chunks() -> Iterator[int]:
        yield from range(8)
        raise WrongPiece("a piece")

    def request(number: int) -> tuple[str, dict[str, Any]]:
        sent.append(number)
        return "write_at", {"path": str(part), "offset": number * MIB, "data": b"x" * MIB}

    with proxy(server.port, delay_s=0.2) as slow:
        shell = SshShell(server.machine(port=slow.port), tmp_path / "notes")
        shell.truncate(part, 8 * MIB)
        with Lanes[int](shell, 2) as copy:
            with pytest.raises(WrongPiece):
                copy.carry(chunks(), request, lambda *_: None, lambda: None)
            written = part.read_bytes()
        shell.close()
    assert sorted(sent) == [number for number in range(8) if written[number * MIB : (number + 1) * MIB] == b"x" * MIB]
    assert sent


def pieces_of(data: bytes, size: int, *, known: bool) -> list[Piece]:
    """Make pieces of `data`. In the part they are in reverse order, after its first 100 bytes."""
    offsets = range(0, len(data), size)
    return [
        Piece(
            f"block {number}", at, len(data[at : at + size]), 100 + len(data) - at - len(data[at : at + size]),
            hashlib.sha256(data[at : at + size]).hexdigest() if known else None,
        )
        for number, at in enumerate(offsets)
    ]  # fmt: skip


@pytest.mark.parametrize("known", [True, False])
def test_pieces_find_their_places(
    shell: SshShell, line: Proxy, here: Path, data: bytes, tmp_path: Path, known: bool
) -> None:
    """Pieces, and parts of pieces, that the machine has are not sent again."""
    part = tmp_path / "far" / "images.npy.part"
    pieces = pieces_of(data, 5 * MIB, known=known)
    shell.truncate(part, 100 + SIZE)
    with pytest.raises(Stop):
        send_pieces(shell, here, part, pieces, Seen(stop))
    before = line.counters()["up"]
    hashes = send_pieces(shell, here, part, pieces)
    assert line.counters()["up"] - before < 0.55 * SIZE + 500_000
    assert hashes == [hashlib.sha256(data[p.offset : p.offset + p.bytes]).hexdigest() for p in pieces]
    got = part.read_bytes()
    assert all(got[p.place : p.place + p.bytes] == data[p.offset : p.offset + p.bytes] for p in pieces)
    before = line.counters()["up"]
    assert send_pieces(shell, here, part, pieces) == hashes
    assert line.counters()["up"] - before < 500_000


def test_a_piece_that_is_not_what_the_manifest_says(shell: SshShell, here: Path, data: bytes, tmp_path: Path) -> None:
    """The error has the words that the machine uses for its own files. A file that is too short is an error, too."""
    pieces = pieces_of(data, 5 * MIB, known=True)
    wrong = [*pieces[:2], Piece("block 2", 10 * MIB + 1, pieces[2].bytes, pieces[2].place, pieces[2].sha256)]
    part = tmp_path / "part"
    shell.truncate(part, 100 + SIZE)
    with pytest.raises(StepFailed, match=r"block 2 of .* is not what manifest\.json says"):
        send_pieces(shell, here, part, wrong)
    short = [Piece("block 9", SIZE - 10, 20, 100)]
    with pytest.raises(StepFailed, match="ends inside block 9"):
        send_pieces(shell, here, part, short)


@pytest.mark.parametrize("ways", [[], ["native_link"], ["native_link", "separate_link"]])
def test_without_the_systems_ssh(
    shell: SshShell, here: Path, data: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ways: list[str]
) -> None:
    """Fabric's connections carry the copy. If the machine refuses them, channels of the open connection do."""
    if not ways and shutil.which("ssh") is None:
        pytest.skip("needs an SSH client: apt-get install openssh-client")
    monkeypatch.setattr(lanes.Lanes, "_help", lambda *_: None)

    def no_ssh() -> None:
        raise FileNotFoundError("ssh")

    def refused() -> None:
        raise link.LinkLost("refused")

    for way in ways:
        monkeypatch.setattr(shell, way, no_ssh if way == "native_link" else refused)
    transfer.push(shell, here, tmp_path / "there")
    assert (tmp_path / "there").read_bytes() == data


def test_a_place_that_cannot_be(shell: SshShell, here: Path) -> None:
    """The machine's own error is raised before the first byte is sent."""
    with pytest.raises(OSError, match=r"Not a directory|File exists"):
        transfer.push(shell, here, here / "below a file")


def test_how_many_lanes() -> None:
    """The lanes' windows fill a fast line. A copy that ends before a connection is open gets no further lane."""
    assert count_for(1 * MIB, 0.1) == 1
    assert count_for(8 * MIB, 0.3) == 1
    assert count_for(256 * MIB, 0.0001) == lanes.FEWEST_LANES
    assert count_for(256 * MIB, 0.1) == 8
    assert count_for(20 * MIB, 0.1) == 3
    assert count_for(1 << 40, 1.0) == lanes.MOST_LANES


def test_lanes_leave_nothing_behind(shell: SshShell, line: Proxy, here: Path, tmp_path: Path) -> None:
    """No threads or connections remain, whether the copy ended or was interrupted."""
    before = set(threading.enumerate())
    with pytest.raises(Stop):
        transfer.push(shell, here, tmp_path / "there", progress=Seen(stop))
    transfer.push(shell, here, tmp_path / "there")
    from tests.deploy.conftest import wait_until

    wait_until(lambda: line.counters()["open"] == 1)
    wait_until(lambda: not [each for each in threading.enumerate() if each not in before])


def test_what_breaks_in_a_lane_is_raised(shell: SshShell, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of the chunks, of the answers or of the machine is raised at once, and the connection stays."""
    monkeypatch.setattr(lanes, "GOODBYE_S", link.ANSWER_S)
    before, started = shell.link(), time.monotonic()

    def chunks(fail: bool) -> Iterator[int]:
        yield from range(20)
        if fail:
            raise StepFailed("the source broke")

    def took(number: int, _: object) -> None:
        if number == 13:
            raise StepFailed("no room here")

    def request(number: int) -> tuple[str, dict[str, Any]]:
        return "read", {"path": "/no/such/file" if number == 7 else __file__}

    def clock(_: int) -> tuple[str, dict[str, Any]]:
        return "clock", {}

    for fail, ask, take, words in (
        (True, clock, lambda *_: None, "the source broke"),
        (False, clock, took, "no room here"),
        (False, request, lambda *_: None, "No such file"),
    ):
        for count in (1, 2):
            with pytest.raises((StepFailed, OSError), match=words), Lanes[int](shell, count) as some:
                some.carry(chunks(fail), ask, take, lambda: None)
    assert time.monotonic() - started < link.ANSWER_S
    assert shell.link() is before
