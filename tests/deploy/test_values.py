"""A value never changes after it was made: a decision that was printed is the one that is carried out."""

from __future__ import annotations

import dataclasses
import importlib
from pathlib import Path

import pytest

DEPLOY = Path(__file__).parents[2] / "deploy"
GROWING = {"Tail", "_Machine"}  # reads a file as it grows; adds up costs
MODULES = [
    f"deploy.{room}.{file.stem}"
    for room in ("billing", "steps", "runs")
    for file in sorted((DEPLOY / room).glob("*.py"))
    if file.stem != "__init__"
]


@pytest.mark.parametrize("name", MODULES)
def test_values_are_frozen(name: str) -> None:
    module = importlib.import_module(name)
    own = [each for each in vars(module).values() if dataclasses.is_dataclass(each) and each.__module__ == name]  # type: ignore[union-attr]
    changing = {each.__name__ for each in own if not each.__dataclass_params__.frozen}  # type: ignore[union-attr]
    assert changing <= GROWING
