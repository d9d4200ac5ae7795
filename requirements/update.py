"""Makes constraints.txt and the lists of hashes beside this file from pyproject.toml.

    python bootstrap.py python requirements/update.py              after a change of pyproject.toml
    python bootstrap.py python requirements/update.py --upgrade    newer versions of everything

Needs the tool uv on PATH, or its path in UV. Run the tests afterwards.

Each list is complete: pip installs it with --require-hashes --no-deps, on each Python and system. torch has a list of
its own, with the hashes of several builds of one version. Only its build for CUDA needs the packages of cuda.txt: they
are installed after torch, if its metadata asks for them.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

HERE = Path(__file__).resolve().parent
PROJECT = HERE.parent
CONSTRAINTS = PROJECT / "constraints.txt"
EXTRAS = ("app", "dev", "gpu", "pack", "s3", "ui", "wandb")  # of pyproject.toml; `laptop` is what is needed without any
BUILD = ("setuptools",)  # builds the few packages that are published as source alone
CUDA = re.compile(r"(triton|cuda-[a-z-]+|nvidia-(?!.*-cu12$)[a-z0-9-]+)")  # what torch's build for CUDA brings
# Builds that are not on PyPI. torch 2.13.0+cpu for Python 3.11, Linux, x86_64:
MORE_HASHES = {"torch": ["6746dbcbeb526eb61330b76b41ff1b4eb848951103a892eeb080dfa2b264667b"]}
UV = ("pip", "compile", "--quiet", "--universal", "--python-version", "3.10", "--no-annotate", "--no-header")

HEAD_OF_CONSTRAINTS = """\
# Exact versions of everything, for Python 3.10 and newer on Linux, macOS and Windows. Made by requirements/update.py.
# Installed from the lists in requirements/, which have the same versions with hashes.
"""
HEAD_OF_LIST = """\
# Made by requirements/update.py; not to be edited. {what}
"""
WHAT = {
    "app": "What trains, but for torch.",
    "cuda": "What torch's build for CUDA needs.",
    "build": "What is installed before all else.",
    "dev": "What tests and checks need.",
    "gpu": "FAISS for GPUs, in the place of faiss-cpu.",
    "laptop": "What the laptop needs.",
    "pack": "What the laptop needs to pack images.",
    "s3": "What addresses of S3 need.",
    "ui": "What the page of all runs needs.",
    "wandb": "What track=wandb needs.",
    "torch": "torch: its builds on PyPI, and others whose hashes are known.",
}


def main(argv: list[str]) -> int:
    text = (PROJECT / "pyproject.toml").read_text(encoding="utf-8")
    pins = [] if "--upgrade" in argv else ["--constraint", str(CONSTRAINTS)]
    everything = "\n".join(name for names in wanted(text).values() for name in names)
    CONSTRAINTS.write_text(HEAD_OF_CONSTRAINTS + versions_alone(compiled(everything, *pins)), encoding="utf-8")
    for what, names in wanted(text).items():
        hashed = compiled("\n".join(names), "--constraint", str(CONSTRAINTS), "--generate-hashes")
        kept = "".join(block for block in blocks(hashed) if belongs(block.split("==")[0], what))
        for name, more in MORE_HASHES.items() if what == "torch" else ():
            assert kept.startswith(f"{name}==")
            kept = kept.rstrip("\n") + "".join(f" \\\n    --hash=sha256:{each}" for each in more) + "\n"
        (HERE / f"{what}.txt").write_text(HEAD_OF_LIST.format(what=WHAT[what]) + kept, encoding="utf-8")
    return 0


def belongs(package: str, what: str) -> bool:
    """Whether a package that was resolved for a list is installed from it."""
    if what in ("cuda", "torch"):
        return package == "torch" if what == "torch" else bool(CUDA.fullmatch(package))
    return package != "torch" and not CUDA.fullmatch(package)


def wanted(pyproject: str) -> dict[str, list[str]]:
    """The names that pyproject.toml asks for, by list. (Python 3.10 has no reader of TOML.)"""
    names = {extra: section(pyproject, f"{extra} = [") for extra in EXTRAS}
    torch = [name for name in names["app"] if name.startswith("torch")]
    return {
        "build": list(BUILD),
        "laptop": section(pyproject, "dependencies = ["),
        **names,
        "cuda": torch,
        "torch": torch,
    }


def section(pyproject: str, begin: str) -> list[str]:
    found = re.search(rf"^{re.escape(begin)}(.*?)\]", pyproject, re.MULTILINE | re.DOTALL)
    assert found, f"pyproject.toml has no {begin}"
    return re.findall(r'"([^"]+)"', re.sub(r"#.*", "", found[1]))


def compiled(names: str, *options: str) -> str:
    command = [os.environ.get("UV", "uv"), *UV, *options, "-"]
    return subprocess.run(command, input=names, stdout=subprocess.PIPE, text=True, check=True, cwd=PROJECT).stdout


def versions_alone(text: str) -> str:
    """Without markers of systems: pip may install a package that another system needs, and then in this version."""
    lines = [re.sub(r" and (platform|sys|implementation)_.*", "", line) for line in text.splitlines()]
    lines = [line if re.search("python_(full_)?version", line) else line.partition(" ;")[0] for line in lines]
    return "".join(f"{line}\n" for line in dict.fromkeys(lines))


def blocks(hashed: str) -> Iterable[str]:
    """Each package with the lines of its hashes."""
    return re.findall(r"^[A-Za-z0-9].*\n(?:    .*\n)*", hashed, re.MULTILINE)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
