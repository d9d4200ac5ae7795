"""A run's config.yaml may come from an untrusted machine: plain values load, all else is refused in one sentence."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from app.config.compose import SAVED_BYTES, as_yaml, load
from app.errors import WrongUse

ALIASES = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 30))


def test_what_was_saved_is_read_again(tmp_path: Path) -> None:
    """Saving and loading keeps floats in any notation, strings that look like floats, null and lists."""
    config = load(["train.optimizer.lr=0.00001", "run.commit='12e5678'"])
    (tmp_path / "config.yaml").write_text(as_yaml(config))
    assert load([], base=tmp_path / "config.yaml") == config


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (ALIASES, "is not the configuration of a run"),
        ("train: &a {epochs: 1}\nmining: *a\n", "is not the configuration of a run"),
        ("[" * 20_000, "is not the configuration of a run"),
        ("- 1\n", "is not the configuration of a run"),
        ("!!python/object/apply:os.system ['id']\n", "is not the configuration of a run"),
        ("a: " + "x" * SAVED_BYTES, "is not the configuration of a run"),
        ("a: [" + "0," * 20_000 + "0]", "more values, or larger numbers"),
        ("a: 0x" + "f" * 6000, "more values, or larger numbers"),
        ("? 0x" + "f" * 6000 + "\n: 1\n", "more values, or larger numbers"),
        ("run: {name: '${oc.env:HOME}'}\n", "holds the interpolation"),
        ("train: {'${oc.env:HOME}': 1}\n", "holds the interpolation"),
    ],
)
def test_a_strangers_file_is_no_program(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(text)
    began = time.monotonic()
    with pytest.raises(WrongUse, match=words):
        load([], base=tmp_path / "config.yaml")
    assert time.monotonic() - began < 20


def test_a_saved_value_that_no_longer_works_is_named_with_its_file(tmp_path: Path) -> None:
    """One of the runs that are evaluated together may be of a network that this code does not have."""
    file = tmp_path / "config.yaml"
    file.write_text(as_yaml(load([])).replace("name: iresnet", "name: tinynet"))
    with pytest.raises(WrongUse) as error:
        load([], base=file)
    assert str(error.value).startswith(f"{file}: backbone.name=tinynet is not known; choose from ")
    file.write_text(as_yaml(load([])))
    with pytest.raises(WrongUse, match=r"^train\.epochs=0 is too small"):
        load(["train.epochs=0"], base=file)
