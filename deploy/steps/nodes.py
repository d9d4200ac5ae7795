"""One run on several machines: started, looked at, ended and gathered together. That of rank 0 writes the run."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from typing import Any

from deploy.errors import DeployError
from deploy.pod.base.folder import RunFolder
from deploy.runs import checkpoints, job
from deploy.runs import documents as answers
from deploy.runs.records import Record
from deploy.runs.session import Reach, Reached
from deploy.shell import LinkLost
from deploy.specs.plan import GRACE_S
from deploy.steps import download as home
from deploy.steps.provision import Ready
from deploy.ui.screen import Screen

PATIENCE_S = 20  # with a lost connection to a machine that is only looked at beside the one of rank 0


def start(at: Reach, made: Sequence[Ready]) -> str:
    """A supervisor on each machine, that of rank 0 last: whom the others wait for should have nobody to wait for.

    Returns how the supervisor of rank 0 runs.
    """
    folders = [(at.shell(each.machine), RunFolder(each.machine.path(each.plan.run_dir))) for each in made]
    for shell, folder in folders[1:]:  # of an earlier attempt, waiting for its first machine to come back
        job.end(shell, folder, made[0].plan.grace_s)
    session = ""
    for number in reversed(range(len(made))):
        machine, plan = made[number].machine, made[number].plan
        try:
            session = job.start(folders[number][0], machine, plan, at.settings.tmux_socket)
        except BaseException:
            for shell, folder in folders[number + 1 :]:
                job.request_stop(shell, folder)
            raise
    return session


def gather_checkpoints(at: Reach, record: Record, screen: Screen) -> None:
    """What a machine has that wrote an earlier attempt, when addresses were others, comes home if nobody has more.

    What the run told comes with it: the machine that writes from now on goes on with that.
    """
    first = at.run(record)
    for other in at.others(record):  # also where the one of rank 0 is new, and has nothing of the run yet
        theirs, known = (checkpoints.whole(each.shell, each.folder)[-1:] for each in (other, first))
        at_home = home.newest_checkpoint(first)
        known += [at_home] if at_home else []
        if theirs and all(checkpoints.age(theirs[0]) > checkpoints.age(each) for each in known):
            home.bring_record(other)
            home.bring_checkpoint(other, theirs[0], None, screen)


def look(reached: Reached, seen: job.Status | None) -> Iterator[dict[str, Any]]:
    """Each machine as it is, that of rank 0 first; one that is gone or does not answer is lost."""
    yield answers.of_node(0, reached.record.machine, seen if reached.machine else None)
    there = {each.record.machine: each for each in reached.others()}
    for number, name in enumerate(reached.record.others, start=1):
        its = None
        if name in there:
            with contextlib.suppress(LinkLost):
                there[name].shell.patience_s = PATIENCE_S
                its = job.look(there[name].shell, there[name].folder)
        yield answers.of_node(number, name, its)


def logs(reached: Reached, screen: Screen) -> Iterator[str]:
    """All logs by line, as they grow, until rank 0 has ended. A machine that is lost is said once, and left out."""
    first, *others = (job.NodeLines(each.shell, each.folder, n) for n, each in enumerate([reached, *reached.others()]))
    for other in others:
        other.tail.shell.patience_s = PATIENCE_S
    while True:
        status = job.look(reached.shell, reached.folder)
        is_over = status is None or status.final
        text = first.read(to_the_end=is_over)
        for other in list(others):
            try:
                text += other.read(to_the_end=is_over)
            except (LinkLost, OSError) as error:
                screen.complain(f"node {other.node}: {error}")
                others.remove(other)
        yield text
        if is_over:
            return
        time.sleep(job.POLL_S)


def end_others(reached: Reached, screen: Screen) -> None:
    """Once rank 0 has ended, nobody waits for it any more; log and status of each come home, into `nodes/<rank>/`.

    Why one of them left is written there. One that cannot be asked changes nothing about the run.
    """
    for rank, name in enumerate(reached.record.others, start=1):
        try:
            for other in reached.others(name):
                other.shell.patience_s = PATIENCE_S
                if reached.record.state != "failed":  # then it ends by itself, a moment later
                    job.wait_for_end(other.shell, other.folder, GRACE_S)
                job.end(other.shell, other.folder, GRACE_S)
                home.bring_files(other, ("train.log", "status.json"), below=("nodes", str(rank)))
        except (DeployError, OSError) as error:
            screen.say(f"node {rank}, {name}, could not be asked how it ended: {error}")
