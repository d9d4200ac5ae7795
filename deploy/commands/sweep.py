"""A sweep: a run of its own for each combination of values, one after the other on one machine, and a table."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from deploy.billing import costs
from deploy.billing.reaper import reap
from deploy.commands.train import Outcome, follow, start
from deploy.errors import DeployError, StepFailed, WrongUse, command
from deploy.pod.base.addresses import hide
from deploy.pod.base.folder import FINAL_STATES, LIVE_STATES
from deploy.runs import checkpoints, documents, session, sweeps
from deploy.runs import records as runs
from deploy.runs.records import Record
from deploy.runs.session import Reach
from deploy.runs.situation import Situation
from deploy.specs.estimate import plural
from deploy.specs.facts import Facts
from deploy.specs.plan import Plan, make
from deploy.specs.request import Request
from deploy.specs.sweep import Combination, combinations, end_of_sweep, identity, refuse_same, total
from deploy.steps import download, resolve, restore
from deploy.steps.code_check import preview_code, prove_code
from deploy.steps.consent import agree, warn_of_balance
from deploy.steps.look import look_at_host
from deploy.steps.provision import pack_images, refuse_too_much
from deploy.ui import sweep_table
from deploy.ui.screen import Screen

CHECKS_AT_ONCE = 4
WAITED_FOR = 8  # more combinations take long enough to be told
CENT = 0.005  # is shown as $0.01
COMPARED_MOST = 5  # columns of `compare` that still fit


@dataclass(frozen=True)
class Sweep:
    """All combinations, checked and planned. `snapshot`: the code that all of them train with; None: not taken."""

    combinations: Sequence[Combination]
    checked: Sequence[resolve.Checked]
    plans: Sequence[Plan]
    facts: Facts
    snapshot: str | None = None


def sweep(
    project: Path,
    texts: Sequence[str],
    typed: dict[str, Any],
    screen: Screen,
    *,
    detach: bool = False,
    dry_run: bool = False,
    keep: bool = False,
    yes: bool = False,
) -> dict[str, Any]:
    """Check and plan all combinations, ask once, run them one after the other, and compare them.

    With `detach`, put all of them into the machine's queue instead. Raises StepFailed at the end if a run failed.
    """
    combos = combinations(texts, {**typed, "queue": typed.get("queue") or detach})
    first = combos[0].request
    with session.target(project, first.target) as at:
        reap(at, screen=screen)
        _refuse_several_machines(at, first, detach=detach)
        checked = _check(at, combos, screen)
        if dry_run:
            looked_up = look_at_host(at, resolve.gather(at, checked[0]), screen)
            planned = _plan(at, combos, checked, looked_up)
            anew = _all_anew(first)
            done = {} if anew else sweeps.earlier(at, planned.plans, preview_code(at.settings), look=False)
            _show(planned, done, at, screen)
            return _of_plans(planned, done)
        with session.launching(at.settings) as note:
            at.situation = Situation(project)  # as it is now that no other command starts a run here
            note("of a sweep")
            if not first.queue:
                at.refuse_second()
            if not _all_anew(first):
                _refuse_to_forget(at, checked, screen)
            checked = [resolve.prepare_orl(at, each, screen.say) for each in checked]
            planned = _plan(at, combos, checked, resolve.gather(at, checked[0]))
            planned = replace(planned, snapshot=prove_code(at.settings))
            done = {} if _all_anew(first) else sweeps.earlier(at, planned.plans, planned.snapshot)
            _bring_home(at, done, screen)
            _show(planned, done, at, screen)
            _agree(planned, done, at, screen, yes=yes)
    return _Runs(project, planned, done, screen, keep=keep, detach=detach).run()


def _check(at: Reach, combos: Sequence[Combination], screen: Screen) -> list[resolve.Checked]:
    """Check every combination as `train` does. Raises WrongUse for the first that cannot work."""
    if len(combos) > WAITED_FOR:
        screen.say(f"checking {len(combos)} combinations")
    first = resolve.check(at, combos[0].request)
    with ThreadPoolExecutor(CHECKS_AT_ONCE) as several:  # each waits for a process that resolves its configuration
        others = several.map(lambda each: resolve.check(at, each.request, first.suspicious), combos[1:])
        checked = [first, *others]
    refuse_same(combos, [each.config for each in checked])
    for note in dict.fromkeys(each.note for each in checked if each.note):
        screen.say(note)
    return [
        replace(each, request=replace(each.request, combination=identity(each.request)), note=None) for each in checked
    ]


def _plan(at: Reach, combos: Sequence[Combination], checked: Sequence[resolve.Checked], looked_up: Facts) -> Sweep:
    plans: list[Plan] = []
    alike: dict[str, Facts] = {}
    for each in checked:
        kind = json.dumps([each.config["recipe"]["name"], each.config["backbone"], each.request.nodes])
        own = resolve.gather_again(at.settings, each, looked_up, alike.get(kind))
        alike[kind] = own
        plans.append(make(at.settings, each.request, own, tryout=each.tryout))
        refuse_too_much(plans[-1], own)
    return Sweep(combos, checked, plans, looked_up)


def _refuse_to_forget(at: Reach, checked: Sequence[resolve.Checked], screen: Screen) -> None:
    """Refuse a new run after a lost one as `train` does, unless the lost run is of this sweep: that is typed again."""
    newest = next(iter(at.situation.of(at.settings.target.name)), None)
    if newest is None or sweeps.mark(at.settings.runs, newest) not in {each.request.combination for each in checked}:
        restore.refuse_to_forget(at)
        return
    record, _ = at.look(newest)
    if record.state == "lost":
        screen.say(
            f"{documents.how_it_is(record)}; to continue it instead: {documents.resume(record)} --run {newest.run_id}"
        )


def _bring_home(at: Reach, done: Mapping[str, Record], screen: Screen) -> None:
    """Download the results of earlier runs that nobody followed to their end: the table needs them."""
    for record in done.values():
        if record.state == "succeeded" and not sweeps.is_home(at.settings.runs, record):
            reached = at.run(record)
            if reached.machine is not None:
                download.bring(reached, screen)


def _show(planned: Sweep, done: dict[str, Record], at: Reach, screen: Screen) -> None:
    """Print one plan of all runs, and a row for each."""
    waiting = _waiting(planned, done)
    if waiting:
        title = f"Plan of a sweep of {plural(len(planned.plans), 'run')}, one after the other"
        screen.table(title, ["what", "decided"], sweep_table.plan_of_sweep(waiting, total(waiting)))
        warn_of_balance(at, replace(waiting[0], expected_minutes=total(waiting).minutes), screen)
    was = {place: record for place, plan in enumerate(planned.plans) if (record := _done(plan, done))}
    columns = ["run", *sweep_table.run_columns(planned.combinations), "expected"]
    states = {place: f"{record.state}: {record.run_id}" for place, record in was.items()}
    screen.table("Runs", columns, sweep_table.planned_rows(planned.combinations, planned.plans, states))
    if was:
        screen.say(
            f"not started again: {len(was)} of {plural(len(planned.plans), 'run')}, done or alive with the same code, "
            "data and settings; --resume none runs all anew"
        )


def _agree(planned: Sweep, done: dict[str, Record], at: Reach, screen: Screen, *, yes: bool) -> None:
    """Ask once for all runs if they may cost more than `confirm_usd`, unless `yes`. Raises WrongUse on a refusal."""
    waiting = _waiting(planned, done)
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
    keep: bool
    detach: bool
    failures: list[DeployError] = field(default_factory=list)
    ended: str | None = None  # why not all combinations were run, if so
    interrupted: bool = False

    def run(self) -> dict[str, Any]:
        """Run them, print a table and return the answer. Raises a failure at the end, or KeyboardInterrupt."""
        records = [_done(plan, self.done) for plan in self.planned.plans]
        waiting = [place for place, record in enumerate(records) if record is None]
        for number, place in enumerate(waiting, 1):
            self.screen.say(f"\nrun {number} of {len(waiting)}: {self.planned.combinations[place].words}")
            records[place] = self._one(place)
            if self.ended:
                break
        return self._tell(records)

    def _one(self, place: int) -> Record | None:
        """Run one combination. Returns its record, None if there is none. Sets `ended` if no other may follow."""
        record: Record | None
        failure: DeployError | None = None
        try:
            outcome = self._start(place)
            record, failure = outcome.record, outcome.failure
            self.interrupted = not failure and not self.detach and record.state in LIVE_STATES
        except DeployError as error:
            record, failure = self._newest(place), error
        except KeyboardInterrupt:
            record, self.interrupted = self._newest(place), True
        if failure:
            if record and record.state in runs.UNFINISHED:  # it is not the newest one for long
                failure.next_command = f"{documents.resume(record)} --run {record.run_id}"
            self.screen.failure(failure)
            repeated = bool(self.failures) and self.failures[-1].message == failure.message
            self.failures.append(failure)
        if self.interrupted:
            self.ended = "it was interrupted"
        elif not (self.detach and record and record.state in LIVE_STATES):
            self.ended = end_of_sweep(
                record.state if record else None,
                ran=bool(record and record.session),
                exit_code=failure.exit_code if failure else 0,
                repeated=bool(failure and repeated),
            )
        return record

    def _start(self, place: int) -> Outcome:
        """Start one combination and, unless detached, follow it to its end."""
        checked = self.planned.checked[place]
        with session.target(self.project, checked.request.target) as at:
            with session.launching(at.settings) as note:
                if not checked.request.queue:
                    at.refuse_second()
                at.rent(checked.request.renting)
                own = resolve.gather_again(at.settings, checked, self.planned.facts)
                plan = make(at.settings, checked.request, own, tryout=checked.tryout)
                note(plan.run_id)
                at.snapshot = self.planned.snapshot
                pack_images(at.settings, checked, self.screen)
                record, since = start(at, plan, checked, own, self.screen, keep=self.keep)
            self.screen.say(f"run {record.run_id} is {record.state}")
            if self.detach:
                return Outcome(record, documents.of_run(record, [], None))
            return follow(at.run(record), since, self.screen)

    def _newest(self, place: int) -> Record | None:
        """The run of a combination whose start failed; None if it was not recorded."""
        plan = self.planned.plans[place]
        every = runs.every(self.project / "runs", plan.target)
        return next((each for each in every if each.name == plan.request.name and each.created > plan.created), None)

    def _tell(self, records: Sequence[Record | None]) -> dict[str, Any]:
        """Print the table and the document. Raises if a run failed, or if not all were run."""
        combos, book, plan = self.planned.combinations, self.project / "runs", self.planned.plans[0]
        usd = costs.by_run(runs.every(book))
        told = sweeps.document(book, plan.target, list(zip(combos, records, strict=True)), usd, self.ended)
        missing = sum(record is None for record in records)
        not_run = f"{missing} of {plural(len(records), 'run')} {'was' if missing == 1 else 'were'} not started"
        if self.ended:
            self.screen.say(f"\nthe sweep ends: {self.ended}" + (f"; {not_run}" if missing else ""))
        self.screen.table(
            "\nSweep", sweep_table.result_columns(combos, told["runs"]), sweep_table.result_rows(told["runs"])
        )
        if told["best"]:
            self.screen.say(f"best by {checkpoints.named(told['measure'])}")
        if told["cost_usd"] >= CENT:
            self.screen.say(f"cost: ${told['cost_usd']:.2f}; no time of a machine is counted twice")
        self.screen.commands(list(_next(told, plan, is_paid=plan.usd_per_hour != 0)))
        self.screen.document(told)
        if self.interrupted:
            raise KeyboardInterrupt
        if self.failures:
            failed = f"{len(self.failures)} of {plural(len(records), 'run')} did not succeed"
            end = DeployError(f"{failed}; {not_run}" if missing else failed)
            end.exit_code = self.failures[-1].exit_code if self.ended else StepFailed.exit_code
            raise end
        return told


def _next(told: Mapping[str, Any], plan: Plan, *, is_paid: bool) -> Iterator[tuple[str, str]]:
    """Commands that make sense after a sweep, each with its purpose. `plan`: of any of its runs."""
    over = [run["run_id"] for run in told["runs"] if run["state"] in FINAL_STATES]
    if any(run["state"] in LIVE_STATES for run in told["runs"]):
        yield "see a run", command(f"status{documents.on(plan)} --run RUN")
    if told["best"]:
        yield (
            "fetch its best checkpoint",
            command(f"fetch-checkpoint{documents.on(plan)} --run {told['best']} --which best"),
        )
    if 2 <= len(over) <= COMPARED_MOST:
        yield "compare curves", command(f"compare {' '.join(over)}")
    if is_paid and over:
        yield "release the machine", command(f"down{documents.on(plan)}")


def _done(plan: Plan, done: Mapping[str, Record]) -> Record | None:
    return done.get(plan.request.combination or "")


def _waiting(planned: Sweep, done: Mapping[str, Record]) -> list[Plan]:
    return [plan for plan in planned.plans if _done(plan, done) is None]


def _all_anew(request: Request) -> bool:
    """Whether the user asked, by --resume none, to run also what an earlier run did."""
    return "resume" in request.given and request.resume == "none"


def _refuse_several_machines(at: Reach, request: Request, *, detach: bool) -> None:
    if detach and (request.nodes or at.settings.target.nodes) > 1:
        raise WrongUse(
            "--sweep with --detach puts its runs into the queue of one machine: leave --detach out, or give --nodes 1"
        )


def _of_plans(planned: Sweep, done: Mapping[str, Record]) -> dict[str, Any]:
    """The answer of a dry run."""
    waiting = _waiting(planned, done)
    earlier = [_done(plan, done) for plan in planned.plans]
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
