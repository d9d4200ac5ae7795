"""The training environment on a machine: our image's, the user's, or one that is created there once."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path, PurePath

from deploy import border
from deploy.errors import StepFailed, bootstrap_command
from deploy.pod.base.clock import whole_minutes
from deploy.shell import Shell
from deploy.specs.machine import Machine

OUR_IMAGE = "SNIPERFACE_PYTHON"  # set in our image: the path of its Python
AUTO = "auto"


def settle(machine: Machine, shell: Shell, project: Path) -> Machine:
    """Return the machine with what only it knows: its root as an absolute path, its clock, the Python for training."""
    if machine.is_here:
        return machine
    expanded, now = shell.calls([("expand", {"path": str(machine.root)}), ("clock", {})])
    root = machine.path(border.path_text(expanded, f"{shell.name}: its root"))
    ahead_s = whole_minutes(border.unix_time(now, f"{shell.name}: its clock") - time.time())
    python = machine.python
    if python == AUTO:
        python = shell.environment().get(OUR_IMAGE) or str(_folder(root, project) / "bin" / "python")
    return replace(machine, root=root, python=python, clock_ahead_s=ahead_s)


def ensure(machine: Machine, shell: Shell, project: Path, code: PurePath, say: Callable[[str], None]) -> None:
    """Create the environment if it is missing. Raises StepFailed if it cannot train."""
    folder = _folder(machine.root, project)
    if _is_made_there(machine, project):
        if not is_ready(machine, shell, project):
            for line in shell.stream(
                ["python3", "-m", "deploy.pod.agent.environment", str(folder), str(code)], cwd=code, again=True
            ):
                say(line)
        return
    ask = "import importlib.util, sys; sys.exit(importlib.util.find_spec('torch') is None)"
    if not shell.run([machine.python, "-c", ask], cwd=code, check=False, again=True):
        fix = (
            bootstrap_command()
            if machine.is_here
            else "set python: auto in the target's file, which creates the environment"
        )
        raise StepFailed(f"torch is not installed for {machine.python}", next_command=fix)


def is_ready(machine: Machine, shell: Shell, project: Path) -> bool:
    """Whether a settled machine has its environment. One on a volume needs the same Python as where it was made."""
    if not _is_made_there(machine, project):
        return True
    if shell.size(_folder(machine.root, project) / "ready.json") is None:
        return False
    return bool(shell.run([machine.python, "-c", ""], check=False, again=True))


def _is_made_there(machine: Machine, project: Path) -> bool:
    return machine.python == str(_folder(machine.root, project) / "bin" / "python") and not machine.is_here


def _folder(root: PurePath, project: Path) -> PurePath:
    """Return the folder of the environment: one for each state of the files that define it."""
    digest = hashlib.sha256()
    for name in ("build", "app", "s3", "wandb", "torch", "cuda"):
        file = project / "requirements" / f"{name}.txt"
        digest.update(file.read_bytes().replace(b"\r\n", b"\n") if file.exists() else b"")
    return root / "environments" / digest.hexdigest()[:12]
