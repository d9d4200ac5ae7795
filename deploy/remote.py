"""The app's own commands, run where a run is: on its machine, with the results brought home, or on this computer."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path, PurePath

from deploy import runs, transfer
from deploy.errors import WrongUse
from deploy.reach import Reached
from deploy.shell import LocalShell
from deploy.show import Screen

ON_THE_MACHINE = "machine:"


def app(reached: Reached, module: str, words: Sequence[str], out: Path, screen: Screen) -> int:
    """`python -m module *words out=…` with the code and the environment of the run; its results are at `out` here."""
    if reached.machine is None or reached.machine.is_here:
        argv = [sys.executable, "-m", module, *words, f"out={out}"]
        return LocalShell().foreground(argv, cwd=reached.settings.project)
    plan = runs.plan_of(reached.settings.runs, reached.record)
    there = reached.folder.path / "results" / out.name
    argv = [plan["argv"][0], "-m", module, *words, f"out={there}"]
    for line in reached.shell.stream(argv, cwd=reached.machine.path(plan["cwd"])):
        screen.say(line)
    if out.suffix:
        transfer.fetch(reached.shell, there, out)
    else:
        for name in reached.shell.listdir(there):
            transfer.fetch(reached.shell, there / name, out / name)
    screen.say(f"brought home: {out}")
    return 0


def bring_sets(reached: Reached, sets: str) -> list[str]:
    """Verification sets by their names on the run's machine; files of this laptop are sent there, once."""
    if reached.machine is None or reached.machine.is_here:
        return sets.split(",")
    return [str(_bring_set(reached, text.strip())) for text in sets.split(",")]


def _bring_set(reached: Reached, text: str) -> PurePath:
    assert reached.machine is not None
    if text.startswith(ON_THE_MACHINE):
        return reached.machine.path(text[len(ON_THE_MACHINE) :])
    file = Path(text).absolute()
    if not file.is_file():
        raise WrongUse(f"--sets {text}: there is no such file here; one on the machine is named machine:/path")
    if file.suffix not in (".bin", ".npy"):
        raise WrongUse(
            f"--sets {text} names other files, which would not travel with it: copy them to the machine, and give "
            f"{ON_THE_MACHINE}/path/{file.name}"
        )
    there = reached.folder.path.parent.parent / "sets" / file.parent.name / file.name
    for beside in [file, *([] if file.suffix == ".bin" else _beside(file))]:
        transfer.push(reached.shell, beside, there.with_name(beside.name))
    return there


def _beside(images: Path) -> list[Path]:
    """What belongs to an images.npy."""
    return [path for path in (images.with_name("labels.npy"), images.with_name("manifest.json")) if path.exists()]
