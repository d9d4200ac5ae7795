"""Fixtures of the shadow tests: faces to train on, and the signal handlers of before."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from app import prepare
from app.data.sources.source import Source
from benchmarks.gpu.small import BATCH
from tests.app.conftest import faces
from tests.app.shadow.cases import EACH, HELD_OUT, PEOPLE


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Labelled synthetic faces, enough for the longest epoch, in blocks of one batch."""
    images = faces(people=PEOPLE, each=EACH)
    labels = np.repeat(np.arange(PEOPLE, dtype=np.int32), EACH)
    source = Source(
        name="drawn",
        count=len(images),
        read=lambda start, stop: images[start:stop],
        labels=labels,
        held_out=HELD_OUT,
        block_rows=BATCH,
    )
    out = tmp_path_factory.mktemp("data") / "images.npy"
    prepare.prepare(source, out)
    return out


@pytest.fixture(autouse=True)
def signals_as_before() -> Iterator[None]:
    """Restore the handlers of Ctrl-C and SIGTERM, which app.train replaces, for the tests that follow."""
    before = {name: signal.getsignal(name) for name in (signal.SIGINT, signal.SIGTERM)}
    yield
    for name, handler in before.items():
        signal.signal(name, handler)
