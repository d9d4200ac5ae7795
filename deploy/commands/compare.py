"""Compare runs: settings that differ, accuracy, curves, speed and cost, from the copies on this laptop."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deploy.billing import costs
from deploy.errors import WrongUse, command
from deploy.runs import comparison, records
from deploy.ui.screen import Screen


def compare(project: Path, names: Sequence[str], screen: Screen) -> dict[str, Any]:
    """Compare the named runs, in the order given. Raises WrongUse for fewer than two different runs."""
    if len(names) < 2:
        raise WrongUse("compare needs two runs or more, such as compare RUN RUN", next_command=command("runs"))
    book = project / "runs"
    known = records.every(book)
    chosen = [records.choose(known, name, "", typed="compare") for name in names]
    for place, record in enumerate(chosen):
        if record in chosen[:place]:
            raise WrongUse(f"compare names run {record.run_id} twice: give two different runs")
    usd = costs.by_run(known)
    document = comparison.document([comparison.read(book, record) for record in chosen], usd)
    screen.comparison(document)
    for row in document["runs"]:
        if not row["config"]:
            fetch = command(f"fetch-checkpoint --run {row['run_id']}")
            screen.complain(f"the settings of {row['run_id']} are not on this laptop; download them with: {fetch}")
    return document
