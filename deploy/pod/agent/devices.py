"""Find the GPUs that the training environment can use, and print one JSON document.

    python - < devices.py               with the Python of the job, before any code of the project is on the machine
    python3 - driver < devices.py       before the environment exists: only what nvidia-smi says

torch decides: it respects CUDA_VISIBLE_DEVICES and knows whether its CUDA version fits the driver. nvidia-smi provides
the driver version, the number of GPUs and reasons. Without NVIDIA software torch is not imported: that takes seconds.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import warnings
from typing import Any

SMI_S = 20.0
QUERY = ("--query-gpu=index,uuid,name,driver_version", "--format=csv,noheader")
ROW = re.compile(r"(?P<index>\d+), (?P<uuid>(GPU|MIG)-[\w-]+|\[N/A\]), (?P<name>\S.*), (?P<driver>\d[\d.]+|\[N/A\])")
TRACES = ("/dev/nvidiactl", "/proc/driver/nvidia/version", "/dev/dxg")  # the last one is WSL's


def look() -> dict[str, Any]:
    """Return the JSON document.

    torch, cuda, driver: versions; listed: number of GPUs in nvidia-smi's list, None without an answer; visible:
    CUDA_VISIBLE_DEVICES; gpus: those that torch computes on; why: the reason for missing ones.
    """
    told: dict[str, Any] = {"torch": None, "cuda": None, "driver": None, "listed": None, "gpus": [], "why": None}
    told["visible"] = os.environ.get("CUDA_VISIBLE_DEVICES")
    smi = shutil.which("nvidia-smi")
    if smi is None and not any(map(os.path.exists, TRACES)):
        return told
    said = listing(smi) if smi else {}
    if sys.argv[1:] == ["driver"]:
        return {**told, **said}
    try:
        of_torch = usable()
    except Exception as error:  # a broken installation may raise anything; it is the reason
        of_torch = {"why": sentence(f"torch cannot be used: {type(error).__name__}: {error}")}
    why = " ".join(filter(None, (of_torch["why"], said.get("why")))) or None
    return {**told, **said, **of_torch, "why": why}


def listing(program: str) -> dict[str, Any]:
    """Return the number of GPUs and the driver version from nvidia-smi; "why" if it fails, hangs or prints no list."""
    process = subprocess.Popen(
        [program, *QUERY], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    try:
        output = process.communicate(timeout=SMI_S)[0].decode("utf-8", errors="replace")
    except subprocess.TimeoutExpired:
        process.kill()  # no wait: a hanging driver keeps its process
        return {"why": f"nvidia-smi did not answer within {SMI_S:g} s."}
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    first = sentence(lines[0]) if lines else "it printed nothing."
    if process.returncode:
        return {"why": f"nvidia-smi failed with exit code {process.returncode}: {first}"}
    rows = [ROW.fullmatch(line) for line in lines]
    found = [row for row in rows if row]
    if not found or len(found) < len(rows):
        return {"why": f"nvidia-smi printed no list of GPUs: {first}"}
    driver = found[0]["driver"]
    return {"listed": len(found), "driver": None if driver == "[N/A]" else driver}


def usable() -> dict[str, Any]:
    """Return the GPUs that torch computes on, after a test on each, and the first reason why one cannot be used."""
    torch: Any = importlib.import_module("torch")  # by name: code sent to a machine has no other static imports
    told = {"torch": str(torch.__version__), "cuda": torch.version.cuda, "gpus": [], "why": None}
    if not told["cuda"]:
        return {**told, "why": f"torch {torch.__version__} is built without CUDA."}
    with warnings.catch_warnings(record=True) as heard:  # torch explains an unusable driver in a warning
        warnings.simplefilter("always")
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not count:
        reasons = [str(each.message) for each in heard]
        return {**told, "why": sentence(reasons[0]) if reasons else "torch finds no GPU."}
    for index in range(count):
        name = torch.cuda.get_device_name(index)
        try:
            about = torch.cuda.get_device_properties(index)
            attempt(torch, index)
        except Exception as error:
            told["why"] = told["why"] or sentence(f"torch cannot compute on GPU {index}, {name}: {error}")
            continue
        told["gpus"].append(
            {"name": name, "capability": [about.major, about.minor], "memory_bytes": int(about.total_memory)}
        )
    return told


def attempt(torch: Any, index: int) -> None:
    """Run one of torch's kernels, which exist only for architectures that torch was built for. Raises on failure.

    Raises RuntimeError for a wrong sum.
    """
    with contextlib.suppress(torch.OutOfMemoryError):  # another job fills the memory; a queued run starts later
        if float((torch.arange(4.0, device=f"cuda:{index}") * 2).sum()) != 12.0:
            raise RuntimeError("a sum is wrong")


def sentence(text: str) -> str:
    """Return the first sentence of a program's output, on one line, at most 300 characters."""
    line = " ".join(text.split())
    line = re.split(r"(?<=[.!]) (?=[A-Z])| \(Triggered ", line)[0][:300].rstrip()
    return line if line.endswith((".", "!")) else f"{line}."


if __name__ == "__main__":
    out = os.dup(1)
    os.dup2(2, 1)  # a library's prints must not get into the document
    document = json.dumps(look()) + "\n"
    os.write(out, document.encode("ascii"))
    sys.stdout.flush()
