"""Write a run's numbers as event files of TensorBoard. The only module that imports tensorboardX.

A resumed run adds a file to the folder. Its first event tells TensorBoard to drop what the earlier files say of steps
after the checkpoint, so no step is shown twice.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from app.errors import WrongUse
from app.runtime.folder import RunFolder

SHOWN = ("step", "skipped", "epoch", "mining", "eval")  # the others hold no curves
BASELINES = ("pixels", "untrained")  # of every start; a resumed run has the first ones already
FLUSH_S = 10
MISSING = (
    "track=tensorboard needs the package tensorboardX; install it with `pip install tensorboardX`, or give track=none"
)


class TensorBoard:
    """Adds each number of an event as a point `event/name`. If it fails, it stops and the run continues."""

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder.tensorboard
        self.writer: Any = None
        self.failed = False
        self.first_step = 0

    def event(self, record: dict[str, Any]) -> None:
        if self.failed:
            return
        try:
            if record["event"] == "start":
                self._open(record["step"])
            for name, value in self._points(record):
                self.writer.add_scalar(name, value, record["step"], walltime=record["time"])
        except Exception as error:  # as W&B: no error of a tracker may cost hours of training
            self._give_up(error)

    def close(self) -> None:
        if self.writer is not None and not self.failed:
            try:
                self.writer.close()
            except Exception as error:
                self._give_up(error)

    def _open(self, step: int) -> None:
        from tensorboardX import SummaryWriter

        self.close()
        self.first_step = step
        self.writer = SummaryWriter(
            str(self.folder),
            purge_step=step + 1 if step else 0,
            flush_secs=FLUSH_S,
            filename_suffix=f".{os.getpid()}.{step}",  # without it, two files of one second are one
        )

    def _points(self, record: dict[str, Any]) -> Iterator[tuple[str, float]]:
        again = self.first_step > 0 and record.get("what") in BASELINES
        if self.writer is not None and record["event"] in SHOWN and not again:
            yield from numbers(record)

    def _give_up(self, error: Exception) -> None:
        print(f"TensorBoard stopped logging ({type(error).__name__}: {error}); metrics.jsonl continues", flush=True)
        self.failed = True


def numbers(record: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """Yield the numbers of an event as `event/name`; of an evaluation of something else as `eval/WHAT/name`.

    Each measured thing has names of its own: values of the same name and step replace each other.
    """
    what = record.get("what", "trained") if record["event"] == "eval" else "trained"
    place = record["event"] if what == "trained" else f"{record['event']}/{what}"
    for key, value in record.items():
        if key not in ("time", "step") and isinstance(value, int | float) and not isinstance(value, bool):
            yield f"{place}/{key}", value


def refuse_without() -> None:
    """Raise WrongUse if the package is missing."""
    try:
        import tensorboardX  # noqa: F401
    except ImportError as error:
        raise WrongUse(MISSING) from error
