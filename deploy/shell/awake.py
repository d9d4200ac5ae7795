"""A clock for waits that outlast a sleep of the laptop."""

from __future__ import annotations

import ctypes
import functools
import time

from deploy.pod.base.windows import kernel32


def awake_s() -> float:
    """Return the seconds in which this computer was awake, from an arbitrary start.

    Windows' monotonic clock goes on while the computer sleeps, so that every wait would end when it wakes. Those of
    Linux and macOS stop.
    """
    kernel = _kernel()
    if kernel is None:
        return time.monotonic()
    told = ctypes.c_uint64()
    kernel.QueryUnbiasedInterruptTime(ctypes.byref(told))
    return told.value / 1e7


_kernel = functools.cache(kernel32)
