"""Several questions to a machine in one round trip."""

from __future__ import annotations

from pathlib import Path, PurePath
from typing import Any

import pytest

from deploy.errors import BadAnswer
from deploy.pod.base.folder import RunFolder
from deploy.runs import job
from deploy.shell import LocalShell
from deploy.shell.base import Request


class Counting(LocalShell):
    """Counts round trips: of `attempts`, and of single calls."""

    def __init__(self) -> None:
        self.trips = 0
        self.is_inside = False

    def attempts(self, requests: list[Request]) -> list[Any]:  # type: ignore[override]
        self.trips += 1
        self.is_inside = True
        try:
            return super().attempts(requests)
        finally:
            self.is_inside = False

    def call(self, verb: str, *, again: bool = True, **arguments: Any) -> Any:
        self.trips += not self.is_inside
        return super().call(verb, again=again, **arguments)


def test_files_are_read_ahead_in_one_round_trip(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abcdef")
    shell = Counting()
    files = shell.ahead({tmp_path / "a": 3, tmp_path / "gone": 3})
    assert (files.size(tmp_path / "a"), files.size(tmp_path / "gone")) == (6, None)
    assert files.read(tmp_path / "a", 0, 3) == b"abc"
    with pytest.raises(FileNotFoundError):
        files.read(tmp_path / "gone", 0, 3)
    assert shell.trips == 1
    assert files.read(tmp_path / "a", 2, 3) == b"cde"  # not read ahead
    assert files.read(tmp_path / "a") == b"abcdef"
    assert shell.trips == 3


def test_the_first_error_of_several_calls_is_raised_after_all_were_carried_out(tmp_path: Path) -> None:
    lost = {"path": str(tmp_path / "lost" / "file"), "offset": 0, "limit": 1}
    write = {"path": str(tmp_path / "new"), "data": b"x", "private": False}
    with pytest.raises(FileNotFoundError):
        LocalShell().calls([("read", lost), ("write", write)])
    assert (tmp_path / "new").read_bytes() == b"x"


def test_sizes_and_room_are_one_round_trip_each(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    shell = Counting()
    assert shell.sizes(tmp_path / "a", tmp_path / "gone") == [3, None]
    room = shell.room(tmp_path, tmp_path / "a", tmp_path / "gone")
    assert (room.own_bytes, room.free_bytes > 0) == (3, True)
    assert shell.trips == 2


def test_a_look_at_a_job_is_one_round_trip(tmp_path: Path) -> None:
    shell = Counting()
    assert job.look(shell, RunFolder(tmp_path / "run")) is None
    assert shell.trips == 1


@pytest.mark.parametrize("told", [["x"], [-1], [True], [1 << 60], [{}]])
def test_answers_to_several_questions_are_validated(told: list[Any]) -> None:
    class Liar(LocalShell):
        def attempts(self, requests: list[Request]) -> list[Any]:  # type: ignore[override]
            return told * len(requests)

    with pytest.raises(BadAnswer):
        Liar().sizes(PurePath("/x"))
    with pytest.raises(BadAnswer):
        Liar().room(PurePath("/x"), PurePath("/y"))
    with pytest.raises(BadAnswer):
        Liar().ahead({PurePath("/x"): 3}).size(PurePath("/x"))
    with pytest.raises(BadAnswer):
        Liar().ahead({PurePath("/x"): 3}).read(PurePath("/x"), 0, 3)
