"""A sweep over several targets: each machine makes one run after the other until no combination is left."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deploy.billing.reaper import reap
from deploy.commands.sweep_plan import Sweep, begin, check, look_ahead, newest_of, plan_to_run, run_of, say_done
from deploy.commands.sweep_result import Ended, over, tell
from deploy.commands.train import finish
from deploy.errors import DeployError, NoMachine, WrongUse
from deploy.pod.base.addresses import hide
from deploy.pod.base.folder import LIVE_STATES
from deploy.pod.base.retry import CONNECT_PATIENCE_S, FOLLOW_PATIENCE_S
from deploy.runs import session
from deploy.runs.records import Record
from deploy.runs.session import Reach, Reached
from deploy.shell import LinkLost
from deploy.shell.awake import awake_s
from deploy.specs.estimate import plural
from deploy.specs.plan import Plan
from deploy.specs.request import How
from deploy.specs.sweep import combinations, dearest, next_place
from deploy.steps.consent import agree, warn_of_preemption
from deploy.ui import sweep_table
from deploy.ui.screen import Screen

LOOK_S = 2.0  # between two looks at the runs
ANSWER_S = 10.0  # for a machine to answer a look: the others wait meanwhile


def spread(
    project: Path, texts: Sequence[str], names: Sequence[str], typed: dict[str, Any], screen: Screen, how: How
) -> dict[str, Any]:
    """Check and plan all combinations on each target, ask once, run them on all targets at once, and compare them.

    Raises WrongUse if a combination or a target is wrong, and a failure at the end if a run failed.
    """
    if how.detach or typed.get("queue"):
        flag = "--detach" if how.detach else "--queue"
        raise WrongUse(f"--sweep on several targets is divided while it runs: leave {flag} out, or give one target")
    combos = {name: combinations(texts, {**typed, "target": name}) for name in names}
    planned: dict[str, Sweep] = {}
    done: dict[str, dict[str, Record]] = {}
    with ExitStack() as stack:
        targets = {name: stack.enter_context(session.target(project, name)) for name in names}
        for at in targets.values():
            reap(at, screen=screen)
        checked = {name: check(at, combos[name], screen) for name, at in targets.items()}
        for name, at in targets.items():
            if how.dry_run:
                planned[name], done[name] = look_ahead(at, combos[name], checked[name], screen)
            else:
                stack.enter_context(session.launching(at.settings))("of a sweep")
                planned[name], done[name] = plan_to_run(at, combos[name], checked[name], screen)
        was = _earlier(planned, done)
        _show(planned, was, targets, screen)
        if how.dry_run:
            return _of_plans(planned, was)
        _agree(planned, was, targets, screen, yes=how.yes)
    return _Spread(project, planned, was, screen, keep=how.keep).run()


def _earlier(planned: Mapping[str, Sweep], done: Mapping[str, Mapping[str, Record]]) -> list[Record | None]:
    """The earlier run of each combination, on any of the targets."""
    of_targets = [[run_of(plan, done[name]) for plan in each.plans] for name, each in planned.items()]
    return [next((record for record in records if record), None) for records in zip(*of_targets, strict=True)]


def _left(planned: Mapping[str, Sweep], was: Sequence[Record | None]) -> dict[str, list[Plan]]:
    """The plans of each target for the combinations that are to be run."""
    return {
        name: [plan for plan, record in zip(each.plans, was, strict=True) if record is None]
        for name, each in planned.items()
    }


def _show(
    planned: Mapping[str, Sweep], was: Sequence[Record | None], targets: Mapping[str, Reach], screen: Screen
) -> None:
    """Print one plan of all runs and targets, and a row for each run."""
    combos, left = next(iter(planned.values())).combinations, _left(planned, was)
    if not all(was):
        title = f"Plan of a sweep of {plural(len(combos), 'run')} on {plural(len(planned), 'target')}"
        screen.table(title, ["what", "decided"], sweep_table.plan_of_targets(left))
        for at in targets.values():
            warn_of_preemption(at.settings, screen)
    states = [f"{record.state}: {record.run_id} on {record.target}" if record else "waiting" for record in was]
    rows = [
        (combo.name, *(value for _, value in combo.settings), state)
        for combo, state in zip(combos, states, strict=True)
    ]
    screen.table("Runs", ["run", *sweep_table.run_columns(combos), "state"], rows)
    say_done(screen, sum(map(bool, was)), len(combos))


def _agree(
    planned: Mapping[str, Sweep],
    was: Sequence[Record | None],
    targets: Mapping[str, Reach],
    screen: Screen,
    *,
    yes: bool,
) -> None:
    """Ask once for all runs if they may cost more than the lowest `confirm_usd`. Raises WrongUse on a refusal."""
    left = _left(planned, was)
    paid = {name: plans[0].usd_per_hour for name, plans in left.items() if plans and plans[0].usd_per_hour}
    if not paid:
        return
    usd = dearest(left)
    cost = f"at most about ${usd:.2f} for all runs" if usd is not None else "their duration is not known yet"
    rates = " and ".join(f"${rate:.2f} an hour on {name}" for name, rate in paid.items())
    words = f"these {plural(sum(record is None for record in was), 'run')} cost {rates}, {cost}"
    strictest = min((targets[name].settings for name in paid), key=lambda settings: settings.target.confirm_usd)
    agree(words, usd, strictest, screen, yes=yes)


def _of_plans(planned: Mapping[str, Sweep], was: Sequence[Record | None]) -> dict[str, Any]:
    """The answer of a dry run: a row for each run, with its plan on each target."""
    left, combos = _left(planned, was), next(iter(planned.values())).combinations
    rows = [
        {
            "name": combo.name,
            "settings": dict(combo.settings),
            "plans": {name: hide(each.plans[place].to_json()) for name, each in planned.items()},
            "done_by": record.run_id if record else None,
        }
        for place, (combo, record) in enumerate(zip(combos, was, strict=True))
    ]
    rates = {name: each.plans[0].usd_per_hour for name, each in planned.items()}
    return {"target": ",".join(planned), "runs": rows, "expected_usd": dearest(left), "usd_per_hour": rates}


@dataclass
class _Lane:
    """One target: the run that its machine works on, and why the target takes no more, if so."""

    name: str
    planned: Sweep
    place: int = 0  # of the combination, while `record` is set
    record: Record | None = None  # of the run, as it was last seen
    connection: ExitStack = field(default_factory=ExitStack)
    at: Reach | None = None
    reached: Reached | None = None  # None: not yet, or the connection is lost
    answered: float = 0.0  # when its run was last seen alive, in seconds awake
    tries_again: bool = False  # since an error of the connection or the machine
    failure: DeployError | None = None  # of the newest run here
    why_over: str | None = None

    def connect(self, project: Path) -> Reach:
        """Connect anew: the target's machine may be another one than before, or gone."""
        self.connection.close()
        self.reached = None
        self.at = self.connection.enter_context(session.target(project, self.name))
        return self.at

    def looked(self) -> Reached:
        """The run with its current state. Raises LinkLost if its machine does not answer within ANSWER_S."""
        assert self.at is not None
        assert self.record is not None
        reached = self.reached or self.at.run(self.record)
        reached.shell.patience_s = ANSWER_S
        reached, _ = reached.look()
        self.record = reached.record  # with what it has cost by now
        return reached

    def heard(self) -> None:
        """Note that the machine answered, and that its run is alive."""
        self.answered, self.tries_again = awake_s(), False

    def is_given_up(self) -> bool:
        """Whether the machine has been silent for longer than `train` would wait for it."""
        return awake_s() - self.answered > FOLLOW_PATIENCE_S

    def free(self) -> None:
        self.connection.close()
        self.at = self.record = self.reached = None


