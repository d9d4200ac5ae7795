"""Work on several cores in one process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from functools import cache
from typing import Any, TypeVar

import torch
from threadpoolctl import ThreadpoolController

Result = TypeVar("Result")


def on_cores(work: Callable[..., Result], calls: Sequence[tuple[Any, ...]]) -> list[Result]:
    """Return what `work` returns for the arguments of each of `calls`, on as many threads as torch uses.

    It gains only if the work releases the GIL, and uses one core itself.
    """
    threads = min(torch.get_num_threads(), len(calls))
    if threads < 2:
        return [work(*call) for call in calls]
    with ThreadPoolExecutor(threads, "core") as pool:
        futures = [pool.submit(work, *call) for call in calls]
        try:
            return [future.result() for future in futures]
        except BaseException:  # also a stop: what has not begun does not begin
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def shares(count: int) -> list[slice]:
    """Return slices of `count` rows of about equal length, one for each thread; none is empty unless there is one."""
    parts = max(1, min(torch.get_num_threads(), count))
    return [slice(count * part // parts, count * (part + 1) // parts) for part in range(parts)]


def small_matrices() -> AbstractContextManager[object]:
    """While this is entered, numpy multiplies on one thread: several would mostly wait for each other.

    They may also round differently.
    """
    return _libraries().limit(limits=1, user_api="blas")


@cache
def _libraries() -> ThreadpoolController:
    """Return the libraries that compute on several threads; to look through all that are loaded takes a while."""
    return ThreadpoolController()
