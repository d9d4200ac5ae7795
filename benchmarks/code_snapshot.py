"""Time to send a run's code to a machine 100 ms away: 2,000 files, of which 3 changed since the last time.

Ours opens a new connection each time. Peers are a tar of everything over ssh, and rsync.
"""

from __future__ import annotations

import os
import random
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # lets the script run from any folder

from benchmarks._claims import Claim, quick, report, seconds
from benchmarks._far import Far, far
from deploy.shell import open_shell
from deploy.workspace import code

FILES = 2000


def main() -> int:
    is_quick = quick()
    with far() as there:
        tree = make_tree(there.project.parent / "tree", 200 if is_quick else FILES)
        ways = {"ours": ours(there, tree), "tar": tar(there, tree), "rsync": rsync(there, tree)}
        if shutil.which("rsync") is None:
            del ways["rsync"]
        taken: dict[str, list[float]] = {name: [] for name in ways}
        for turn in range(1 + (2 if is_quick else 9)):
            for name, way in ways.items():
                change(tree, turn)
                measured = seconds(way)
                if turn:  # the first turn sends everything
                    taken[name].append(measured)
    medians = {name: statistics.median(each) for name, each in taken.items()}
    claims = [
        Claim(f"3 of {FILES} files changed, against {name}", medians["ours"], medians[name], "s", ratio, 1.0)
        for name in medians
        if name != "ours"
        for ratio in [statistics.median(b / a for a, b in zip(taken["ours"], taken[name], strict=True))]
    ]
    return report("code_snapshot", claims, is_quick=is_quick)


def ours(there: Far, tree: Path) -> Callable[[], object]:
    def send() -> None:
        shell = open_shell(there.machine, tree / ".sniperface")
        code.place(tree, shell, there.root, code.prove(tree)[1])
        shell.close()

    return send


def tar(there: Far, tree: Path) -> Callable[[], object]:
    folder = there.root / "by-tar"
    words = " ".join([*ssh(there), f"'mkdir -p {folder} && tar -C {folder} -xf -'"])
    argv = ["sh", "-c", f"tar -C '{tree}' --exclude .git --exclude .sniperface -cf - . | {words}"]
    return lambda: subprocess.run(argv, check=True)


def rsync(there: Far, tree: Path) -> Callable[[], object]:
    *words, host = ssh(there)
    argv = ["rsync", "-a", "--delete", "--exclude=.git", "--exclude=.sniperface", "--mkpath", "-e", " ".join(words)]
    return lambda: subprocess.run([*argv, f"{tree}/", f"{host}:{there.root}/by-rsync/"], check=True)


def ssh(there: Far) -> list[str]:
    address = there.machine.address
    assert address is not None
    options = ["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR"]
    return ["ssh", *options, "-p", str(address.port), "-i", str(there.key), f"root@{address.host}"]


def make_tree(folder: Path, count: int) -> Path:
    """Create files of 1 to 20 KB in folders of 50, with text that resembles code."""
    words = random.Random(0)
    for number in range(count):
        file = folder / f"package_{number // 50:03}" / f"module_{number:04}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        lines = [
            f"value_{words.randrange(10**6)} = {words.randrange(10**9)}\n" for _ in range(words.randrange(30, 600))
        ]
        file.write_text("".join(lines))
    for argv in (["init", "--quiet"], ["add", "--all"], ["commit", "--quiet", "-m", "first"]):
        named = {f"GIT_{who}_{what}": "x" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
        subprocess.run(["git", *argv], cwd=folder, check=True, env={**os.environ, **named})
    return folder


def change(tree: Path, turn: int) -> None:
    for number in range(3):
        file = sorted(tree.glob("package_*/*.py"))[turn * 3 + number]
        file.write_text(file.read_text() + f"turn = {turn}\n")


if __name__ == "__main__":
    raise SystemExit(main())
