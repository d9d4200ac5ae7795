"""Targets: where their values come from, and what is said about wrong ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy.errors import WrongUse
from deploy.settings import Target, load


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "conf" / "deploy").mkdir(parents=True)
    (tmp_path / "conf" / "deploy" / "local.yaml").write_text("provider: local\nroot: here\nprocesses: auto\n")
    return tmp_path


def test_the_file_gives_the_values(folder: Path) -> None:
    """What the file leaves out has its default."""
    settings = load(folder, "local", {})
    assert settings.target == Target("local", "local", "here")
    assert settings.root == folder / "here"
    assert settings.tmux_socket == "sniperface"


def test_the_environment_wins_over_the_file(folder: Path) -> None:
    """Each key has a variable."""
    environment = {
        "SNIPERFACE_ROOT": "/there",
        "SNIPERFACE_DATA": "d/images.npy",
        "SNIPERFACE_STAGE_TO": "/dev/shm",
        "SNIPERFACE_PROCESSES": "3",
        "SNIPERFACE_TMUX_SOCKET": "mine",
    }
    settings = load(folder, "local", environment)
    assert settings.target == Target("local", "local", "/there", "d/images.npy", "/dev/shm", 3)
    assert settings.tmux_socket == "mine"


@pytest.mark.parametrize(
    ("target", "text", "words"),
    [
        ("locl", None, ["locl", "did you mean 'local'", "local"]),
        ("cloud", None, ["cloud", "local"]),
        ("local", "provider: local\nroot: x\nstageto: y\n", ["stageto", "did you mean 'stage_to'", "provider"]),
        ("local", "root: x\n", ["provider"]),
        ("local", "provider: local\nroot: x\nprocesses: many\n", ["processes", "auto", "2"]),
        ("local", "provider: local\nroot: x\nprocesses: 0\n", ["processes", "auto", "2"]),
        ("local", "provider: [\n", ["conf/deploy/local.yaml"]),
        ("local", "- a\n", ["conf/deploy/local.yaml"]),
    ],
)
def test_a_wrong_name_or_value_is_answered_with_right_ones(
    folder: Path, target: str, text: str | None, words: list[str]
) -> None:
    """One sentence, exit code 2."""
    if text is not None:
        (folder / "conf" / "deploy" / "local.yaml").write_text(text)
    with pytest.raises(WrongUse) as caught:
        load(folder, target, {})
    assert [word for word in words if word not in caught.value.message] == []
    assert "\n" not in caught.value.message
    assert caught.value.exit_code == 2
