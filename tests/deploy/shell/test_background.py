"""Work in a thread: its result, its error, and a limit."""

from __future__ import annotations

import threading
import time

import pytest

from deploy.shell.background import Work


def test_the_result_is_that_of_the_function() -> None:
    assert Work(lambda: 3).result() == 3
    assert Work(lambda: None).result(30) is None


def test_an_error_is_raised_where_the_result_is_asked_for() -> None:
    def fails() -> None:
        raise ValueError("no")

    work = Work(fails)
    for _ in range(2):
        with pytest.raises(ValueError, match="no"):
            work.result()


def test_after_the_limit_the_work_goes_on() -> None:
    go = threading.Event()
    work = Work(lambda: go.wait(30))
    began = time.monotonic()
    with pytest.raises(TimeoutError):
        work.result(0.05)
    assert time.monotonic() - began >= 0.05
    go.set()
    assert work.result() is True
