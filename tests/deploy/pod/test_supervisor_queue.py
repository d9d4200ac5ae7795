"""The queue: runs that wait for their turn on one machine."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from deploy.pod.base import queue
from deploy.pod.base.folder import write_json
from deploy.runs import job
from tests.deploy.conftest import SoonAfter, wait_until
from tests.deploy.support.supervised import GOOD, OBEDIENT, TELL, Supervised

Make = Callable[..., Supervised]
ORDERED = TELL + 'open("../order", "a").write(os.path.basename(os.getcwd()) + " "); tell(event="end", reason="done")'


def test_runs_go_one_after_the_other_in_the_order_of_their_arrival(make: Make) -> None:
    """Each waiting run names the run before it, and its heartbeat continues."""
    first = make("first").start(OBEDIENT).begun()
    others = [make(name).start(ORDERED, queue=True).until("planned") for name in ("b", "c", "a")]
    expected = ["waiting for run first", "waiting for run b (place 2 in the queue)"]
    expected += ["waiting for run c (place 3 in the queue)"]
    for run, words in zip(others, expected, strict=True):
        wait_until(lambda run=run, words=words: run.status["reason"] == words)
    assert [each["run_id"] for each in queue.waiting(first.root)] == ["b", "c", "a"]
    heartbeat = others[-1].status["heartbeat"]
    wait_until(lambda: others[-1].status["heartbeat"] > heartbeat)
    assert not others[0].log
    first.stop()
    for run in others:
        assert run.end()[1]["state"] == "succeeded"
    assert (first.path.parent / "order").read_text().split() == ["b", "c", "a"]
    assert queue.waiting(first.root) == []


def test_a_free_machine_is_not_waited_for(make: Make) -> None:
    code, status = make().start(GOOD, queue=True).end()
    assert (code, status["state"]) == (0, "succeeded")


def test_a_run_that_waits_can_be_taken_out(make: Make) -> None:
    """The next waiting run moves up; the running one is not affected."""
    first = make("first").start(OBEDIENT).begun()
    second = make("second").start(GOOD, queue=True).until("planned")
    third = make("third").start(GOOD, queue=True).until("planned")
    second.stop()
    code, status = second.end()
    assert (code, status["state"], status["reason"]) == (0, "stopped", "stopped while it waited for its turn")
    assert not Path(second.folder.stop_request).exists()
    wait_until(lambda: third.status["reason"] == "waiting for run first")
    assert first.status["state"] == "running"
    first.stop()
    assert third.end()[1]["state"] == "succeeded"


def test_a_dead_waiter_is_passed_over(make: Make) -> None:
    """The next run moves up, and the laptop reports the dead one as lost."""
    first = make("first").start(OBEDIENT).begun()
    second = make("second").start(GOOD, queue=True).until("planned")
    third = make("third").start(GOOD, queue=True).until("planned")
    assert second.process is not None
    second.process.kill()
    second.process.wait()
    wait_until(lambda: third.status["reason"] == "waiting for run first")
    lost = job.look(SoonAfter(), second.folder)
    assert lost is not None
    assert lost.state == "lost"
    first.stop()
    assert third.end()[1]["state"] == "succeeded"


def test_nobody_jumps_the_queue(make: Make) -> None:
    """A run without `queue` is refused, and its reason names the run that waits."""
    first = make("first").start(OBEDIENT).begun()
    make("second").start(OBEDIENT, queue=True).until("planned")
    refused = make("third").start(GOOD)
    assert refused.end()[0] == 2
    assert "busy with run second" in refused.status["reason"]
    first.stop()


@pytest.mark.skipif(os.name == "nt", reason="a lock is not inherited on Windows: run on Linux or macOS")
def test_waiting_outlasts_the_job_of_a_killed_supervisor(make: Make) -> None:
    """The killed supervisor's deaf job is killed after the grace. Meanwhile the waiting run's heartbeat continues."""
    first = make("first").start(TELL + 'print("begun", flush=True); time.sleep(600)').begun()
    wait_until(lambda: first.status.get("job_pid"))
    assert first.process is not None
    first.process.kill()
    first.process.communicate()
    second = make("second").start(GOOD, queue=True, grace_s=3).until("planned")
    heartbeat = second.status["heartbeat"]
    wait_until(lambda: second.status["heartbeat"] > heartbeat)
    assert second.end()[1]["state"] == "succeeded"


def test_a_jump_of_the_clock_changes_no_order(make: Make) -> None:
    """Tickets are ordered by number, not by time."""
    first = make("first").start(OBEDIENT).begun()
    folder = Path(first.root.queue)
    late = make("late").start(GOOD, queue=True).until("planned")
    for file in folder.glob("*.ticket"):
        os.utime(file, (time.time() + 1e6, time.time() + 1e6))
    second = make("second").start(GOOD, queue=True).until("planned")
    wait_until(lambda: second.status["reason"] == "waiting for run late (place 2 in the queue)")
    first.stop()
    assert late.end()[1]["state"] == second.end()[1]["state"] == "succeeded"


def test_a_refused_run_leaves_no_secrets_behind(make: Make) -> None:
    first = make("first").start(OBEDIENT).begun()
    second = make("second")
    second.path.mkdir(parents=True)
    write_json(Path(second.folder.secrets), {"WANDB_API_KEY": "never-to-be-seen"})
    assert second.start(GOOD).end()[0] == 2
    assert not Path(second.folder.secrets).exists()
    first.stop()
