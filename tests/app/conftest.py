"""Fixtures of the app's tests: a small data set, and a world of one process."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from app import prepare
from app.data.sources.source import Source
from app.runtime.dist import World


def faces(people: int, each: int, seed: int = 0) -> np.ndarray:
    """Images [people * each, 112, 112, 3]: a colour pattern per person, with noise and a brightness shift per image."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(30, 225, (people, 1, 7, 7, 3)).repeat(16, axis=2).repeat(16, axis=3)
    noise = rng.integers(-25, 25, (people, each, 112, 112, 3))
    light = rng.integers(-20, 20, (people, each, 1, 1, 1))
    return np.clip(coarse + noise + light, 0, 255).astype(np.uint8).reshape(-1, 112, 112, 3)


@pytest.fixture(scope="session")
def small_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """images.npy with 12 people, 4 images each; 4 people are held out. Labels and manifest lie beside it."""
    images = faces(people=12, each=4)
    source = Source(
        name="small",
        count=len(images),
        read=lambda start, stop: images[start:stop],
        labels=np.repeat(np.arange(12, dtype=np.int32), 4),
        held_out=16,
        block_rows=4,
    )
    out = tmp_path_factory.mktemp("data") / "images.npy"
    prepare.prepare(source, out)
    return out


@pytest.fixture
def alone() -> World:
    import torch

    return World(rank=0, size=1, device=torch.device("cpu"))
