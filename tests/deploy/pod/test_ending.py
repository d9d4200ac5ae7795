"""How an attempt ended: the table of cases. test_supervisor.py has real jobs."""

from __future__ import annotations

import pytest

from deploy.pod.job.ending import Ending, judge

BY_FORCE = "ended by force: it did not stop within 60 s"
NO_MEMORY = "meanwhile memory ran out, and the system killed a process"
NO_END = "the job exited with code 0 but did not report its end"


@pytest.mark.parametrize(
    ("end", "state", "reason"),
    [
        (Ending(0, "done"), "succeeded", None),
        (Ending(0, "done", "24 epochs"), "succeeded", "24 epochs"),
        (Ending(0), "failed", NO_END),
        (Ending(0, stop_asked=True), "failed", NO_END),  # asked after it had ended
        (Ending(0, "unheard of"), "failed", None),
        # stopped by the user, or by the guard, whose reason counts
        (Ending(0, "stopped", "at step 40", stop_asked=True, stop_passed_on=True), "stopped", "at step 40"),
        (Ending(0, "stopped", "at step 40", stop_passed_on=True, expired="max_usd"), "expired", "max_usd"),
        (Ending(0, stop_asked=True, stop_passed_on=True), "stopped", "stopped before training began"),
        (Ending(0, stop_passed_on=True, expired="max_hours"), "expired", "max_hours"),
        # a crash, and an error that the app explains
        (Ending(1), "failed", "the job ended with exit code 1"),
        (Ending(-9), "failed", "the job was killed by signal 9"),
        (Ending(1, oom_kills=1), "failed", f"the job ended with exit code 1; {NO_MEMORY}"),
        (Ending(1, "failed", "the loss is not finite", oom_kills=1), "failed", "the loss is not finite"),
        (Ending(0, "done", oom_kills=1), "succeeded", None),
        (Ending(1, "done", "24 epochs"), "failed", "the job ended with exit code 1"),
        (Ending(2, "wrong_use", "no such file"), "failed", "no such file"),
        (Ending(1, "failed", "the loss is not finite"), "failed", "the loss is not finite"),
        (Ending(1, "failed"), "failed", "the job ended with exit code 1"),
        # ended by force
        (Ending(-9, killed_after_s=60.0), "stopped", BY_FORCE),
        (Ending(0, "done", killed_after_s=60.0), "stopped", BY_FORCE),
        (Ending(-9, killed_after_s=60.0, expired="max_usd"), "expired", f"max_usd; {BY_FORCE}"),
        # several machines
        (Ending(1, ran=False, nodes=3), "failed", "the 3 machines of this run did not all join"),
        (Ending(0, is_follower=True), "succeeded", None),
        (Ending(0, is_follower=True, stop_asked=True), "stopped", "stopped"),
        (Ending(0, is_follower=True, stop_asked=True, expired="max_usd"), "expired", "max_usd"),
        (Ending(1, is_follower=True), "failed", "the job ended with exit code 1"),
    ],
)
def test_the_end_of_an_attempt_has_one_state_and_reason(end: Ending, state: str, reason: str | None) -> None:
    assert judge(end) == (state, reason)
