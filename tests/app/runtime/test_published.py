"""Weights of other trainers are renamed and reordered to our form; our own weights stay unchanged."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from app.config import BackboneConfig
from app.errors import WrongUse
from app.models import build_backbone
from app.runtime.published import GAIN, translate
from app.runtime.weights import load_backbone


def network(name: str = "iresnet", fourier: str = "none", seed: int = 0) -> nn.Module:
    """A small network with random tensors."""
    torch.manual_seed(seed)
    layers = {"iresnet": [1, 1], "mobilefacenet": [1, 1, 1, 1], "vit": [2]}[name]
    built = build_backbone(BackboneConfig(name, layers, width=64, embedding_dim=8, image_size=32, fourier=fourier))
    for tensor in built.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand_like(tensor) + 0.5)
    return built.eval()


@cache
def plain() -> dict[str, Tensor]:
    return network().state_dict()


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("fourier", ["none", "vit", "iresnet"])
@pytest.mark.parametrize("name", ["iresnet", "mobilefacenet", "vit"])
def test_our_own_weights_stay_as_they_are(name: str, fourier: str) -> None:
    state = network(name, fourier).state_dict()
    assert same(translate(state, network(name, fourier, seed=1).state_dict()), state)


@pytest.mark.parametrize("name", ["iresnet", "mobilefacenet", "vit"])
def test_weights_saved_through_data_parallel_lose_its_prefix(name: str) -> None:
    state = network(name).state_dict()
    assert same(translate({f"module.{key}": tensor for key, tensor in state.items()}, state), state)


@pytest.mark.parametrize("prefix", ["", "module."])
def test_the_gain_of_the_fork_is_put_in_the_order_of_the_colours(prefix: str) -> None:
    here = network("vit", "vit")
    state = {key: tensor.clone() for key, tensor in here.state_dict().items()}
    fork = {f"{prefix}{key}": tensor for key, tensor in state.items() if not key.endswith("squares")}
    translated = translate(fork, network("vit", "vit", seed=1).state_dict())
    here.load_state_dict(translated)
    planes = state[GAIN]
    assert torch.equal(translated[GAIN], torch.stack([planes[1], planes[2], planes[0]]))
    assert same({**translated, GAIN: planes}, {**state, GAIN: planes})


def test_translating_twice_is_translating_once() -> None:
    """The first translation adds the tensor that distinguishes our files from the fork's."""
    state = network("iresnet", "iresnet").state_dict()
    fork = {key: tensor for key, tensor in state.items() if not key.endswith("squares")}
    once = translate(fork, state)
    assert same(translate(once, state), once)


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(st.text(max_size=12), st.integers(0, 3), max_size=6), st.booleans())
def test_names_that_are_not_known_are_passed_on(sizes: dict[str, int], in_parallel: bool) -> None:
    """`module.` is removed only if every name has it; no tensor is lost or added."""
    state = {("module." + name if in_parallel else name): torch.zeros(size) for name, size in sizes.items()}
    shared = bool(state) and all(name.startswith("module.") for name in state)
    expected = {(name.removeprefix("module.") if shared else name): tensor for name, tensor in state.items()}
    assert same(translate(state, plain()), expected)


def test_a_fork_without_a_place_for_its_gain_is_passed_on_for_the_caller_to_refuse() -> None:
    state = {GAIN: torch.rand(3, 32, 32)}
    assert translate(state, network().state_dict()).keys() == {GAIN}


@pytest.mark.parametrize("name", ["iresnet", "vit"])
def test_the_mask_that_a_file_does_not_tell_is_asked_for(name: str, tmp_path: Path) -> None:
    fork = {key: t for key, t in network(name, name).state_dict().items() if not key.endswith("squares")}
    torch.save(fork, tmp_path / "fork.pt")
    with pytest.raises(WrongUse, match=r"fork\.pt .* add .* backbone\.fourier=vit or backbone\.fourier=iresnet$"):
        load_backbone(tmp_path / "fork.pt", network(name))
    load_backbone(tmp_path / "fork.pt", network(name, name))
    torch.save(network(name).state_dict(), tmp_path / "plain.pt")
    with pytest.raises(WrongUse, match=r"plain\.pt has no Fourier layer; give backbone\.fourier=none$"):
        load_backbone(tmp_path / "plain.pt", network(name, name))
    load_backbone(tmp_path / "plain.pt", network(name, name), new_fourier=True)
