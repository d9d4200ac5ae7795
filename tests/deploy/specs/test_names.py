"""Names of machines: bounded, unambiguous, and readable without any local file."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy.specs.machine import node_name
from deploy.specs.names import MOST_LETTERS, family_name, machine_name, project_word
from deploy.specs.settings import Settings, Target

ID = "20261129-030349-de35"
LONG = "A folder with a very long name, and ümlauts (copy 2)"


def settings(project: str, target: str = "runpod") -> Settings:
    return Settings(Path("/home/me") / project, Target(target, "ssh", "/workspace"))


def test_a_usual_name_is_written_out() -> None:
    assert machine_name(settings("face-reco"), f"orl-{ID}", 1) == f"sniperface-face_reco-runpod-orl-{ID}"


@pytest.mark.parametrize("project", ["p", "face-reco", LONG])
@pytest.mark.parametrize("target", ["t", "runpod", "a_target_of_my_own"])
@pytest.mark.parametrize("data", ["d", "orl", "orl-f0.01", "webface_42m_aligned_and_cleaned"])
@pytest.mark.parametrize("attempt", [1, 2, 99])
def test_no_name_is_too_long_and_date_time_and_id_stay(project: str, target: str, data: str, attempt: int) -> None:
    """With a 60th letter, RunPod was only seen to work; nothing is known of longer names."""
    about = settings(project, target)
    name = machine_name(about, f"{data}-{ID}", attempt)
    assert len(node_name(name, 12)) <= MOST_LETTERS
    assert name.startswith(family_name(about))
    assert name.endswith(ID if attempt == 1 else f"{ID}-{attempt}")
    assert name.count("-") >= 5
    assert "--" not in name


def test_long_folders_that_begin_alike_are_two_projects() -> None:
    assert project_word(LONG) != project_word(LONG + " 3")
    assert project_word(LONG).isascii()
