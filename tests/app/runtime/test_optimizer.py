"""The optimizer creates its state before the first step, and its arithmetic equals that of torch."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from app.config.schema import OptimizerConfig
from app.runtime.optimizer import build_optimizer, fill_momentum, take_state


def network() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8 * 36, 5))


def gradients(model: nn.Module, seed: int) -> None:
    torch.manual_seed(seed)
    model(torch.randn(4, 3, 8, 8)).square().mean().backward()


def state_of(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize(("momentum", "nesterov"), [(0.9, True), (0.9, False), (0.0, False)])
def test_sgd_equals_torchs_own_bit_for_bit(momentum: float, nesterov: bool, fused: bool) -> None:
    """torch creates its buffers in the first step. Buffers created before change no bit, fused or not."""
    ours, theirs = network(), network()
    options = {"lr": 0.1, "momentum": momentum, "nesterov": nesterov, "weight_decay": 5e-4}
    reference = torch.optim.SGD(theirs.parameters(), dampening=0, fused=fused, foreach=False, **options)
    if fused:
        mine = build_optimizer(OptimizerConfig(name="sgd", **options), [{"params": list(ours.parameters())}])
    else:
        mine = torch.optim.SGD(ours.parameters(), dampening=0, fused=False, foreach=False, **options)
        fill_momentum(mine)
    for step in range(5):
        for model, optimizer in ((ours, mine), (theirs, reference)):
            optimizer.zero_grad()
            gradients(model, step)
            optimizer.step()
        assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True)), step
    assert all(torch.equal(a, b) for a, b in zip(state_of(mine), state_of(reference), strict=True))
    assert len(state_of(mine)) == (6 if momentum else 0)


def test_adamw_equals_torchs_own_bit_for_bit() -> None:
    ours, theirs = network(), network()
    options = {"lr": 0.1, "weight_decay": 5e-4}
    mine = build_optimizer(OptimizerConfig(name="adamw", **options), [{"params": list(ours.parameters())}])
    reference = torch.optim.AdamW(theirs.parameters(), fused=True, **options)
    for step in range(3):
        for model, optimizer in ((ours, mine), (theirs, reference)):
            optimizer.zero_grad()
            gradients(model, step)
            optimizer.step()
        assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True)), step
    assert mine.state_dict()["param_groups"] == reference.state_dict()["param_groups"]


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_a_first_step_that_is_skipped_leaves_state_as_if_it_had_not_been(name: str) -> None:
    """Freed memory may hold NaN, which must not get into the buffers."""
    model = network()
    untouched = copy.deepcopy(model)
    config = OptimizerConfig(name=name, lr=0.1)
    optimizer = build_optimizer(config, [{"params": list(model.parameters())}])
    reference = build_optimizer(config, [{"params": list(untouched.parameters())}])
    scaler = torch.amp.GradScaler("cpu")
    poison = [torch.full_like(p, torch.nan) for p in model.parameters() for _ in range(8)]
    del poison
    gradients(model, 0)
    next(model.parameters()).grad.fill_(torch.inf)
    scaler.scale(torch.zeros(()))
    scaler.unscale_(optimizer)
    scaler.step(optimizer)
    scaler.update()
    assert all(torch.isfinite(value).all() for value in state_of(optimizer))
    for model_, optimizer_ in ((model, optimizer), (untouched, reference)):
        optimizer_.zero_grad()
        gradients(model_, 1)
        optimizer_.step()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), untouched.parameters(), strict=True))


def test_buffers_that_a_loaded_state_lacks_are_made() -> None:
    """For example the state of a checkpoint with momentum 0, or from before the first step."""
    plain = network()
    before = build_optimizer(OptimizerConfig(momentum=0.0, nesterov=False), [{"params": list(plain.parameters())}])
    optimizer = build_optimizer(OptimizerConfig(momentum=0.9), [{"params": list(plain.parameters())}])
    state = before.state_dict()
    state["param_groups"] = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict(state)
    assert not state_of(optimizer)
    fill_momentum(optimizer)
    assert [value.count_nonzero() for value in state_of(optimizer)] == [0] * 6


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_a_loaded_state_takes_the_memory_layout_of_the_weights(name: str) -> None:
    """Fused optimizers read both in the order of memory: `train.channels_last` may change between two runs."""
    config, saved_of = OptimizerConfig(name=name, lr=0.1), network().to(memory_format=torch.channels_last)
    before = build_optimizer(config, [{"params": list(saved_of.parameters())}])
    gradients(saved_of, 0)
    before.step()
    after = []
    for layout in (torch.channels_last, torch.contiguous_format):
        model = copy.deepcopy(saved_of).to(memory_format=layout)
        model.zero_grad()
        optimizer = build_optimizer(config, [{"params": list(model.parameters())}])
        take_state(optimizer, copy.deepcopy(before.state_dict()))
        gradients(model, 1)
        optimizer.step()
        after.append([p for p in model.parameters() if p.ndim > 1])  # BN leaves the bias before it noise as gradient
    for one, other in zip(*after, strict=True):
        assert torch.allclose(one, other, atol=1e-5)
