"""PURE: decide how an attempt ended, from the job's exit code, its last event and what was asked of it."""

from __future__ import annotations

from dataclasses import dataclass

from deploy.pod.job.restarts import NOT_A_CRASH

STATES = {
    "done": "succeeded",
    "stopped": "stopped",
    "wrong_use": "failed",
    "failed": "failed",
}  # by the app's last event


@dataclass(frozen=True)
class Ending:
    """What is known once the job and all its processes have ended."""

    exit_code: int
    event: str | None = None  # the reason in the app's last event, a key of STATES; None without one
    message: str | None = None  # of that event
    ran: bool = True  # whether torchrun had started its ranks
    nodes: int = 1
    is_follower: bool = False  # another machine decides how the run ends
    stop_asked: bool = False  # by the user or by the guard
    stop_passed_on: bool = False  # to the job, which was still running
    expired: str | None = None  # the guard's reason, if it stopped the run
    oom_kills: int = 0  # processes of the machine that were killed meanwhile because memory ran out
    killed_after_s: float | None = None  # seconds from the stop to its end by force; None: it ended by itself


def judge(end: Ending) -> tuple[str, str | None]:
    """Return the final state and its reason."""
    if end.killed_after_s is not None:
        by_force = f"ended by force: it did not stop within {end.killed_after_s:g} s"
        state, why = stopped(end.expired, None)
        return state, f"{why}; {by_force}" if why else by_force
    if end.exit_code != 0 and not end.ran:
        return "failed", f"the {end.nodes} machines of this run did not all join"
    if end.exit_code == 0 and end.is_follower:
        return stopped(end.expired, "stopped") if end.stop_asked else ("succeeded", None)
    if end.exit_code != 0:
        said = end.message if end.event in NOT_A_CRASH else None
        memory = "; meanwhile memory ran out, and the system killed a process" if end.oom_kills > 0 else ""
        return "failed", said or f"the job {how(end.exit_code)}{memory}"
    if end.event:
        state = STATES.get(end.event, "failed")
        return stopped(end.expired, end.message) if state == "stopped" else (state, end.message)
    if end.stop_passed_on:
        return stopped(end.expired, "stopped before training began")
    return "failed", "the job exited with code 0 but did not report its end"


def stopped(expired: str | None, said: str | None) -> tuple[str, str | None]:
    """Return state and reason of a stopped run: "expired" if the guard stopped it, else "stopped"."""
    return ("expired", expired) if expired else ("stopped", said)


def how(exit_code: int) -> str:
    return f"was killed by signal {-exit_code}" if exit_code < 0 else f"ended with exit code {exit_code}"
