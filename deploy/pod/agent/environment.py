"""Create the training environment on a machine that does not run our image: one virtual environment per lock file.

The machine is a host by SSH, or a pod of a stock image; there, the folder may be on a volume that outlives the pod.

    python3 -m deploy.pod.agent.environment <folder> <code folder>

Prints progress as plain lines. An incomplete environment has no `ready.json` and is created again. If two laptops ask
at once, the second waits and then finds the environment complete.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

from deploy.pod.base.folder import write_json
from deploy.pod.base.lock import Busy, Lock

CANDIDATES = ("python3.11", "python3.12", "python3.13", "python3.10", "python3")
USABLE = "import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 10))"
# Whether the installed torch asks for CUDA's libraries; its builds for CPUs do not.
ASKS_FOR_CUDA = (
    "import importlib.metadata, sys; "
    "sys.exit(not any(each.startswith(('cuda', 'nvidia')) for each in importlib.metadata.requires('torch') or ()))"
)
READY = "ready.json"
# A line that each Python of the environment executes at its start: the `PYTHONPATH` of the user's login, such as that
# of ROS or of a cluster's modules, would replace packages by others of the same name. The one of --env stays.
MEANT = "SNIPERFACE_PYTHONPATH_MEANT"
ISOLATED = (
    f"import os, sys; sys.path[:] = [at for at in sys.path if '{MEANT}' in os.environ or at.startswith(sys.prefix) or "
    "at not in map(os.path.abspath, filter(None, os.environ.get('PYTHONPATH', '').split(os.pathsep)))]\n"
)


def main(argv: list[str]) -> int:
    folder, code = Path(argv[1]), Path(argv[2])
    with _alone(folder):
        if (folder / READY).exists() and _runs(folder / "bin" / "python"):
            return 0
        python = next((name for name in CANDIDATES if _usable(name)), None)
        if python is None:
            print(
                "the machine has no Python 3.10 or newer that can make virtual environments: install it there "
                "(Debian, Ubuntu: apt-get install python3 python3-venv), or name one with python: in the target's file"
            )
            return 1
        return _make(folder, code, python)


def _make(folder: Path, code: Path, python: str) -> int:
    print(f"making the training environment {folder.name} with {python}; this takes minutes the first time", flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    if _run([python, "-m", "venv", str(folder)], folder.parent):
        return 1
    isolate(folder)
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--no-input", "--progress-bar", "off"]
    pip += ["--disable-pip-version-check"]
    pip += ["--require-hashes", "--no-deps", "--no-build-isolation", "--use-pep517", "--requirement"]
    for wanted in ("build", "app", "s3", "wandb", "torch", "cuda"):
        if wanted == "cuda" and subprocess.run([pip[0], "-c", ASKS_FOR_CUDA], check=False).returncode:
            continue
        if _run([*pip, f"requirements/{wanted}.txt"], code):
            return 1
    write_json(folder / READY, {"made": time.time(), "python": python})
    return 0


def isolate(folder: Path) -> None:
    """Let the Pythons of an environment ignore PYTHONPATH, unless the variable MEANT is set."""
    for packages in folder.glob("lib/python3*/site-packages"):
        (packages / "isolated.pth").write_text(ISOLATED, encoding="ascii")


def _run(argv: list[str], cwd: Path) -> int:
    """Run a pip or venv command. Prints large downloads and the unpacking, and the last 8 lines if it fails."""
    lines: list[str] = []
    with subprocess.Popen(
        argv, cwd=cwd, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env={**os.environ, "PIP_USER": "0"}, text=True, encoding="utf-8", errors="replace",
    ) as process:  # fmt: skip
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line.rstrip())
            large = re.match(r"\s*Downloading (\S+?)-\d\S* \((\d\d+)(\.\d+)? MB\)", line)
            if large:
                print(f"  downloading {large.group(1)} ({large.group(2)} MB)", flush=True)
            elif line.startswith("Installing collected packages") and line.count(",") > 1:
                print(f"  unpacking {line.count(',') + 1} packages", flush=True)
    if process.returncode:
        print("\n".join(lines[-8:]), flush=True)
    return process.returncode


def _usable(name: str) -> bool:
    path = shutil.which(name)
    return bool(path) and subprocess.run([name, "-c", USABLE], capture_output=True, check=False).returncode == 0


def _runs(python: Path) -> bool:
    """Whether an environment's Python starts. On a volume, it may come from an image with another version."""
    try:
        return subprocess.run([str(python), "-c", ""], capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def _alone(folder: Path) -> Lock:
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = Lock(folder.with_suffix(".lock"), {"pid": os.getpid()})
    told = False
    while True:
        try:
            return lock.acquire()
        except Busy as busy:
            if not told:
                print(f"another process is making it: waiting ({json.dumps(busy.holder)})", flush=True)
            told = True
            time.sleep(0.5)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
