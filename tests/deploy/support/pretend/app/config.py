"""Stub of app.config: prints the resolved configuration as JSON, or one sentence with exit code 2."""

import json
import sys

DEFAULTS = {
    "recipe.name": "self_supervised",
    "backbone.name": "tiny",
    "data.binary_cache_path": None,
    "data.data_fraction": 1.0,
    "data.labels_path": None,
    "data.train_labels_path": None,
    "data.block_size": 10,
    "train.epochs": 3,
    "train.batch.size": 8,
    "train.optimizer.lr": 0.1,  # the best; another one costs accuracy
    "train.resume": None,
    "train.steps": 3,
    "train.step_s": 0.02,
    "train.manner": "good",  # good, fails, deaf (ignores stop), wrong_use, leaks, leaks_and_fails (prints secrets)
    "backbone.width": 1,
    "plan.images_per_s": None,
    "run.dir": None,
    "run.commit": "none",
}
GROUPS = {"recipe": ["self_supervised", "supervised"], "experiment": ["tryout", "tryout_supervised", "quick"]}


def load(overrides: list[str]) -> dict:
    values = dict(DEFAULTS)
    for override in overrides:
        key, _, text = override.partition("=")
        if key in GROUPS:
            if text not in GROUPS[key]:
                raise ValueError(f"{key}={text} is not known; choose from {', '.join(GROUPS[key])}")
            continue
        if key not in values:
            raise ValueError(f"there is no option {key}; did you mean train.epochs?")
        if text.startswith("'"):
            values[key] = text[1:-1].replace("\\'", "'")
        else:
            values[key] = json.loads(text) if text[:1].isdigit() or text in ("null", "true") else text
    return values


def main() -> int:
    try:
        values = load(sys.argv[1:])
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    tree: dict = {"model": {"backbone": values["backbone.name"], "width": values["backbone.width"]}}
    for key, value in values.items():
        *parents, last = key.split(".")
        place = tree
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = value
    print(json.dumps(tree))
    return 0


if __name__ == "__main__":
    sys.exit(main())
