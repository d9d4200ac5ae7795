"""The note of a run: one line of text, safe to show."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy.errors import WrongUse
from deploy.runs import notes
from tests.deploy.support.rented import Rented


def test_a_note_is_one_line_and_is_replaced_or_removed(tmp_path: Path) -> None:
    book = Rented(tmp_path).settings.runs
    Rented(tmp_path).record()
    assert notes.read(book, "a") is None
    assert notes.write(book, "a", " the best \n so far\x1b ") == notes.read(book, "a")
    assert (notes.read(book, "a") or "").startswith("the best so far")
    assert "\x1b" not in str(notes.read(book, "a"))
    for _ in range(2):
        assert notes.write(book, "a", " \n") is None
        assert notes.read(book, "a") is None
        assert not (book / "a" / "note.txt").exists()


def test_the_length_of_a_note_is_limited(tmp_path: Path) -> None:
    book = Rented(tmp_path).settings.runs
    Rented(tmp_path).record()
    assert notes.write(book, "a", "é" * 200) == "é" * 200
    assert notes.read(book, "a") == "é" * 200
    with pytest.raises(WrongUse, match="the note has 201 characters: give at most 200"):
        notes.write(book, "a", "é" * 201)
    (book / "a" / "note.txt").write_text("x" * 10_000, encoding="utf-8")  # by hand
    assert len(str(notes.read(book, "a"))) <= 201
    (book / "a" / "note.txt").write_text(" \n", encoding="utf-8")
    assert notes.read(book, "a") is None
    (book / "a" / "note.txt").write_bytes(b"odd \xff")
    assert notes.read(book, "a") == "odd \ufffd"
