"""Stub of app.resumable: one of the real rules (backbone.width), and one note (train.epochs)."""

import json
import sys

from app.config import load


def main() -> int:
    note, values = json.load(sys.stdin)["note"], load(sys.argv[1:])
    width = note["model"]["width"]
    if width != values["backbone.width"]:
        made = f"it was made with backbone.width={width}, here it is {values['backbone.width']}"
        print(f"{note['file']} does not fit this configuration: {made}", file=sys.stderr)
        return 2
    epochs = note["facts"]["epochs"], values["train.epochs"]
    print(json.dumps({"notes": [] if epochs[0] == epochs[1] else [f"train.epochs {epochs[1]}, was {epochs[0]}"]}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
