"""`docker run IMAGE selftest`: check everything that training needs in this container, and print one line per check.

Exits with code 1 if a check is "broken". A "note" works but could be better.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

assert sys.platform != "win32"  # for mypy, which checks this file for Windows, too

SMALL_SHM_BYTES = 1 << 30
FOLDERS = ("/workspace", "/root", "/tmp", "/dev/shm")  # noqa: S108 - this container's own


class Broken(Exception):
    pass


class Note(Exception):
    """The check passed, but something could be better."""


def ssh_server() -> str:
    """Check sshd's configuration with a temporary host key, because the image deliberately has none."""
    os.makedirs("/run/sshd", mode=0o755, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        key = str(Path(folder, "key"))
        run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key)
        run("/usr/sbin/sshd", "-t", "-o", f"HostKey={key}")
    return run("ssh", "-V").split(",")[0]


def programs() -> str:
    return f"{run('git', '--version')}, {run('tmux', '-V')}"


def torch() -> str:
    module: Any = importlib.import_module("torch")  # by name: code sent to a machine has no other static imports
    numbers = module.arange(4.0)
    if float(numbers @ numbers) != 14.0:
        raise Broken("torch computes wrongly on the CPU")
    if not module.cuda.is_available():
        if Path("/dev/nvidiactl").exists():
            raise Broken(f"there is a GPU, but torch {module.__version__} (CUDA {module.version.cuda}) cannot use it")
        return f"{module.__version__}, no GPU here"
    searched = module.eye(64)
    names = [module.cuda.get_device_name(index) for index in range(module.cuda.device_count())]
    for index in range(len(names)):
        there = numbers.to(f"cuda:{index}")
        if float(there @ there) != 14.0:
            raise Broken(f"torch computes wrongly on GPU {index}, {names[index]}")
        half = searched.to(f"cuda:{index}", module.float16)  # like the search in mining: 16-bit product, then top-k
        if (half @ half.T).topk(1).indices.flatten().tolist() != list(range(64)):
            raise Broken(f"torch finds wrong neighbours on GPU {index}, {names[index]}")
    return f"{module.__version__}, CUDA {module.version.cuda}, {len(names)} GPUs: {', '.join(names)}"


def faiss() -> str:
    module: Any = importlib.import_module("faiss")
    numpy: Any = importlib.import_module("numpy")
    vectors = numpy.eye(64, dtype="float32")
    gpus = module.get_num_gpus() if hasattr(module, "get_num_gpus") else 0

    def check(index: Any) -> None:
        index.add(vectors)
        if index.search(vectors, 1)[1].ravel().tolist() != list(range(64)):
            raise Broken(f"faiss {module.__version__} finds wrong neighbours")

    check(module.IndexFlatIP(64))
    try:
        for number in range(gpus):
            resources = module.StandardGpuResources()  # must outlive the index
            check(module.index_cpu_to_gpu(resources, number, module.IndexFlatIP(64)))
    except (
        Exception
    ) as error:  # faiss has its own CUDA, which may not support this GPU; only an optional backend needs it
        why = str(error).strip().splitlines()[0:1] or [type(error).__name__]
        raise Note(
            f"{module.__version__} fails on a GPU ({why[0]}): mining searches with torch there, unless "
            "mining.backend=faiss is set"
        ) from error
    if Path("/dev/nvidiactl").exists() and not gpus:
        raise Note(f"{module.__version__} without GPU: an image with FAISS=faiss-gpu has it")
    return f"{module.__version__}, {f'{gpus} GPUs' if gpus else 'on the CPU'}"


def write_access() -> str:
    for folder in FOLDERS:
        try:
            with tempfile.NamedTemporaryFile(dir=folder) as file:
                file.write(b"x")
        except OSError as error:
            raise Broken(f"{folder} cannot be written: {error.strerror}") from error
    return " ".join(FOLDERS)


def shared_memory() -> str:
    room = os.statvfs("/dev/shm")  # noqa: S108 - this container's own
    size = room.f_frsize * room.f_blocks
    words = f"{size / 2**20:.0f} MiB"
    if size < SMALL_SHM_BYTES:
        raise Note(f"{words} is too little: docker run --shm-size 2g")
    return words


CHECKS: dict[str, Callable[[], str]] = {
    "sshd": ssh_server,
    "programs": programs,
    "torch": torch,
    "faiss": faiss,
    "write": write_access,
    "/dev/shm": shared_memory,  # noqa: S108 - this container's own
}


def run(*argv: str) -> str:
    done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        raise Broken(f"{' '.join(argv[:2])} failed: {done.stdout.strip()}")
    return done.stdout.strip()


def main() -> int:
    broken = 0
    for name, check in CHECKS.items():
        level, words = "ok", ""
        try:
            words = check()
        except Note as note:
            level, words = "note", str(note)
        except Exception as error:
            broken += 1
            level, words = "broken", f"{type(error).__name__}: {error}" if not isinstance(error, Broken) else str(error)
        print(f"{level:<7} {name:<9} {words}", flush=True)
    return 1 if broken else 0


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        sys.exit(main())
