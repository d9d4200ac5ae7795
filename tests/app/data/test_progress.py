"""An interrupt ends a conversion, also if the code of a library drops it."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator

import pytest

from app.data import progress

NAMES = ("SIGTERM", "SIGINT")


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    before = [(number, signal.getsignal(number)) for number in (getattr(signal, name) for name in NAMES)]
    progress.listen()
    yield
    progress.INTERRUPTED.clear()
    for number, handler in before:
        signal.signal(number, handler)


@pytest.mark.parametrize("name", NAMES)
def test_an_interrupt_that_was_dropped_is_raised_at_the_next_progress(name: str) -> None:
    with progress.Bar(total=4) as bar:
        bar.update(1)
        with contextlib.suppress(KeyboardInterrupt):
            signal.raise_signal(getattr(signal, name))
        with pytest.raises(KeyboardInterrupt):
            bar.update(1)


def test_a_new_command_starts_without_the_interrupt_of_the_last() -> None:
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGTERM)
    progress.listen()
    with progress.Bar(total=4) as bar:
        bar.update(1)
