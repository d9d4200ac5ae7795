"""Check that `train.compile=true` works, before torch fails in the first step with pages of output."""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
from pathlib import Path

import torch

from app.errors import WrongUse

# Programs in search order: torch's CPU code generator writes C++, Triton's GPU launcher is C.
FOR_CPU = ("CXX", ({"darwin": "clang++", "win32": "cl"}.get(sys.platform, "g++"),), "a C++ compiler such as g++")
FOR_GPU = ("CC", ("gcc", "clang"), "a C compiler such as gcc")


def refuse_without_compiler(device_type: str) -> None:
    """Raise WrongUse if torch.compile lacks something on `cpu` or `cuda`, or fails in a trial of one line."""
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
    try:
        torch.compile(torch.nn.functional.softplus, dynamic=False)(torch.ones(8, device=device_type))
    except Exception as error:  # of the compiler, the system's loader or the disk of its cache
        raise WrongUse(
            f"train.compile=true does not work on this machine ({_why(error)}); give train.compile=false"
        ) from error


def _why(error: Exception) -> str:
    """The first line of torch's pages, and the first of a compiler's own output, which they quote after its command."""
    said = [line for line in map(str.strip, str(error).splitlines()) if line and not line.startswith("Set TORCH")]
    own = said[said.index("Output:") + 1 :][:1] if "Output:" in said else []
    return ": ".join([*said[:1], *own]) or type(error).__name__
