"""python -m app.resumable key=value … < QUESTION: check from its JSON whether a checkpoint can be resumed.

QUESTION is a JSON object: `note` (the JSON beside the checkpoint), `data` (the data set's id, or null if unknown),
`machines` (their number, may be missing) and `own` (whether the checkpoint is the newest of the run's own folder).
Prints `{"notes": […]}`, or one sentence with exit code 2. Training checks again with the same rules, and with the facts
that only it knows.

Imports no torch, so a laptop can run this check before it rents or starts anything.
"""

import json
import sys

from app.config.compose import load
from app.errors import EXIT_WRONG_USE, WrongUse
from app.runtime.resume import foreseen, judge, same_kind, told_by


def main() -> int:
    question = json.load(sys.stdin)
    note = question["note"]
    whole = bool(note.get("epoch_complete", True))
    try:
        here = foreseen(load(sys.argv[1:]), question["data"], question.get("machines"))
        saved = same_kind(told_by(note), here)
        # A whole epoch's checkpoint is named after the epoch it finished; training continues at the next one.
        epoch, seen = (note["epoch"] + 1, 0) if whole else (note["epoch"], 1)
        verdict = judge(note["file"], saved, here, epoch=epoch, seen=seen, own=bool(question["own"]))
    except WrongUse as error:
        print(error, file=sys.stderr)
        return EXIT_WRONG_USE
    print(json.dumps({"notes": verdict.notes}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
