"""Print the log of a run, as it is now or as it grows."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from deploy.billing.reaper import reap
from deploy.pod.base.retry import FOLLOW_PATIENCE_S
from deploy.runs import job, records, session
from deploy.shell import LinkLost
from deploy.steps import nodes
from deploy.ui.screen import Screen


def logs(project: Path, target: str, run_id: str | None, screen: Screen, *, follow: bool) -> None:
    """Print the log; with `follow`, print it as it grows until the job has ended.

    If SSH is down, print the machine's console, which also has the job's output, and raise LinkLost.
    """
    try:
        with session.run(project, target, run_id, partial(reap, screen=screen)) as reached:
            if follow:
                reached.shell.patience_s = FOLLOW_PATIENCE_S
                reached.shell.on_loss = screen.complain
            if reached.record.others:
                texts = nodes.logs(reached, screen, follow=follow)
            elif follow:
                texts = (text for text, _ in job.follow(reached.shell, reached.folder))
            else:
                texts = job.log_now(reached.shell, reached.folder)
            for text in texts:
                screen.raw(text)
    except LinkLost as lost:
        record = records.get(project / "runs", run_id, target)
        with session.target(project, record.target) as at:
            machine = at.machine(record.machine)
            lines = list(at.provider.log(machine)) if machine else []
        if not lines:
            raise
        screen.complain(f"{lost.message}; this is the console of {record.machine}, as its provider shows it:")
        screen.raw("\n".join(lines) + "\n")
        raise
