"""A rank that watches its standard input must not hold up others that inherit it. Windows serialises a pipe's users."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from app.runtime.stop import await_end, peek_of_windows


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reading, writing = os.pipe()
    yield reading, writing
    os.close(reading)


def peek(descriptor: int) -> int | None:
    """PeekNamedPipe with the means of POSIX: a pipe that is closed can be read, and has nothing."""
    watched = select.poll()
    watched.register(descriptor, select.POLLIN)
    events = dict(watched.poll(0)).get(descriptor, 0)
    return 1 if events & select.POLLIN else None if events & select.POLLHUP else 0


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX: poll in the place of PeekNamedPipe")
def test_the_end_of_a_pipe_is_seen_without_a_read_that_waits(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    os.set_blocking(reading, False)  # a read that would wait raises BlockingIOError
    os.write(writing, b"a word that means nothing")
    over = threading.Event()

    def watch() -> None:
        await_end(reading, peek)
        over.set()

    watching = threading.Thread(target=watch)
    watching.start()
    assert not over.wait(0.5)
    os.close(writing)
    assert over.wait(10)
    watching.join()


@pytest.mark.skipif(sys.platform != "win32", reason="needs Windows")
def test_another_process_that_inherits_the_pipe_starts_meanwhile(pipe: tuple[int, int]) -> None:
    """It hangs at its start while a thread here is inside a read of the same pipe."""
    reading, writing = pipe
    watching = threading.Thread(target=await_end, args=(reading, peek_of_windows()))
    watching.start()
    done = subprocess.run([sys.executable, "-c", "pass"], stdin=reading, timeout=60, check=False)
    assert done.returncode == 0
    assert watching.is_alive()
    os.close(writing)
    watching.join(10)
    assert not watching.is_alive()


def test_only_windows_is_asked_at_intervals() -> None:
    assert (peek_of_windows() is not None) is (sys.platform == "win32")
