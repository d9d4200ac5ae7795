"""Report a machine's state: its runs, whether a guard is alive, and which checkpoints have no other copy.

    python -m deploy.pod.standing <root>

Prints one JSON object. The laptop reads it before it releases the machine.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from deploy.pod.base import queue
from deploy.pod.base.folder import Root, read_json
from deploy.pod.base.heartbeat import is_lost
from deploy.pod.base.limits import parse_for_job
from deploy.pod.base.lock import is_held
from deploy.pod.watchdog.shutdown import only_copies


def main(argv: list[str]) -> int:
    print(json.dumps(standing(Root(Path(argv[1]).absolute()))))
    return 0


def standing(root: Root) -> dict[str, Any]:
    """Return the state of the machine.

    `at_work`: ids of runs that run, wait in the queue, or still write their last checkpoint. `guarded`: a guard is
    alive and its heartbeat is recent. `state`, `decision`: the guard's last ones. `only_copies`: run id -> newest
    checkpoint, if it has no other copy.
    """
    said = read_json(Path(root.guard_status))
    busy = [read_json(Path(root.busy_lock))] if is_held(Path(root.busy_lock)) else []
    heart_age_s = time.time() - float(said.get("heartbeat") or 0)
    return {
        "at_work": [str(each.get("run_id", "of another command")) for each in [*busy, *queue.waiting(root)]],
        "guarded": is_held(Path(root.guard_lock)) and not is_lost(heart_age_s),
        "state": said.get("state"),
        "decision": said.get("decision"),
        "only_copies": only_copies(root, parse_for_job(read_json(Path(root.guard)))),
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv))
