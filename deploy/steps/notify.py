"""Run the user's own command once a run has ended. The machine tells the webhook: deploy/pod/base/notify.py."""

from __future__ import annotations

import sys

from deploy.errors import DeployError
from deploy.runs.documents import how_it_is
from deploy.runs.records import Record
from deploy.shell import LocalShell
from deploy.specs.settings import Settings
from deploy.ui.screen import Screen

LIMIT_S = 30.0


def run_notify_command(settings: Settings, record: Record, screen: Screen) -> None:
    """Run `notify_command` of the target, if it has one. The run's words are in the environment, never in the command.

    A failure, or more than 30 s, is reported on stderr and changes nothing else.
    """
    command = settings.target.notify_command
    if not command:
        return
    argv = ["cmd", "/d", "/c", command] if sys.platform == "win32" else ["sh", "-c", command]
    told = {"SNIPERFACE_RUN": record.run_id, "SNIPERFACE_STATE": record.state, "SNIPERFACE_TEXT": how_it_is(record)}
    try:
        LocalShell().run(argv, cwd=settings.project, env=told, limit_s=LIMIT_S)
    except (DeployError, OSError) as error:
        screen.complain(f"notify_command failed: {error}")
