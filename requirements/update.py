"""Makes constraints.txt and the lists of hashes beside this file from pyproject.toml.

    python bootstrap.py python requirements/update.py              after a change of pyproject.toml
    python bootstrap.py python requirements/update.py --upgrade    newer versions of everything

Needs the tool uv on PATH, or its path in UV. Run the tests afterwards.

Each list is complete: pip installs it with --require-hashes --no-deps, on each Python and system. torch is in none of
them, nor is what it alone brings: its builds for CPUs, for CUDA and for Windows come from different indexes under one
version, so there is no one set of hashes. It is pinned by version in constraints.txt.
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
EXTRAS = ("app", "dev", "gpu", "pack")  # of pyproject.toml; `laptop` is what is needed without any
BUILD = ("setuptools",)  # builds the few packages that are published as source alone
WITHOUT_HASHES = re.compile(r"(torch|triton|cuda-[a-z-]+|nvidia-(?!.*-cu12$)[a-z0-9-]+)")
UV = ("pip", "compile", "--quiet", "--universal", "--python-version", "3.10", "--no-annotate", "--no-header")

HEAD_OF_CONSTRAINTS = """\
# Exact versions of everything, for Python 3.10 and newer on Linux, macOS and Windows. Made by requirements/update.py.
# pip takes them as constraints where torch is installed; all else is installed from the lists in requirements/, which
# have the same versions with hashes.
"""
HEAD_OF_LIST = """\
# Made by requirements/update.py; not to be edited. {what}
"""
WHAT = {
    "app": "What trains, but for torch.",
    "build": "What is installed before all else.",
    "dev": "What tests and checks need.",
    "gpu": "FAISS for GPUs, in the place of faiss-cpu.",
    "laptop": "What the laptop needs.",
    "pack": "What the laptop needs to pack images.",
}


def main(argv: list[str]) -> int:
    text = (PROJECT / "pyproject.toml").read_text(encoding="utf-8")
    pins = [] if "--upgrade" in argv else ["--constraint", str(CONSTRAINTS)]
    everything = "\n".join(name for names in wanted(text).values() for name in names)
    CONSTRAINTS.write_text(HEAD_OF_CONSTRAINTS + versions_alone(compiled(everything, *pins)), encoding="utf-8")
    for what, names in wanted(text).items():
        hashed = compiled("\n".join(names), "--constraint", str(CONSTRAINTS), "--generate-hashes")
        kept = "".join(block for block in blocks(hashed) if not WITHOUT_HASHES.fullmatch(block.split("==")[0]))
        (HERE / f"{what}.txt").write_text(HEAD_OF_LIST.format(what=WHAT[what]) + kept, encoding="utf-8")
    return 0


def wanted(pyproject: str) -> dict[str, list[str]]:
    """The names that pyproject.toml asks for, by list. (Python 3.10 has no reader of TOML.)"""
    names = {extra: section(pyproject, f"{extra} = [") for extra in EXTRAS}
    return {"build": list(BUILD), "laptop": section(pyproject, "dependencies = ["), **names}


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
