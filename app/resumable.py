"""python -m app.resumable key=value … < QUESTION: whether a configuration can continue a checkpoint, by its JSON alone.

QUESTION is a JSON object: `note` (the JSON beside the checkpoint), `data` (the data set's id, or null where it is not
known) and `own` (whether the checkpoint is the newest of the run's own folder). The answer is `{"notes": […]}`, or one
sentence and exit code 2. Training judges again, by the same rules, with everything it knows.

It imports no torch, so a laptop can ask it before anything is rented or started.
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
        here = foreseen(load(sys.argv[1:]), question["data"])
        saved = same_kind(told_by(note), here)
        # The name of a whole epoch's checkpoint is that of the epoch before the one it stands at.
        epoch, seen = (note["epoch"] + 1, 0) if whole else (note["epoch"], 1)
        verdict = judge(note["file"], saved, here, epoch=epoch, seen=seen, own=bool(question["own"]))
    except WrongUse as error:
        print(error, file=sys.stderr)
        return EXIT_WRONG_USE
    print(json.dumps({"notes": verdict.notes}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
