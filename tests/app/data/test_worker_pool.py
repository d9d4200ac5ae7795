"""Worker processes: an interrupt at any moment is an interrupt, and not an error of the pool."""

from __future__ import annotations

import threading

import pytest

from app.data.sources.worker_pool import processes


def test_an_interrupt_while_the_pool_starts_is_not_hidden() -> None:
    """It leaves the pool with a thread that was made and not seen to start, which cannot be joined."""

    def interrupted() -> None:
        with processes(2) as pool:
            pool._executor_manager_thread = threading.Thread()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
