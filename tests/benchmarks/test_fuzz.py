"""Read damaged data files of every kind, for four seconds each; `python benchmarks/fuzz.py` runs for minutes."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import fuzz


@pytest.mark.slow
@pytest.mark.parametrize("kind", fuzz.KINDS)
def test_a_damaged_file_is_read_or_refused(kind: str, tmp_path: Path) -> None:
    tried, failures = fuzz.fuzz(kind, 4, 7, tmp_path)
    assert tried
    assert not failures, failures[0]


def test_a_reader_that_crashes_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception that is not an error message counts as a failure, and its files are kept."""

    def read(at: Path) -> None:
        if (at / "a").read_bytes() != b"whole":
            raise KeyError("a")

    monkeypatch.setitem(fuzz.KINDS, "it", fuzz.Kind(lambda at: (at / "a").write_bytes(b"whole"), read))
    tried, failures = fuzz.fuzz("it", 0.5, 0, tmp_path)
    assert tried == len(failures) > 0
    assert "KeyError" in failures[0]
    assert list(tmp_path.glob("it-*/a"))
