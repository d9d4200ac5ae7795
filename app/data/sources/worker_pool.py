"""Worker processes that end together with the process that started them."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from multiprocessing import get_context
from typing import Any, TypeVar

Job = TypeVar("Job")
T = TypeVar("T")
MOST_ON_WINDOWS = 61  # it waits for at most 64 objects at once, and Python needs three of them


class Pool(ProcessPoolExecutor):
    """Workers that a Ctrl-C never reaches. A terminal sends it to all processes, and the parent handles it."""

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """As the base class, which may start a worker here. A worker inherits the signals that its parent blocks."""
        if sys.platform == "win32":
            return super().submit(fn, *args, **kwargs)
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            return super().submit(fn, *args, **kwargs)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def processes(workers: int) -> Iterator[Pool]:
    """A pool of processes that end at once when this process fails, is interrupted, or is killed.

    They are spawned, not forked, so that they behave the same on every system. Raises OSError if a worker was killed.
    """
    context = get_context("spawn")
    alive, lifeline = context.Pipe(duplex=False)
    most = MOST_ON_WINDOWS if sys.platform == "win32" else workers
    pool = Pool(min(workers, most), mp_context=context, initializer=_follow, initargs=(alive,))
    try:
        yield pool
        pool.shutdown()
    except BrokenProcessPool as error:
        raise OSError("a worker was killed, probably because memory ran out; try again with workers=1") from error
    finally:
        lifeline.close()
        with suppress(RuntimeError):  # an interrupt at the pool's start leaves a thread that cannot be joined
            pool.shutdown(cancel_futures=True)
        alive.close()


def in_order(
    jobs: Sequence[Job],
    task: Callable[[Job], tuple[Any, ...]],
    work: Callable[..., T],
    workers: int,
    each_ahead: int = 1,
) -> Generator[tuple[Job, T]]:
    """Yield each job with the result of `work(*task(job))`, in order, from `workers` processes.

    This process calls `task`. At most `each_ahead` jobs a worker, and one more, are ahead. Raises what `work` raises.
    """
    workers = min(workers, len(jobs))
    if workers <= 1:
        for job in jobs:
            yield job, work(*task(job))
        return
    waiting: deque[tuple[Job, Future[T]]] = deque()
    with processes(workers) as pool:
        for job in jobs:
            waiting.append((job, pool.submit(work, *task(job))))
            if len(waiting) > each_ahead * workers:
                earlier, future = waiting.popleft()
                yield earlier, future.result()
        for earlier, future in waiting:
            yield earlier, future.result()


def _follow(alive: Any) -> None:  # one end of a Pipe; its class differs between systems
    """In a worker: exit when the pipe's other end closes, on purpose or because its process died."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # also drops one that came since the start, when it was blocked

    def wait() -> None:
        try:
            alive.recv_bytes()
        except (EOFError, OSError):
            os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def cores() -> int:
    if hasattr(os, "sched_getaffinity"):  # fewer if this process may use only some cores
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
