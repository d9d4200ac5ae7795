"""Tell how a sweep went: its table, its document, what can be typed next, and its exit code."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy.billing import costs
from deploy.errors import DeployError, StepFailed, command
from deploy.pod.base.folder import FINAL_STATES, LIVE_STATES
from deploy.runs import checkpoints, documents, records, sweeps
from deploy.runs.records import Record
from deploy.specs.estimate import plural
from deploy.specs.plan import Plan
from deploy.specs.sweep import Combination, end_of_sweep
from deploy.ui import sweep_table
from deploy.ui.screen import Screen

CENT = 0.005  # is shown as $0.01
COMPARED_MOST = 5  # columns of `compare` that still fit


@dataclass(frozen=True)
class Ended:
    """How a sweep went. `records`: of each combination, None if it was not run. `why`: not all were run, if so."""

    records: Sequence[Record | None]
    failures: Sequence[DeployError] = ()
    why: str | None = None
    interrupted: bool = False


def over(record: Record | None, failure: DeployError | None, before: DeployError | None, screen: Screen) -> str | None:
    """Report the failure of a run of a sweep. Returns why no other run may follow it on its machine, if so.

    `before`: the failure of an earlier run there.
    """
    if failure:
        if record and record.state in records.UNFINISHED:  # it is not the newest one for long
            failure.next_command = documents.resume(record)
        screen.failure(failure)
    return end_of_sweep(
        record.state if record else None,
        ran=bool(record and record.session),
        exit_code=failure.exit_code if failure else 0,
        repeated=bool(failure and before and failure.message == before.message),
    )


def tell(
    project: Path, combos: Sequence[Combination], plans: Sequence[Plan], ended: Ended, screen: Screen
) -> dict[str, Any]:
    """Print the table and return the document. Raises DeployError if a run failed, KeyboardInterrupt after Ctrl-C.

    `plans`: any plan of each target, in the order of --on.
    """
    each_run, book = ended.records, project / "runs"
    usd = costs.by_run(records.every(book))
    targets = ",".join(plan.target for plan in plans)
    told = sweeps.document(book, targets, list(zip(combos, each_run, strict=True)), usd, ended.why)
    missing = sum(record is None for record in each_run)
    not_run = f"{missing} of {plural(len(each_run), 'run')} {'was' if missing == 1 else 'were'} not started"
    if ended.why:
        screen.say(f"\nthe sweep ends: {ended.why}" + (f"; {not_run}" if missing else ""))
    screen.table(
        "\nSweep",
        sweep_table.result_columns(combos, told["runs"], several=len(plans) > 1),
        sweep_table.result_rows(told["runs"], several=len(plans) > 1),
    )
    if told["best"]:
        screen.say(f"best by {checkpoints.named(told['measure'])}")
    if told["cost_usd"] >= CENT:
        screen.say(f"cost: ${told['cost_usd']:.2f}; no time of a machine is counted twice")
    screen.commands(list(_next(told, plans)))
    screen.document(told)
    if ended.interrupted:
        raise KeyboardInterrupt
    if ended.failures:
        failed = f"{len(ended.failures)} of {plural(len(each_run), 'run')} did not succeed"
        end = DeployError(f"{failed}; {not_run}" if missing else failed)
        end.exit_code = ended.failures[-1].exit_code if ended.why else StepFailed.exit_code
        raise end
    return told


def _next(told: Mapping[str, Any], plans: Sequence[Plan]) -> Iterator[tuple[str, str]]:
    """Commands that make sense after a sweep, each with its purpose."""
    plan_of = {plan.target: plan for plan in plans}
    over = [run["run_id"] for run in told["runs"] if run["state"] in FINAL_STATES]
    alive = next((run for run in told["runs"] if run["state"] in LIVE_STATES), None)
    best = next((run for run in told["runs"] if run["best"]), None)
    if alive:
        yield "see a run", command(f"status{documents.on(plan_of[alive['target']])} --run {alive['run_id']}")
    if best:
        yield (
            "fetch its best checkpoint",
            command(f"fetch-checkpoint{documents.on(plan_of[best['target']])} --run {best['run_id']} --which best"),
        )
    if 2 <= len(over) <= COMPARED_MOST:
        yield "compare curves", command(f"compare {' '.join(over)}")
    used = {run["target"] for run in told["runs"] if run["state"] in FINAL_STATES}
    for plan in plans:
        if plan.usd_per_hour != 0 and plan.target in used:
            yield "release the machine", command(f"down{documents.on(plan)}")
