"""Check what `train.compile=true` needs, before torch fails in the first step with pages of output."""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
from pathlib import Path

from app.errors import WrongUse

# Programs in search order: torch's CPU code generator writes C++, Triton's GPU launcher is C.
FOR_CPU = ("CXX", ({"darwin": "clang++", "win32": "cl"}.get(sys.platform, "g++"),), "a C++ compiler such as g++")
FOR_GPU = ("CC", ("gcc", "clang"), "a C compiler such as gcc")


def refuse_without_compiler(device_type: str) -> None:
    """Raise WrongUse, with the names of what is missing for torch.compile on `cpu` or `cuda`."""
    variable, programs, words = FOR_GPU if device_type == "cuda" else FOR_CPU
    named = os.environ.get(variable)
    missing = [] if any(map(shutil.which, (named,) if named else programs)) else [words]
    header = Path(sysconfig.get_path("include"), "Python.h")
    if sys.platform != "win32" and not header.is_file():
        missing.append(f"Python's headers ({header}; Debian, Ubuntu: apt-get install python3-dev)")
    if missing:
        raise WrongUse(
            f"train.compile=true needs {' and '.join(missing)}; install what is missing, or give train.compile=false"
        )
