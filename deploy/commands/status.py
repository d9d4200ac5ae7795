"""Show one run: what machine, supervisor and app report, merged into one answer."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Any

from deploy.billing import costs
from deploy.billing.reaper import reap
from deploy.errors import command
from deploy.pod.base.folder import FINAL_STATES
from deploy.runs import documents, notes, records, session
from deploy.steps import download, nodes, restore
from deploy.ui.screen import Screen

AGAIN_EVERY_S = 2


def status(project: Path, target: str, run_id: str | None, screen: Screen, *, watch: bool) -> dict[str, Any]:
    """Show one merged answer from machine, supervisor and app. With `watch`, repeat until the run is over."""
    with session.run(project, target, run_id, partial(reap, screen=screen)) as reached:
        while True:
            reached, seen = reached.look()
            parts = records.compared(reached.settings.runs, reached.record)
            note = notes.read(reached.settings.runs, reached.record.run_id)
            answer = documents.of_status(
                reached.record,
                seen,
                reached.events(),
                parts,
                download.report(reached),
                note,
                records.limit_usd(reached.settings.runs, reached.record.run_id),
                costs.by_run(reached.reach.situation.records)[reached.record.run_id],
            )
            if reached.record.others:
                answer["nodes"] = list(nodes.look(reached, seen))
            if not watch or reached.record.state in FINAL_STATES:
                break
            screen.status_line(answer)
            time.sleep(AGAIN_EVERY_S)
        what = restore.of(reached.settings, reached.record, reached) if reached.record.state == "lost" else None
        answer["saved"] = what.to_json() if what else None
        screen.status(answer)
        if "nodes" in answer and not screen.as_json:
            screen.rows("Machines", answer["nodes"], documents.NODE)
        screen.compared(parts)
        if what:
            screen.say(f"saved: {what}")
        shown = command("status")
        screen.commands([each for each in documents.next_commands(reached.record) if not each[1].startswith(shown)])
        return answer
