"""Margin heads equal their formulas in 64 bits, in values and gradients, and stay finite where those break."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from app.config.schema import HeadConfig
from app.errors import WrongUse
from app.models.heads import HEADS, PUBLISHED_MARGINS, Head, build_head

B, N = 24, 40


def published(name: str, cosine: Tensor, labels: Tensor, norms: Tensor, config: HeadConfig) -> Tensor:
    """Logits [B, n] by the papers' formulas, with plain arccos, of a head's first call; in the type of `cosine`."""
    rows = torch.arange(len(labels))
    c = cosine[rows, labels]
    theta = c.arccos()
    others = cosine
    if name == "combined":
        m1, m2, m3 = config.margins
        own = (m1 * theta + m2).cos() - m3
    elif name == "arcface":
        own = (theta + 0.5).cos()
    elif name == "cosface":
        own = c - 0.4
    elif name == "sphereface":
        k = (1.7 * theta / math.pi).floor()
        own = (-1) ** k * (1.7 * theta).cos() - 2 * k
    elif name == "adaface":
        safe = norms.detach().clip(0.001, 100)
        mean, std = 0.01 * safe.mean() + 0.99 * 20, 0.01 * safe.std() + 0.99 * 100
        z = ((safe - mean) / (std + 1e-3) * 0.333).clip(-1, 1)
        others = cosine.clip(-1 + 1e-3, 1 - 1e-3)
        theta = others[rows, labels].arccos()
        own = (theta - 0.4 * z).clip(1e-3, math.pi - 1e-3).cos() - (0.4 + 0.4 * z)
    elif name == "magface":
        a = norms.clip(10, 110)
        own = torch.where(c > 0, (theta + (0.8 - 0.45) / (110 - 10) * (a - 10) + 0.45).cos(), c)
    elif name == "curricularface":
        t = 0.01 * c.detach().mean()
        hard = cosine > (theta + 0.5).cos().detach()[:, None]
        others = torch.where(hard, cosine * (t + cosine), cosine)
        own = torch.where(c > math.cos(math.pi - 0.5), (theta + 0.5).cos(), c - 0.5 * math.sin(math.pi - 0.5))
    if config.straight_through and name in ("combined", "arcface", "sphereface"):
        own = c + (own - c).detach()
    if config.filter_above is not None:
        others = torch.where(cosine > config.filter_above, 0.0, others)
    result = others.clone()
    result[rows, labels] = own
    return result * config.scale


def inputs(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Cosines in 32 bits, some of them close to -1 and 1; labels; norms from 1 to 150."""
    generator = torch.Generator().manual_seed(seed)
    cosine = torch.rand(B, N, generator=generator) * 2 - 1
    labels = torch.randint(0, N, (B,), generator=generator)
    ends = torch.tensor([0.9999, -0.9999, 0.99, -0.99, 0.0, 1e-4, -0.8, -0.9])
    cosine[torch.arange(8), labels[:8]] = ends
    return cosine, labels, torch.rand(B, generator=generator) * 149 + 1


def logits_of(head: Head, cosine: Tensor, labels: Tensor, norms: Tensor) -> Tensor:
    return head(cosine, labels, cosine.detach()[torch.arange(len(labels)), labels], norms)


def error(ours: Tensor, theirs: Tensor, least: float) -> float:
    """Greatest relative error; for numbers below `least`, relative to `least`."""
    ours, theirs = ours.detach().double(), theirs.detach()
    return float(((ours - theirs).abs() / theirs.abs().clamp_min(least)).max())


SETTINGS = [
    *({"name": name, "straight_through": through} for name in sorted(HEADS) for through in (True, False)),
    *({"name": name, "filter_above": 0.3} for name in sorted(HEADS)),
    {"name": "combined", "margins": [0.9, 0.4, 0.15], "straight_through": False},
    {"name": "combined", "margins": [1.0, 0.3, 0.2], "straight_through": False},
    {"name": "combined", "margins": [1.35, 0.0, 0.0]},
    {"name": "combined", "margins": [1.0, 0.0, 0.4]},
    {"name": "cosface", "scale": 30.0},
]


@pytest.mark.parametrize("values", SETTINGS, ids=lambda values: "-".join(str(v) for v in values.values()))
def test_values_and_gradients_are_those_of_the_formula_in_64_bits(values: dict[str, object]) -> None:
    config = HeadConfig(**values)  # type: ignore[arg-type]
    cosine, labels, norms = inputs()
    ours = [cosine.clone().requires_grad_(), norms.clone().requires_grad_()]
    theirs = [t.double().requires_grad_() for t in (cosine, norms)]
    mine = logits_of(build_head(config), ours[0], labels, ours[1])
    right = published(config.name, theirs[0], labels, theirs[1], config)
    assert error(mine, right, 1.0) < 1e-5  # logits are up to 64
    weights = torch.randn(B, N, generator=torch.Generator().manual_seed(1))
    (mine * weights).sum().backward()
    (right * weights.double()).sum().backward()
    assert error(ours[0].grad, theirs[0].grad, 1.0) < 1e-5  # gradients are about as large as the scale
    if theirs[1].grad is None:
        assert ours[1].grad is None or not ours[1].grad.any()
    else:
        assert error(ours[1].grad, theirs[1].grad, 1e-2) < 1e-5


