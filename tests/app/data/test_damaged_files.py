"""Files damaged at any place: each is either read or refused in one sentence."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.data.sources.parquet import parquet
from app.data.sources.recordio import rec
from app.data.sources.source import Source
from app.errors import WrongUse
from tests.app.data.test_parquet import png, save
from tests.app.data.test_recordio import insightface, write

# Extreme values of length fields.
WORDS = [0, 1, 2**29 - 1, 2**29, 2**31 - 1, 2**32 - 1]
damages = st.lists(
    st.tuples(
        st.floats(0, 1, exclude_max=True),
        st.one_of(
            st.sampled_from(WORDS).map(lambda word: ("word", word)),
            st.integers(0, 255).map(lambda byte: ("byte", byte)),
            st.integers(1, 64).map(lambda count: ("cut", count)),
            st.binary(min_size=1, max_size=16).map(lambda more: ("more", more)),
            st.just(("end", None)),
        ),
    ),
    min_size=1,
    max_size=6,
)


def damaged(data: bytes, changes: list[tuple[float, tuple[str, Any]]]) -> bytes:
    result = bytearray(data)
    for place, (kind, value) in changes:
        at = int(place * len(result))
        if kind == "word":
            at &= ~3
            result[at : at + 4] = value.to_bytes(4, "little")
        elif kind == "byte" and result:
            result[at] = value
        elif kind == "cut":
            del result[at : at + value]
        elif kind == "more":
            result[at:at] = value
        elif kind == "end":
            del result[at:]
    return bytes(result)


def read_or_refused(source: Callable[[], Source]) -> None:
    sentence = ""
    try:
        made = source()
        for start in range(0, made.count, 4):
            made.decode(made.read(start, min(start + 4, made.count)))
    except WrongUse as error:
        sentence = str(error)
    assert "\n" not in sentence
    assert len(sentence) < 1000


@pytest.fixture(scope="module")
def recordio(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("rec") / "train.rec"
    write(file, insightface([3, 2, 4]))
    file.with_name("property").write_text("3,112,112\n9\n")
    return file


@settings(max_examples=150, deadline=None)
@given(changes=damages, which=st.sampled_from(["train.rec", "train.rec", "train.idx", "property"]))
def test_a_record_file_its_index_or_its_property(recordio: Path, changes: Any, which: str) -> None:
    file = recordio.with_name(which)
    whole = file.read_bytes()
    file.write_bytes(damaged(whole, changes))
    try:
        read_or_refused(lambda: rec(recordio))
    finally:
        file.write_bytes(whole)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    columns = {"image": [png(number) for number in range(8)], "label": [0, 0, 1, 1, 2, 2, -1, 3]}
    return save(tmp_path_factory.mktemp("parquet") / "a.parquet", columns, 3)


@settings(max_examples=150, deadline=None)
@given(changes=damages)
def test_a_parquet_file(table: Path, changes: Any) -> None:
    whole = table.read_bytes()
    table.write_bytes(damaged(whole, changes))
    try:
        read_or_refused(lambda: parquet(table))
    finally:
        table.write_bytes(whole)