@dataclass
class _Spread:
    """Divides the combinations between targets: a target whose run is over takes the next one.

    A combination whose job could not start on a target is left to the other targets.
    """

    project: Path
    planned: Mapping[str, Sweep]
    was: list[Record | None]
    screen: Screen
    keep: bool
    failures: dict[int, DeployError] = field(default_factory=dict)  # of combinations
    refused: set[tuple[str, int]] = field(default_factory=set)  # targets, and places that could not start there

    def __post_init__(self) -> None:
        self.records = list(self.was)
        self.left = [place for place, record in enumerate(self.was) if record is None]
        self.lanes = [_Lane(name, each) for name, each in self.planned.items()]

    def run(self) -> dict[str, Any]:
        """Run them, print a table and return the answer. Raises a failure at the end, or KeyboardInterrupt."""
        why: str | None = None
        interrupted = False
        try:
            while self._assign():
                time.sleep(LOOK_S)
                for lane in self.lanes:
                    if lane.record is not None:
                        self._look(lane)
            if self.left:
                why = "; ".join(f"{lane.name}: {lane.why_over}" for lane in self.lanes if lane.why_over) or None
        except KeyboardInterrupt:
            why, interrupted = "it was interrupted", True
        finally:
            for lane in self.lanes:
                lane.free()
        first = next(iter(self.planned.values()))
        failures = [self.failures[place] for place in sorted(self.failures)]
        plans = [each.plans[0] for each in self.planned.values()]
        return tell(
            self.project, first.combinations, plans, Ended(self.records, failures, why, interrupted), self.screen
        )

    def _assign(self) -> bool:
        """Start a combination on each target that is free. Returns whether any run is alive."""
        for lane in self.lanes:
            while lane.record is None and lane.why_over is None:
                place = next_place(lane.name, self.left, self.refused)
                if place is None:
                    break
                self._begin(lane, place)
        return any(lane.record is not None for lane in self.lanes)

    def _begin(self, lane: _Lane, place: int) -> None:
        self.left.remove(place)
        number = len(self.records) - len(self.left)
        words = lane.planned.combinations[place].words
        self.screen.say(f"\n{lane.name}: starts {words} (run {number} of {len(self.records)})")
        lane.place = place
        try:
            record, _ = begin(lane.connect(self.project), lane.planned, place, self.screen, keep=self.keep)
            lane.record = self.records[place] = record
            lane.heard()
            self.failures.pop(place, None)
            self.screen.say(f"{lane.name}: run {record.run_id} is {record.state}")
        except DeployError as error:
            self._over(lane, newest_of(self.project, lane.planned.plans[place]), error)
        except KeyboardInterrupt:
            self.records[place] = newest_of(self.project, lane.planned.plans[place])
            raise

    def _look(self, lane: _Lane) -> None:
        """Look whether a run is over. A machine may stay silent for as long as `train` would wait for it."""
        try:
            reached = lane.reached = lane.looked()
            self.records[lane.place] = reached.record
            if reached.record.state in LIVE_STATES:
                lane.heard()
                return
            self.screen.say(f"\n{lane.name}: run {reached.record.run_id} is over")
            reached.shell.patience_s = CONNECT_PATIENCE_S
            outcome = finish(reached, self.screen)
            self._over(lane, outcome.record, outcome.failure)
        except DeployError as error:
            is_first, lane.tries_again = not lane.tries_again, True
            if not is_first and (lane.is_given_up() or not isinstance(error, (LinkLost, NoMachine))):
                self._over(lane, self.records[lane.place], error)
                return
            if is_first:
                self.screen.say(f"{lane.name}: {error.message}; trying again")
            lane.connect(self.project)  # and ask the provider again: the machine may be gone, or have another address

    def _over(self, lane: _Lane, record: Record | None, failure: DeployError | None) -> None:
        """Note how a run ended, and decide whether its target takes another combination."""
        place, ran = lane.place, bool(record and record.session)
        self.records[place] = record
        lane.why_over = over(record, failure, lane.failure, self.screen)
        lane.failure = failure
        if failure:
            self.failures[place] = failure
        if failure and not ran:
            self.refused.add((lane.name, place))
            self.left.insert(0, place)
        if lane.why_over:
            self.screen.say(f"{lane.name} takes no more runs: {lane.why_over}")
        lane.free()