def test_magface_asks_a_price_for_small_norms_and_the_others_for_nothing() -> None:
    norms = torch.tensor([1.0, 10.0, 30.0, 109.0, 200.0], requires_grad=True)
    price = build_head(HeadConfig("magface")).penalty(norms)
    assert price is not None
    a = norms.detach().double().clip(10, 110)
    assert torch.allclose(price.double(), 35 * (a / 110**2 + 1 / a), rtol=1e-6)
    price.sum().backward()
    slope = 35 * (1 / 110**2 - 1 / a[2:4] ** 2)
    assert torch.allclose(norms.grad[2:4].double(), slope, rtol=1e-4)
    assert norms.grad[[0, 4]].tolist() == [0, 0]
    for name in set(HEADS) - {"magface"}:
        assert build_head(HeadConfig(name)).penalty(norms) is None


def test_straight_through_leaves_the_margin_out_of_the_gradient() -> None:
    for name in ("combined", "arcface", "sphereface"):
        cosine, labels, norms = inputs()
        cosine.requires_grad_()
        logits_of(build_head(HeadConfig(name)), cosine, labels, norms).sum().backward()
        assert torch.equal(cosine.grad, torch.full_like(cosine, 64.0))


def test_arcface_rises_again_past_pi_minus_the_margin_as_published() -> None:
    cosine = torch.tensor([[-1.0, 0.0], [-0.99, 0.0], [-0.87, 0.0]])
    labels, norms = torch.zeros(3, dtype=torch.long), torch.full((3,), 20.0)
    own = logits_of(build_head(HeadConfig("arcface")), cosine, labels, norms)[:, 0]
    assert own[0] > own[1] > own[2]
    own = logits_of(build_head(HeadConfig("curricularface")), cosine, labels, norms)[:, 0]
    assert own[0] < own[1] < own[2]


@pytest.mark.parametrize("name", sorted(HEADS))
def test_the_ends_give_finite_numbers_and_gradients(name: str) -> None:
    cosine = torch.tensor([[1.0, 1.0, 0.0], [-1.0, -1.0, 0.0], [0.0, 1.0, -1.0]], requires_grad=True)
    norms = torch.tensor([0.0, 20.0, 1e6], requires_grad=True)
    head = build_head(HeadConfig(name, straight_through=False))
    logits = logits_of(head, cosine, torch.zeros(3, dtype=torch.long), norms)
    logits.sum().backward()
    assert torch.isfinite(logits).all()
    assert torch.isfinite(cosine.grad).all()
    assert norms.grad is None or torch.isfinite(norms.grad).all()


@given(name=st.sampled_from(sorted(HEADS)), cuts=st.sets(st.integers(0, N), max_size=4), seed=st.integers(0, 99))
def test_columns_cut_into_any_shards_give_the_same_logits(name: str, cuts: set[int], seed: int) -> None:
    """`own`, `target` and `norms` hold all that a rank needs from the others; a shard may be empty."""
    config = HeadConfig(name, filter_above=0.5 if seed % 2 else None)
    cosine, labels, norms = inputs(seed)
    target = cosine[torch.arange(B), labels]
    whole = build_head(config)(cosine, labels, target, norms)
    bounds = [0, *sorted(cuts), N]
    parts = []
    for start, stop in pairwise(bounds):
        own = torch.where((labels >= start) & (labels < stop), labels - start, -1)
        parts.append(build_head(config)(cosine[:, start:stop], own, target, norms))
    # The last numbers of a row are not computed by vector units, which round differently.
    assert torch.allclose(torch.cat(parts, 1), whole, rtol=1e-6, atol=3e-5)


def test_running_means_follow_in_training_alone_and_survive_what_is_not_finite() -> None:
    cosine, labels, norms = inputs()
    target = cosine[torch.arange(B), labels]
    ada, curricular = build_head(HeadConfig("adaface")), build_head(HeadConfig("curricularface"))
    mean, deviation, t = 20.0, 100.0, 0.0
    for _ in range(3):
        for head in (ada, curricular):
            head(cosine, labels, target, norms)
        safe = norms.clip(0.001, 100)
        mean, deviation = 0.99 * mean + 0.01 * float(safe.mean()), 0.99 * deviation + 0.01 * float(safe.std())
        t = 0.99 * t + 0.01 * float(target.mean())
    expected = {"mean": mean, "deviation": deviation}
    assert {name: float(value) for name, value in ada.state_dict().items()} == pytest.approx(expected, rel=1e-6)
    assert float(curricular.state_dict()["t"]) == pytest.approx(t, rel=1e-5)
    ada(cosine, labels, target, norms * torch.nan)
    curricular(cosine, labels, target * torch.nan, norms)
    ada.eval()(cosine, labels, target, norms * 2)
    curricular.eval()(cosine, labels, target * 0, norms)
    assert float(ada.mean) == pytest.approx(mean, rel=1e-6)
    assert float(curricular.t) == pytest.approx(t, rel=1e-5)
    ada.train()(cosine[:1], labels[:1], target[:1], norms[:1])  # one number has no deviation
    assert float(ada.deviation) == pytest.approx(deviation, rel=1e-6)


def test_a_margin_that_is_given_replaces_the_published_one() -> None:
    cosine, labels, norms = inputs()
    for name in set(HEADS) - {"combined"}:
        default = logits_of(build_head(HeadConfig(name)), cosine, labels, norms)
        same = logits_of(build_head(HeadConfig(name, margin=PUBLISHED_MARGINS[name])), cosine, labels, norms)
        other = logits_of(build_head(HeadConfig(name, margin=0.2)), cosine, labels, norms)
        assert torch.equal(default, same)
        assert not torch.equal(default, other)


def test_no_head_is_made_of_another() -> None:
    assert {kind.__bases__ for kind in HEADS.values()} == {(Head,)}


def test_an_unknown_head_is_refused_with_the_right_names() -> None:
    with pytest.raises(WrongUse, match=r"head\.name=arcfaces .* arcface, .*curricularface"):
        build_head(HeadConfig("arcfaces"))
