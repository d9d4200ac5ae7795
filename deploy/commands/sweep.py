"""A sweep: a run of its own for each combination of values, one after the other on one machine, and a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from deploy.billing.reaper import reap
from deploy.commands.sweep_plan import (
    Sweep,
    begin,
    check,
    left_of,
    look_ahead,
    newest_of,
    plan_to_run,
    run_of,
    say_done,
)
from deploy.commands.sweep_result import Ended, over, tell
from deploy.commands.train import Outcome, follow
from deploy.errors import DeployError, WrongUse
from deploy.pod.base.addresses import hide
from deploy.pod.base.folder import LIVE_STATES
from deploy.runs import documents, session
from deploy.runs.records import Record
from deploy.runs.session import Reach
from deploy.specs.estimate import plural
from deploy.specs.request import How
from deploy.specs.sweep import combinations, total
from deploy.steps.consent import agree, warn_of_balance
from deploy.ui import sweep_table
from deploy.ui.screen import Screen


def sweep(project: Path, texts: Sequence[str], typed: dict[str, Any], screen: Screen, how: How) -> dict[str, Any]:
    """Check and plan all combinations, ask once, run them one after the other, and compare them.

    With `detach`, put all of them into the machine's queue instead. Raises StepFailed at the end if a run failed, and
    WrongUse for a queue of several machines.
    """
    combos = combinations(texts, {**typed, "queue": typed.get("queue") or how.detach})
    first = combos[0].request
    with session.target(project, first.target) as at:
        reap(at, screen=screen)
        if how.detach and (first.nodes or at.settings.target.nodes) > 1:
            raise WrongUse(
                "--sweep with --detach puts its runs into the queue of one machine: leave --detach out, or give "
                "--nodes 1"
            )
        checked = check(at, combos, screen)
        if how.dry_run:
            planned, done = look_ahead(at, combos, checked, screen)
            _show(planned, done, at, screen)
            return _of_plans(planned, done)
        with session.launching(at.settings) as note:
            note("of a sweep")
            planned, done = plan_to_run(at, combos, checked, screen)
            _show(planned, done, at, screen)
            _agree(planned, done, at, screen, yes=how.yes)
    return _Runs(project, planned, done, screen, how).run()


def _show(planned: Sweep, done: dict[str, Record], at: Reach, screen: Screen) -> None:
    """Print one plan of all runs, and a row for each."""
    waiting = left_of(planned, done)
    if waiting:
        title = f"Plan of a sweep of {plural(len(planned.plans), 'run')}, one after the other"
        screen.table(title, ["what", "decided"], sweep_table.plan_of_sweep(waiting, total(waiting)))
        warn_of_balance(at, replace(waiting[0], expected_minutes=total(waiting).minutes), screen)
    was = {place: record for place, plan in enumerate(planned.plans) if (record := run_of(plan, done))}
    columns = ["run", *sweep_table.run_columns(planned.combinations), "expected"]
    states = {place: f"{record.state}: {record.run_id}" for place, record in was.items()}
    screen.table("Runs", columns, sweep_table.planned_rows(planned.combinations, planned.plans, states))
    say_done(screen, len(was), len(planned.plans))


def _agree(planned: Sweep, done: dict[str, Record], at: Reach, screen: Screen, *, yes: bool) -> None:
    """Ask once for all runs if they may cost more than `confirm_usd`, unless `yes`. Raises WrongUse on a refusal."""
    waiting = left_of(planned, done)
    if not waiting or not waiting[0].usd_per_hour:
        return
    usd = total(waiting).usd
    cost = f"about ${usd:.2f} in all" if usd is not None else "their duration is not known yet"
    words = f"these {plural(len(waiting), 'run')} cost ${waiting[0].usd_per_hour:.2f} an hour, {cost}"
    agree(words, usd, at.settings, screen, yes=yes)


@dataclass
class _Runs:
    """Runs the combinations that are not done, one after the other. `records` and `failures` tell how it went."""

    project: Path
    planned: Sweep
    done: dict[str, Record]
    screen: Screen
    how: How
    failures: list[DeployError] = field(default_factory=list)
    ended: str | None = None  # why not all combinations were run, if so
    interrupted: bool = False

    def run(self) -> dict[str, Any]:
        """Run them, print a table and return the answer. Raises a failure at the end, or KeyboardInterrupt."""
        records = [run_of(plan, self.done) for plan in self.planned.plans]
        waiting = [place for place, record in enumerate(records) if record is None]
        for number, place in enumerate(waiting, 1):
            self.screen.say(f"\nrun {number} of {len(waiting)}: {self.planned.combinations[place].words}")
            records[place] = self._one(place)
            if self.ended:
                break
        ended = Ended(records, self.failures, self.ended, self.interrupted)
        return tell(self.project, self.planned.combinations, self.planned.plans[:1], ended, self.screen)

    def _one(self, place: int) -> Record | None:
        """Run one combination. Returns its record, None if there is none. Sets `ended` if no other may follow."""
        record: Record | None
        failure: DeployError | None = None
        try:
            outcome = self._start(place)
            record, failure = outcome.record, outcome.failure
            self.interrupted = not failure and not self.how.detach and record.state in LIVE_STATES
        except DeployError as error:
            record, failure = newest_of(self.project, self.planned.plans[place]), error
        except KeyboardInterrupt:
            record, self.interrupted = newest_of(self.project, self.planned.plans[place]), True
        ended = over(record, failure, self.failures[-1] if self.failures else None, self.screen)
        if failure:
            self.failures.append(failure)
        if self.interrupted:
            self.ended = "it was interrupted"
        elif not (self.how.detach and record and record.state in LIVE_STATES):
            self.ended = ended
        return record

    def _start(self, place: int) -> Outcome:
        """Start one combination and, unless detached, follow it to its end."""
        with session.target(self.project, self.planned.checked[place].request.target) as at:
            record, since = begin(at, self.planned, place, self.screen, keep=self.how.keep)
            self.screen.say(f"run {record.run_id} is {record.state}")
            if self.how.detach:
                return Outcome(record, documents.of_run(record, [], None))
            return follow(at.run(record), since, self.screen)


def _of_plans(planned: Sweep, done: Mapping[str, Record]) -> dict[str, Any]:
    """The answer of a dry run."""
    waiting = left_of(planned, done)
    earlier = [run_of(plan, done) for plan in planned.plans]
    rows = [
        {"name": combination.name, "settings": dict(combination.settings), "plan": hide(plan.to_json())}
        for combination, plan in zip(planned.combinations, planned.plans, strict=True)
    ]
    return {
        "target": planned.plans[0].target,
        "runs": [{**row, "done_by": each.run_id if each else None} for row, each in zip(rows, earlier, strict=True)],
        "expected_minutes": total(waiting).minutes,
        "expected_usd": total(waiting).usd,
        "usd_per_hour": planned.plans[0].usd_per_hour,
    }
