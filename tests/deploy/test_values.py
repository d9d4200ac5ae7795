"""What a command has found or decided is a value: nobody can change it afterwards, and unsafe files stay private."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "deploy"
FILES = sorted(file for room in ("billing", "steps", "runs") for file in (FOLDER / room).glob("[!_]*.py"))
# They count or read on: each belongs to one function or one thread.
GROWING = {"_Machine", "Tail"}


@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_values_are_frozen(file: Path) -> None:
    module = importlib.import_module(f"deploy.{file.parent.name}.{file.stem}")
    for name, kind in inspect.getmembers(module, inspect.isclass):
        if kind.__module__ == module.__name__ and dataclasses.is_dataclass(kind):
            assert kind.__dataclass_params__.frozen is (name not in GROWING), name  # type: ignore[attr-defined]
