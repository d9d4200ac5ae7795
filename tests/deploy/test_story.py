"""The commands, run as a user runs them, on a real small project."""

from __future__ import annotations

from pathlib import Path

from .conftest import Project


def test_train_brings_a_verified_checkpoint_home(any_project: Project) -> None:
    """One command prepares, runs, follows and fetches; the document has the promised shape."""
    done = any_project.json("train")
    assert done["state"] == "succeeded"
    assert Path(done["checkpoint"]["path"]).is_file()
