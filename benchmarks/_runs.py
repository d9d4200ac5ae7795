"""Shared by benchmarks of whole training runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

PROJECT = Path(__file__).parents[1]


def app(module: str, *words: str) -> subprocess.Popen[bytes]:
    """Start one of the app's commands on one thread, in the project's folder."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", module, *words], cwd=PROJECT, env=environment, stdout=subprocess.DEVNULL
    )


def prepared(name: str, words: Sequence[str]) -> Path:
    """Return images.npy of the data set `name`, prepared with `words` if it is missing."""
    images = PROJECT / "data" / name / "images.npy"
    if app("app.prepare", *words, f"out={images}").wait():
        raise SystemExit(f"{images} could not be made")
    return images


def accuracy(run: Path, what: str = "trained") -> float:
    """Return the last held-out accuracy of a run, in percent: of the trained network, or of a baseline."""
    events = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return 100 * next(e["accuracy"] for e in reversed(events) if e["event"] == "eval" and e["what"] == what)
