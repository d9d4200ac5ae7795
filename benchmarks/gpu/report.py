"""The results of one card: a JSON file that is complete after each check."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


class Report:
    """Records, one per measurement, in the order of the measurements."""

    def __init__(self, path: Path, machine: dict[str, Any]) -> None:
        self.path, self.machine = path, machine
        self.records: list[dict[str, Any]] = []

    def add(self, check: str, **values: Any) -> None:
        """Append a record, print it and write the file."""
        record = {"check": check, **{key: rounded(value) for key, value in values.items()}}
        self.records.append(record)
        print(json.dumps(record), flush=True)
        part = self.path.with_suffix(".part")
        lines = ",\n  ".join(json.dumps(record) for record in self.records)
        part.write_text(
            f'{{\n "machine": {json.dumps(self.machine)},\n "records": [\n  {lines}\n ]\n}}\n', encoding="utf-8"
        )
        os.replace(part, self.path)

    @property
    def failed(self) -> list[str]:
        return [record["check"] for record in self.records if record.get("ok") is False]


def rounded(value: Any) -> Any:
    """Round every float to four digits; more are noise."""
    if isinstance(value, float):
        return float(f"{value:.4g}") if value == value and abs(value) != float("inf") else str(value)
    if isinstance(value, dict):
        return {key: rounded(inner) for key, inner in value.items()}
    return value
