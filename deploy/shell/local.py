"""This computer: the verbs are called directly."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

from deploy.errors import StepFailed
from deploy.pod.agent import verbs
from deploy.pod.agent.agent import VERBS
from deploy.shell.base import Shell


class LocalShell(Shell):
    """Shell on this computer."""

    def call(self, verb: str, *, again: bool = True, **arguments: Any) -> Any:  # noqa: ARG002 - nothing can break here
        return VERBS[verb](**arguments)

    def lines(self, argv: Sequence[str], cwd: PurePath | None) -> Generator[bytes, None, int]:
        """As in Shell. Raises StepFailed if there is no such program."""
        try:
            return (yield from verbs.lines(argv, None if cwd is None else str(cwd)))
        except FileNotFoundError as error:
            raise StepFailed(f"{argv[0]} was not found") from error

    def terminal(self, argv: Sequence[str], *, interactive: bool = True) -> list[str]:  # noqa: ARG002 - the same here
        return list(argv)

    def foreground(
        self, argv: Sequence[str], *, cwd: Path, without: Sequence[str] = (), env: Mapping[str, str] | None = None
    ) -> int:
        """Run a command in this terminal until it ends; returns its exit code.

        `without`: variables to remove. `env`: variables to add.
        """
        env = {**{name: value for name, value in os.environ.items() if name not in without}, **(env or {})}
        # Windows would look along the PATH of this process, and for .exe files alone.
        program = shutil.which(argv[0], path=env.get("PATH")) or argv[0]
        return subprocess.call([program, *argv[1:]], cwd=cwd, env=env)
