"""Layout of a run folder: the paths the app writes and reads, in one class."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class RunFolder:
    path: Path

    @classmethod
    def with_weights(cls, file: Path) -> RunFolder | None:
        """Return the run that a checkpoint lies in; None for a file that is not among a run's checkpoints."""
        run = cls(file.absolute().parent.parent)
        return run if file.absolute().parent == run.checkpoints and run.config.is_file() else None

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def verification(self) -> Path:
        """How the newest measured network separates held-out people: curves, scores, hardest pairs."""
        return self.path / "verification.json"

    @property
    def report(self) -> Path:
        """The report, a web page."""
        return self.path / "report.html"

    @property
    def status(self) -> Path:
        """Written by the supervisor, if there is one: state, cost, GPU use."""
        return self.path / "status.json"

    @property
    def plan(self) -> Path:
        """Written by the launcher, if there is one: what was expected, and the limits."""
        return self.path / "plan.json"

    @property
    def placement(self) -> Path:
        """Written by the launcher, on the laptop only: values of the plan that only the machine made known."""
        return self.path / "placement.json"

    @property
    def run(self) -> Path:
        """Written by the launcher, on the laptop only: the cost, and the time of each phase."""
        return self.path / "run.json"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def tensorboard(self) -> Path:
        """Event files for TensorBoard, with track=tensorboard."""
        return self.path / "tensorboard"

    @property
    def mining(self) -> Path:
        """Contact sheets of the pseudo-IDs, and partial results of an embedding pass in progress."""
        return self.path / "mining"

    @property
    def latest(self) -> Path:
        """A text file with the name of the newest complete checkpoint."""
        return self.checkpoints / "latest"
