"""Plan a sweep on one target: check all combinations, find what earlier runs did, and start one of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from deploy.commands.train import start
from deploy.runs import documents, job, records, session, sweeps
from deploy.runs.records import Record
from deploy.runs.session import Reach
from deploy.runs.situation import Situation
from deploy.specs.estimate import plural
from deploy.specs.facts import Facts
from deploy.specs.plan import Plan, make
from deploy.specs.request import Request
from deploy.specs.sweep import Combination, identity, refuse_same
from deploy.steps import download, resolve, restore
from deploy.steps.code_check import prove_code
from deploy.steps.look import look_at_host
from deploy.steps.provision import pack_images, refuse_too_much
from deploy.ui.screen import Screen
from deploy.workspace import code

CHECKS_AT_ONCE = 4
WAITED_FOR = 8  # more combinations take long enough to be told


@dataclass(frozen=True)
class Sweep:
    """All combinations, checked and planned. `snapshot`: the code that all of them train with; None: not taken."""

    combinations: Sequence[Combination]
    checked: Sequence[resolve.Checked]
    plans: Sequence[Plan]
    facts: Facts
    snapshot: str | None = None


def check(at: Reach, combos: Sequence[Combination], screen: Screen) -> list[resolve.Checked]:
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


def plan_all(at: Reach, combos: Sequence[Combination], checked: Sequence[resolve.Checked], looked_up: Facts) -> Sweep:
    plans: list[Plan] = []
    alike: dict[str, Facts] = {}
    for each in checked:
        kind = json.dumps([each.config["recipe"]["name"], each.config["backbone"], each.request.nodes])
        own = resolve.gather_again(at.settings, each, looked_up, alike.get(kind))
        alike[kind] = own
        plans.append(make(at.settings, each.request, own, tryout=each.tryout))
        refuse_too_much(plans[-1], own)
    return Sweep(combos, checked, plans, looked_up)


def look_ahead(
    at: Reach, combos: Sequence[Combination], checked: Sequence[resolve.Checked], screen: Screen
) -> tuple[Sweep, dict[str, Record]]:
    """The plans of a target and its earlier runs of the same combinations, for a dry run: nothing changes."""
    looked_up = look_at_host(at, resolve.gather(at, checked[0]), screen)
    planned = plan_all(at, combos, checked, looked_up)
    if is_all_anew(combos[0].request):
        return planned, {}
    snapshot = code.preview(at.settings.project, at.settings.target.exclude)
    return planned, sweeps.earlier(at, planned.plans, snapshot, look=False)


def plan_to_run(
    at: Reach, combos: Sequence[Combination], checked: Sequence[resolve.Checked], screen: Screen
) -> tuple[Sweep, dict[str, Record]]:
    """The plans of a target and its earlier runs of the same combinations. The caller holds its launch lock.

    Raises WrongUse if another run is live on the target, or was lost there.
    """
    is_anew = is_all_anew(combos[0].request)
    at.situation = Situation(at.settings.project)  # as it is now that no other command starts a run here
    if not combos[0].request.queue:
        at.refuse_second()
    if not is_anew:
        refuse_to_forget(at, checked, screen)
    checked = [resolve.prepare_orl(at, each, screen.say) for each in checked]
    planned = plan_all(at, combos, checked, resolve.gather(at, checked[0]))
    planned = replace(planned, snapshot=prove_code(at.settings))
    done = {} if is_anew else sweeps.earlier(at, planned.plans, planned.snapshot)
    bring_home(at, done, screen)
    return planned, done


def refuse_to_forget(at: Reach, checked: Sequence[resolve.Checked], screen: Screen) -> None:
    """Refuse a new run after a lost one as `train` does, unless the lost run is of this sweep: that is typed again."""
    newest = next(iter(at.situation.of(at.settings.target.name)), None)
    if newest is None or sweeps.mark(at.settings.runs, newest) not in {each.request.combination for each in checked}:
        restore.refuse_to_forget(at)
        return
    record, _ = at.look(newest)
    if record.state == "lost":
        screen.say(f"{documents.how_it_is(record)}; to continue it instead: {documents.resume(record)}")


def bring_home(at: Reach, done: Mapping[str, Record], screen: Screen) -> None:
    """Download the results of earlier runs that nobody followed to their end: the table needs them."""
    for record in done.values():
        if record.state == "succeeded" and not sweeps.is_home(at.settings.runs, record):
            reached = at.run(record)
            if reached.machine is not None:
                download.bring(reached, screen)


def begin(at: Reach, planned: Sweep, place: int, screen: Screen, *, keep: bool) -> tuple[Record, job.Position]:
    """Start the job of one combination on its target."""
    checked = planned.checked[place]
    with session.launching(at.settings) as note:
        if not checked.request.queue:
            at.refuse_second()
        at.rent(checked.request.renting)
        own = resolve.gather_again(at.settings, checked, planned.facts)
        plan = make(at.settings, checked.request, own, tryout=checked.tryout)
        note(plan.run_id)
        at.snapshot = planned.snapshot
        pack_images(at.settings, checked, screen)
        return start(at, plan, checked, own, screen, keep=keep)


def newest_of(project: Path, plan: Plan) -> Record | None:
    """The run of a combination whose start failed; None if it was not recorded."""
    every = records.every(project / "runs", plan.target)
    return next(
        (
            each
            for each in every
            if each.name == plan.request.name and records.moment(each.created) > records.moment(plan.created)
        ),
        None,
    )


def run_of(plan: Plan, done: Mapping[str, Record]) -> Record | None:
    return done.get(plan.request.combination or "")


def left_of(planned: Sweep, done: Mapping[str, Record]) -> list[Plan]:
    return [plan for plan in planned.plans if run_of(plan, done) is None]


def say_done(screen: Screen, done: int, runs: int) -> None:
    """Say how many runs an earlier command did."""
    if done:
        screen.say(
            f"not started again: {done} of {plural(runs, 'run')}, done or alive with the same code, data and settings; "
            "--resume none runs all anew"
        )


def is_all_anew(request: Request) -> bool:
    """Whether the user asked, by --resume none, to run also what an earlier run did."""
    return "resume" in request.given and request.resume == "none"
