"""List all runs that this laptop knows, each with its current state, accuracy and cost."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from deploy.billing import costs
from deploy.errors import BadAnswer, DeployError, unknown
from deploy.pod.base.folder import FINAL_STATES
from deploy.runs import documents, notes, records, session
from deploy.runs.records import Record
from deploy.runs.session import Reach
from deploy.shell import Misbehaves
from deploy.steps import restore

LIST_LIMIT_S = 20.0  # `runs` waits this long for the machine of each target
# The columns of `runs`.
COLUMNS = (
    *("run_id", "target", "state", "created", "name", "fraction", "accuracy", "seconds", "run_usd", "backbone"),
    *("note", "reason"),
)
# What `runs --sort` knows -> the value of a row. -1 is less than each.
SORTED: dict[str, Callable[[dict[str, Any]], Any]] = {
    "started": lambda row: records.moment(row["created"]),
    "accuracy": lambda row: -1 if row["accuracy"] is None else row["accuracy"],
    "cost": lambda row: row["run_usd"],
    "fraction": lambda row: row["fraction"],
    "time": lambda row: -1 if row["seconds"] is None else row["seconds"],
}


def list_runs(project: Path, sort: str | None = None) -> list[dict[str, Any]]:
    """Every run that this laptop knows, newest first, each with its current state.

    `sort`: largest first by one of SORTED; runs without a value come last. Raises WrongUse for another word.
    """
    if sort is not None and sort not in SORTED:
        raise unknown("--sort", sort, SORTED)
    listed, seen, book = [], [], project / "runs"
    with contextlib.ExitStack() as stack:
        targets: dict[str, Reach] = {}
        for record in records.every(book):
            unreadable = None
            try:
                if record.state not in FINAL_STATES or record.state == "lost":
                    if record.target not in targets:
                        targets[record.target] = stack.enter_context(session.target(project, record.target))
                        targets[record.target].limit_s = LIST_LIMIT_S
                    record, _ = targets[record.target].look(record)
            except (BadAnswer, Misbehaves) as error:  # keep the state last seen
                unreadable = f"the machine's answer is not readable: {error.message}"
            except (DeployError, OSError):  # gone, or unreachable now: keep the state last seen
                pass
            seen.append(record)
            row = documents.row(record, records.events(book, record.run_id), notes.read(book, record.run_id))
            if record.state == "lost" and record.target in targets:
                row["reason"] = f"{record.reason}; saved: {_saved(targets[record.target], record)}"
            listed.append({**row, "reason": unreadable} if unreadable else row)
    usd = costs.by_run(seen)
    listed = [{**row, "run_usd": usd[row["run_id"]]} for row in listed]
    return sorted(listed, key=SORTED[sort], reverse=True) if sort else listed


def _saved(at: Reach, record: Record) -> str:
    try:
        return str(restore.of(at.settings, record))
    except DeployError as error:
        return error.message
