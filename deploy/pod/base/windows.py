"""The functions of Windows' system library that Python does not offer."""

from __future__ import annotations

import ctypes
from typing import Any


def kernel32() -> Any:
    """Load the library, with prototypes of its own for the caller. None on other systems."""
    load = getattr(ctypes, "WinDLL", None)
    return load("kernel32") if load else None
