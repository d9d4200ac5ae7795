"""Start, watch, end and download one run on several machines. Rank 0 writes its checkpoints and metrics."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from typing import Any

from deploy.errors import DeployError
from deploy.pod.base.checkpoints import age
from deploy.pod.base.folder import RunFolder
from deploy.pod.base.retry import OTHERS_PATIENCE_S
from deploy.runs import checkpoints, documents, job
from deploy.runs.records import Record
from deploy.runs.session import Reach, Reached
from deploy.shell import LinkLost, Shell
from deploy.specs.plan import GRACE_S
from deploy.steps import download
from deploy.steps.provision import Ready
from deploy.ui.screen import Screen


def start(at: Reach, made: Sequence[Ready]) -> str:
    """Start a supervisor on each machine, rank 0 last: the others wait for it, so it need not wait for them.

    Returns how the supervisor of rank 0 runs.
    """
    there = [(at.shell(each.machine), RunFolder(each.machine.path(each.plan.run_dir)), each) for each in made]
    for shell, folder, each in there[1:]:  # a job of an earlier attempt may still wait for its first machine
        job.end(shell, folder, each.plan.grace_s)
    session = ""
    started: list[tuple[Shell, RunFolder]] = []
    for shell, folder, each in reversed(there):
        try:
            session = job.start(shell, each.machine, each.plan, at.settings.tmux_socket)
        except BaseException:
            for its, of_run in started:
                job.request_stop(its, of_run)
            raise
        started.append((shell, folder))
    return session


def gather_checkpoints(at: Reach, record: Record, screen: Screen) -> None:
    """Download the checkpoint of a machine that was rank 0 in an earlier attempt, if it is the newest anywhere.

    The ranks depend on the machines' addresses, which may have changed. Log and metrics are downloaded too, so that
    the new rank 0 continues them.
    """
    first = at.run(record)
    for other in at.others(record):  # even if the machine of rank 0 is new and has nothing of the run yet
        theirs, known = (checkpoints.whole(each.shell, each.folder)[-1:] for each in (other, first))
        at_home = download.newest_checkpoint(first)
        known += [at_home] if at_home else []
        if theirs and all(age(theirs[0]) > age(each) for each in known):
            download.bring_record(other)
            download.bring_checkpoint(other, theirs[0], None, screen)


def look(reached: Reached, seen: job.Status | None) -> Iterator[dict[str, Any]]:
    """Yield the status of each machine, rank 0 first. One that is gone or does not answer counts as lost."""
    yield documents.of_node(0, reached.record.machine, seen if reached.machine else None)
    there = {each.record.machine: each for each in reached.others()}
    for number, name in enumerate(reached.record.others, start=1):
        its = None
        if name in there:
            with contextlib.suppress(LinkLost):
                there[name].shell.patience_s = OTHERS_PATIENCE_S
                its = job.look(there[name].shell, there[name].folder)
        yield documents.of_node(number, name, its)


def logs(reached: Reached, screen: Screen, *, follow: bool) -> Iterator[str]:
    """Yield the lines of all logs in pieces; with `follow`, as they grow, until rank 0 has ended.

    Reports a lost machine once, and drops it. Raises LinkLost if rank 0's is lost.
    """
    every = [job.NodeLines(each.shell, each.folder, n) for n, each in enumerate([reached, *reached.others()])]
    for other in every[1:]:
        other.tail.shell.patience_s = OTHERS_PATIENCE_S
    while True:
        status = job.look(reached.shell, reached.folder) if follow else None
        is_over = status is None or status.final
        for each in list(every):
            try:
                yield from each.pieces(to_the_end=is_over)
            except (LinkLost, OSError) as error:
                if each is every[0]:
                    raise
                screen.complain(f"node {each.node}: {error}")
                every.remove(each)
        if is_over:
            return
        time.sleep(job.POLL_S)


def end_others(reached: Reached, screen: Screen) -> None:
    """End the other ranks after rank 0 has ended, and download log and status of each into `nodes/<rank>/`.

    These files show why a rank left. A machine that cannot be asked does not change the result of the run.
    """
    for rank, name in enumerate(reached.record.others, start=1):
        try:
            for other in reached.others(name):
                other.shell.patience_s = OTHERS_PATIENCE_S
                if reached.record.state != "failed":  # then the others end by themselves, a moment later
                    job.wait_for_end(other.shell, other.folder, GRACE_S)
                job.end(other.shell, other.folder, GRACE_S)
                download.bring_files(other, ("train.log", "status.json"), below=("nodes", str(rank)))
        except (DeployError, OSError) as error:
            screen.say(f"node {rank}, {name}, could not be asked how it ended: {error}")
