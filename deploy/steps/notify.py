"""Run the user's own command once a run has ended. The machine tells the webhook: deploy/pod/base/notify.py."""

from __future__ import annotations

import re
import sys

from deploy.errors import DeployError
from deploy.pod.agent.verbs import CMD
from deploy.runs.documents import how_it_is
from deploy.runs.records import Record
from deploy.shell import LocalShell
from deploy.specs.settings import Settings
from deploy.ui.screen import Screen

LIMIT_S = 30.0
OBEYED = re.compile("[\"'`&|<>^%!$;\u2018-\u201f\\\\]")  # PowerShell takes typographic quotes for quotes, too


def run_notify_command(settings: Settings, record: Record, screen: Screen) -> None:
    """Run `notify_command` of the target, if it has one. The run's words are in the environment, never in the command.

    cmd.exe reads the value of %SNIPERFACE_TEXT% as a part of the command, and a machine has written some of it. So on
    Windows characters that cmd or PowerShell obeys become blanks.
    A failure, or more than 30 s, is reported on stderr and changes nothing else.
    """
    command = settings.target.notify_command
    if not command:
        return
    argv, text = ["sh", "-c", command], how_it_is(record)
    if sys.platform == "win32":
        argv, text = [*CMD, command], OBEYED.sub(" ", text)
    told = {"SNIPERFACE_RUN": record.run_id, "SNIPERFACE_STATE": record.state, "SNIPERFACE_TEXT": text}
    try:
        LocalShell().run(argv, cwd=settings.project, env=told, limit_s=LIMIT_S)
    except (DeployError, OSError) as error:
        screen.complain(f"notify_command failed: {error}")
