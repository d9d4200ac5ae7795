"""Tests read a run's files while its processes write, replace and delete them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support.files import contents, events


def test_half_a_line_is_no_event_yet(tmp_path: Path) -> None:
    assert events(tmp_path) == []
    for written, seen in (('{"step": 1}\n', [1]), ('{"st', [1]), ('ep": 2}', [1]), ("\n", [1, 2])):
        with (tmp_path / "metrics.jsonl").open("a") as file:
            file.write(written)
        assert [event["step"] for event in events(tmp_path)] == seen


@pytest.mark.skipif(os.name == "nt", reason="needs symbolic links: run this on Linux or macOS")
def test_what_vanishes_while_it_is_looked_for_is_left_out(tmp_path: Path) -> None:
    for name in ("a/first", "b/second", "c/third"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(name)
    (tmp_path / "a" / "gone").symlink_to(tmp_path / "nothing")
    found = {}
    for path, content in contents(tmp_path):
        found[path.parent.name] = content.decode()
        for name in set("abc") - set(found):  # all that was not yielded yet
            for file in (tmp_path / name).iterdir():
                file.unlink()
            (tmp_path / name).rmdir()
    assert len(found) == 1
    assert set(found.values()) < {"a/first", "b/second", "c/third"}
