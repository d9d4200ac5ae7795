"""Asks the environment that trains which GPUs it can use, and prints one JSON document.

    python - < devices.py        with the Python of the job, before any code of the project is on the machine

torch decides: it obeys CUDA_VISIBLE_DEVICES, and knows whether its CUDA fits the driver. nvidia-smi is asked only for
the driver's version and for a reason. Where nothing of NVIDIA's is installed, torch is not imported: it takes seconds.
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
TRACES = ("/dev/nvidiactl", "/proc/driver/nvidia/version", "/dev/dxg")  # the last is of WSL


def look() -> dict[str, Any]:
    """torch, cuda: their versions; driver: NVIDIA's; listed: GPUs that nvidia-smi lists, None without an answer;
    visible: CUDA_VISIBLE_DEVICES; gpus: those that torch computes on; why: a reason for fewer, or none, of them.
    """
    told: dict[str, Any] = {"torch": None, "cuda": None, "driver": None, "listed": None, "gpus": [], "why": None}
    told["visible"] = os.environ.get("CUDA_VISIBLE_DEVICES")
    smi = shutil.which("nvidia-smi")
    if smi is None and not any(map(os.path.exists, TRACES)):
        return told
    said = listing(smi) if smi else {}
    try:
        of_torch = usable()
    except Exception as error:  # whatever a broken installation raises is the reason
        of_torch = {"why": sentence(f"torch cannot be used: {type(error).__name__}: {error}")}
    why = " ".join(filter(None, (of_torch["why"], said.get("why")))) or None
    return {**told, **said, **of_torch, "why": why}


def listing(program: str) -> dict[str, Any]:
    """GPUs and driver by nvidia-smi; its own words where it fails, hangs or says what has another shape."""
    process = subprocess.Popen(
        [program, *QUERY], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    try:
        output = process.communicate(timeout=SMI_S)[0].decode("utf-8", errors="replace")
    except subprocess.TimeoutExpired:
        process.kill()  # nobody waits for it: a driver that hangs keeps its process
        return {"why": f"nvidia-smi did not answer within {SMI_S:g} s."}
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    first = sentence(lines[0]) if lines else "it said nothing."
    if process.returncode:
        return {"why": f"nvidia-smi failed with exit code {process.returncode}: {first}"}
    rows = [ROW.fullmatch(line) for line in lines]
    found = [row for row in rows if row]
    if not found or len(found) < len(rows):
        return {"why": f"nvidia-smi answered what is no list of GPUs: {first}"}
    driver = found[0]["driver"]
    return {"listed": len(found), "driver": None if driver == "[N/A]" else driver}


def usable() -> dict[str, Any]:
    """The GPUs that torch computes on, each tried; the first reason where one, or all, cannot be used."""
    torch: Any = importlib.import_module("torch")  # by name: what is shipped to a machine imports nothing else
    told = {"torch": str(torch.__version__), "cuda": torch.version.cuda, "gpus": [], "why": None}
    if not told["cuda"]:
        return {**told, "why": f"torch {torch.__version__} is built without CUDA."}
    with warnings.catch_warnings(record=True) as heard:  # why a driver cannot be used stands in a warning
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
    """A kernel of torch's own: it exists only for the architectures that torch was built for."""
    with contextlib.suppress(torch.OutOfMemoryError):  # another job fills it: a queued run comes later
        if float((torch.arange(4.0, device=f"cuda:{index}") * 2).sum()) != 12.0:
            raise RuntimeError("a sum is wrong")


def sentence(text: str) -> str:
    """The first sentence of what a program said, on one line, at most 300 characters."""
    line = " ".join(text.split())
    line = re.split(r"(?<=[.!]) (?=[A-Z])| \(Triggered ", line)[0][:300].rstrip()
    return line if line.endswith((".", "!")) else f"{line}."


if __name__ == "__main__":
    out = os.dup(1)
    os.dup2(2, 1)  # what a library prints must not get into the document
    document = json.dumps(look()) + "\n"
    os.write(out, document.encode("ascii"))
    sys.stdout.flush()
