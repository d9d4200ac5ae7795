"""Layout of a run folder: the paths the app writes and reads, in one class."""

from __future__ import annotations

from pathlib import Path


class RunFolder:
    """The files of a run. The supervisor writes status.json, the launcher plan.json, if there is one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"
        self.metrics = path / "metrics.jsonl"
        self.verification = path / "verification.json"  # how the newest network separates held-out people
        self.report = path / "report.html"
        self.status = path / "status.json"  # state, cost, GPU use
        self.plan = path / "plan.json"  # what was expected, and the limits
        self.placement = path / "placement.json"  # on the laptop only: what only the machine made known of the plan
        self.run = path / "run.json"  # on the laptop only: the cost, and the time of each phase
        self.checkpoints = path / "checkpoints"
        self.latest = self.checkpoints / "latest"  # a text file with the name of the newest complete checkpoint
        self.tensorboard = path / "tensorboard"  # event files, with track=tensorboard
        self.mining = path / "mining"  # contact sheets, and partial results of an embedding pass in progress

    @classmethod
    def with_weights(cls, file: Path) -> RunFolder | None:
        """Return the run that a checkpoint lies in; None for a file that is not among a run's checkpoints."""
        run = cls(file.absolute().parent.parent)
        return run if file.absolute().parent == run.checkpoints and run.config.is_file() else None
