"""What this laptop knows at the start of a command: all runs and all targets, read once and passed on."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

from deploy.errors import DeployError
from deploy.runs import records
from deploy.runs.records import Record
from deploy.specs.settings import Settings, load
from deploy.specs.targets import every as files_of_targets


class Situation:
    """Runs and targets of a project, each read when first needed. A command that takes a lock then makes a new one."""

    def __init__(self, project: Path) -> None:
        self.project = project

    @cached_property
    def records(self) -> list[Record]:
        """All runs, newest first, with the changes that this command made."""
        return records.every(self.project / "runs")

    @cached_property
    def targets(self) -> list[Settings]:
        """All targets whose file can be loaded, by name."""
        return [each for each in self._loaded.values() if isinstance(each, Settings)]

    @cached_property
    def broken_targets(self) -> dict[str, DeployError]:
        """Name -> why its file cannot be loaded. What such a target bills is unknown."""
        return {name: each for name, each in self._loaded.items() if isinstance(each, DeployError)}

    @cached_property
    def _loaded(self) -> dict[str, Settings | DeployError]:
        found: dict[str, Settings | DeployError] = {}
        for name in sorted({file.name for file in files_of_targets(self.project)}):
            try:
                found[name] = load(self.project, name)
            except DeployError as error:
                found[name] = error
        return found

    def of(self, target: str) -> list[Record]:
        """The runs of a target, newest first."""
        return [record for record in self.records if record.target == target]

    def note(self, record: Record) -> Record:
        """Keep a record that this command has changed. Returns it."""
        if "records" in self.__dict__:
            self.records[:] = [record if each.run_id == record.run_id else each for each in self.records]
        return record
