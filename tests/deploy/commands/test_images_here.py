"""Measuring a run whose machine is gone, with the images of this laptop."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy.commands.app import _images_here
from deploy.pod.base.folder import read_json
from deploy.runs.session import Reached
from deploy.shell import LocalShell
from deploy.ui.screen import Screen
from tests.deploy.support.pretend.app.prepare import make as prepare
from tests.deploy.support.rented import Near, Rented

GONE = "/dev/shm/gone/images.npy"


def given(rented: Rented, data: object, *words: str, data_path: str = GONE) -> list[str]:
    record = rented.record()
    rented.plan(data=data, data_path=data_path)
    at = Near(rented.settings, rented.account)
    return _images_here(Reached(at, record, LocalShell(), at.run(record).home, None), words, Screen())


@pytest.mark.parametrize("where", ["here", "machine"])
def test_images_of_this_laptop_are_used_if_they_are_those_of_the_run(tmp_path: Path, where: str) -> None:
    """Those that were sent, or for the try-out those that are prepared here."""
    name = "orl" if where == "machine" else "it's mine"
    images = tmp_path / "data" / name / "images.npy"
    prepare(images)
    known = read_json(images.with_name("manifest.json"))["dataset_id"]
    rented = Rented(tmp_path)
    data = {"where": where, "path": str(images) if where == "here" else "/w/data/orl/images.npy", "dataset_id": known}
    word = f"data.binary_cache_path='{images}'".replace("it's", r"it\'s")
    assert given(rented, data, "weights=x") == [word]
    assert given(rented, data, data_path=str(images)) == []  # the run's own are here
    assert given(rented, data, "data.binary_cache_path=x") == []
    assert given(rented, {**data, "dataset_id": "another"}) == []
    assert given(rented, {**data, "dataset_id": None}) == []
    assert given(rented, None) == []
    images.unlink()
    assert given(rented, data) == []
