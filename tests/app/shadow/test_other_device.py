"""A step uses tensors of its own device only. A CPU cannot show that: there, all tensors are on one device.

torch's device `meta` stands in for a GPU. Its tensors have shapes and no numbers: it refuses to compute with tensors of
the CPU, and to give the host a number.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from app.config import load
from app.models.centres import CHUNK_BYTES
from app.recipes import RECIPES, Batch, Recipe, SelfSupervised
from app.recipes.update import batches
from app.runtime.checkpoint import TrainState
from app.runtime.dist import World
from tests.app.shadow.test_step_budget import STEPS
from tests.app.support.training import TINY

META = torch.device("meta")


class Nothing:
    """In place of a generator, which meta has not."""

    def __init__(self, *_: object) -> None:
        pass

    def manual_seed(self, _: int) -> None:
        pass


@pytest.fixture
def meta_as_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give meta what training expects of a device: autocast, generators, and the size of a chunk of class centres."""

    def without_generator(draw: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda *args, generator=None, **more: draw(*args, **more)  # noqa: ARG005

    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())
    monkeypatch.setattr(torch, "Generator", Nothing)
    monkeypatch.setattr("app.data.augment.Generator", Nothing)
    for name in ("rand", "randn"):
        monkeypatch.setattr(torch, name, without_generator(getattr(torch, name)))
    monkeypatch.setitem(CHUNK_BYTES, "meta", 2**12)


def moved(batch: Batch) -> Batch:
    draws = batch.draws.with_tensors([tensor.to(META) for tensor in batch.draws.tensors()])
    return dataclasses.replace(batch, images=batch.images.to(META), targets=batch.targets.to(META), draws=draws)


@pytest.mark.parametrize("name", STEPS)
def test_a_step_mixes_no_tensors_of_the_cpu_with_those_of_its_device(
    name: str, small_data: Path, alone: World, request: pytest.FixtureRequest
) -> None:
    config = load([*TINY, f"data.binary_cache_path={small_data}", *STEPS[name]])
    kind = RECIPES[config.recipe.name]
    data = kind.training_data(config)
    on_cpu: Recipe = kind(config, data, alone)
    on_cpu.begin_epoch(0, None)
    batch = moved(next(batches(config, on_cpu, data, TrainState(), alone)))
    recipe: Any = kind(config, data, dataclasses.replace(alone, device=META))
    request.getfixturevalue("meta_as_a_gpu")
    recipe.modules.train()
    for _ in range(2):  # two micro-batches
        loss, metrics = recipe.loss(batch)
        loss.backward()
    one = torch.ones((), device=META)
    recipe.after_step(0.1, one, taken=one)
    recipe.catch_up()
    gradients = [group["params"][0].grad for group in recipe.param_groups()]
    assert {tensor.device for tensor in [loss, *metrics.values(), *gradients]} == {META}


def test_a_tensor_of_the_cpu_that_creeps_in_is_seen(
    small_data: Path, alone: World, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    loss = SelfSupervised.loss
    monkeypatch.setattr(
        SelfSupervised, "loss", lambda self, batch: (loss(self, batch)[0] * torch.ones(len(batch.rows)), {})
    )
    with pytest.raises(RuntimeError, match="meta"):
        test_a_step_mixes_no_tensors_of_the_cpu_with_those_of_its_device("moco", small_data, alone, request)
