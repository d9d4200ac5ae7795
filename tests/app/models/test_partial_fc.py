"""Partial FC equals dense heads in 64 bits and torch's optimizers, and several processes equal one."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from app.config.schema import HeadConfig, OptimizerConfig
from app.errors import WrongUse
from app.models.centres import INIT_ROWS, NOBODY, initial
from app.models.partial_fc import PartialFC, at, columns, compacted, places, share_of
from app.runtime import dist
from app.runtime.data_parallel import data_parallel, gradients_meet
from app.runtime.dist import World
from tests.app.support.ranks import run_ranks

SKIPPED = torch.zeros(())
CPU = torch.device("cpu")
ALONE = World(0, 1, CPU)
SGD = OptimizerConfig("sgd", momentum=0.9, nesterov=True, weight_decay=5e-3)
PLAIN_SGD = OptimizerConfig("sgd", momentum=0.9, nesterov=False, weight_decay=5e-3)
ADAMW = OptimizerConfig("adamw", weight_decay=0.1)
OPTIMIZERS = {"nesterov": SGD, "sgd": PLAIN_SGD, "adamw": ADAMW}


def make(
    classes: int = 10,
    dim: int = 8,
    optimizer: OptimizerConfig = SGD,
    here: World = ALONE,
    **head: Any,
) -> PartialFC:
    return PartialFC(classes, dim, HeadConfig(**head), optimizer, here, seed=3)


def batch(count: int, classes: int, dim: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Embeddings with norms of 5 to 50, and labels."""
    generator = torch.Generator().manual_seed(seed)
    embeddings = F.normalize(torch.randn(count, dim, generator=generator), dim=1)
    norms = 5 + 45 * torch.rand(count, 1, generator=generator)
    return embeddings * norms, torch.randint(0, classes, (count,), generator=generator)


def weight_of(layer: PartialFC) -> Tensor:
    return layer.centres.tables["weight"]


COSFACE = {"name": "cosface", "scale": 16.0}  # at 64 such short embeddings reach the loss's limit, -log 1e-30


def dense_loss(embeddings: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """The loss of `COSFACE` in plain torch."""
    cosine = F.normalize(embeddings, dim=1) @ F.normalize(weight, dim=1).T
    return F.cross_entropy(16 * (cosine - 0.4 * F.one_hot(labels, len(weight))), labels)


def test_at_rate_1_loss_and_gradients_are_those_of_a_dense_layer_in_64_bits() -> None:
    layer = make(50, 16, **COSFACE)
    embeddings, labels = batch(12, 50, 16)
    ours, theirs = embeddings.clone().requires_grad_(), embeddings.double().requires_grad_()
    weight = weight_of(layer).double().requires_grad_()
    loss, metrics = layer(ours, labels)
    expected = dense_loss(theirs, weight, labels)
    loss.backward()
    expected.backward()
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-6)
    assert torch.allclose(ours.grad.double(), theirs.grad, rtol=1e-4, atol=1e-6)
    assert torch.allclose(layer.centres.grad.double(), weight.grad, rtol=1e-4, atol=1e-4)
    cosine = F.cosine_similarity(embeddings, weight_of(layer)[labels])
    assert float(metrics["positive_cosine"]) == pytest.approx(float(cosine.mean()), rel=1e-5)
    assert float(metrics["embedding_norm"]) == pytest.approx(float(embeddings.norm(dim=1).mean()), rel=1e-6)


def test_a_hopeless_image_costs_69_and_not_infinity() -> None:
    layer = make(3, 4, name="cosface", scale=640.0)
    weight_of(layer).copy_(torch.eye(3, 4))
    embeddings = torch.tensor([[-1.0, 0.5, 0.0, 0.0]], requires_grad=True)
    loss, _ = layer(embeddings, torch.tensor([0]))
    loss.backward()
    assert float(loss.detach()) == pytest.approx(69.0776, abs=1e-3)
    assert torch.isfinite(embeddings.grad).all()
    assert embeddings.grad.any()


def torch_optimizer(settings: OptimizerConfig, parameters: Sequence[Tensor], lr: float) -> torch.optim.Optimizer:
    if settings.name == "adamw":
        return torch.optim.AdamW(parameters, lr=lr, weight_decay=settings.weight_decay)
    return torch.optim.SGD(
        parameters, lr=lr, momentum=settings.momentum, nesterov=settings.nesterov, weight_decay=settings.weight_decay
    )


@pytest.mark.parametrize("update", ["lazy", "dense"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_at_rate_1_the_centres_move_as_with_torchs_optimizer(optimizer: str, update: str) -> None:
    settings = OPTIMIZERS[optimizer]
    layer = make(30, 16, settings, update=update, **COSFACE)
    weight = weight_of(layer).clone().requires_grad_()
    theirs = torch_optimizer(settings, [weight], 0.01)
    for step in range(6):
        embeddings, labels = batch(8, 30, 16, seed=step)
        for group in theirs.param_groups:
            group["lr"] = 0.01 / (1 + step)
        loss, _ = layer(embeddings.requires_grad_(), labels)
        (loss * 128).backward()
        layer.step(0.01 / (1 + step), grad_scale=128)
        theirs.zero_grad()
        dense_loss(embeddings.detach(), weight, labels).backward()
        theirs.step()
        assert torch.allclose(weight_of(layer), weight.detach(), rtol=1e-4, atol=2e-6)


def given_gradients(layer: PartialFC, steps: int, rate: float) -> list[dict[int, np.ndarray]]:
    """Take steps with random gradients of random rows; return {row: gradient} for each step."""
    rng = np.random.default_rng(1)
    count, dim = weight_of(layer).shape
    done = []
    for _ in range(steps):
        rows = np.flatnonzero(rng.random(count) < rate)
        grads = rng.normal(size=(len(rows), dim)).astype(np.float32)
        if len(rows):
            layer.centres.add(torch.from_numpy(rows), torch.from_numpy(grads.copy()))
        layer.step(0.01)
        done.append(dict(zip(rows.tolist(), grads, strict=True)))
    return done


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_dense_treats_other_rows_as_if_their_gradient_were_zero(optimizer: str) -> None:
    layer = make(20, 6, OPTIMIZERS[optimizer], update="dense")
    weight = weight_of(layer).clone().requires_grad_()
    theirs = torch_optimizer(OPTIMIZERS[optimizer], [weight], 0.01)
    for grads in given_gradients(layer, 12, 0.3):
        weight.grad = torch.zeros_like(weight)
        for row, grad in grads.items():
            weight.grad[row] = torch.from_numpy(grad)
        theirs.step()
    assert torch.allclose(weight_of(layer), weight.detach(), rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_lazy_rows_rest_and_their_moments_decay_for_the_steps_they_missed(optimizer: str) -> None:
    """The reference computes one row at a time, step by step, in 64 bits."""
    o = OPTIMIZERS[optimizer]
    layer = make(20, 6, o, update="lazy")
    start = weight_of(layer).double().numpy().copy()
    history = given_gradients(layer, 25, 0.3)
    assert any(not grads for grads in given_gradients(make(2, 6, o), 12, 0.2))  # some steps have no gradient
    lr = 0.01
    for row, weight in enumerate(start):
        m, v, count = np.zeros(6), np.zeros(6), 0
        for grads in history:
            g = grads.get(row)
            if o.name == "sgd":
                m = 0.9 * m
                if g is not None:
                    g = g + o.weight_decay * weight
                    m = m + g
                    weight = weight - lr * (g + 0.9 * m if o.nesterov else m)
                continue
            m, v = 0.9 * m, 0.999 * v
            if g is not None:
                m, v, count = m + 0.1 * g, v + 0.001 * g.astype(float) ** 2, count + 1
                weight = weight * (1 - lr * o.weight_decay)
                unbiased = m / (1 - 0.9**count), v / (1 - 0.999**count)
                weight = weight - lr * unbiased[0] / (np.sqrt(unbiased[1]) + 1e-8)
        assert np.allclose(weight_of(layer)[row].numpy(), weight, rtol=1e-4, atol=1e-6)


def test_lazy_and_dense_differ_below_rate_1_only() -> None:
    results = {}
    for rate in (1.0, 0.3):
        for update in ("lazy", "dense"):
            layer = make(40, 8, update=update, sample_rate=rate)
            for seed in range(4):
                embeddings, labels = batch(6, 40, 8, seed)
                layer(embeddings.requires_grad_(), labels)[0].backward()
                layer.step(0.1)
            results[rate, update] = weight_of(layer)
    assert torch.equal(results[1.0, "lazy"], results[1.0, "dense"])
    assert not torch.allclose(results[0.3, "lazy"], results[0.3, "dense"])


@pytest.mark.parametrize("rate", [1.0, 0.4])
def test_gradients_of_several_calls_add_up(rate: float) -> None:
    """At rate 1 the sum equals the gradients of one call with all images; below, each call has its own sample."""
    embeddings, labels = batch(12, 40, 8)
    layer, sums = make(40, 8, sample_rate=rate), torch.zeros(40, 8)
    sampled = []
    for e, y in zip(embeddings.chunk(3), labels.chunk(3), strict=True):
        single = make(40, 8, sample_rate=rate)
        single.calls.copy_(layer.calls)
        for one in (layer, single):
            (one(e.clone().requires_grad_(), y)[0] / 3).backward()
        sums.index_add_(0, single.centres.rows, single.centres.grad)
        sampled.append(set(single.centres.rows.tolist()))
    assert set(layer.centres.rows.tolist()) == set.union(*sampled)
    assert torch.allclose(layer.centres.grad, sums[layer.centres.rows], rtol=1e-5, atol=1e-6)
    if rate == 1:
        whole = make(40, 8)
        whole(embeddings.requires_grad_(), labels)[0].backward()
        assert torch.allclose(whole.centres.grad, sums, rtol=1e-4, atol=1e-5)
    else:
        assert sampled[0] != sampled[1]


def test_a_sampled_loss_is_the_dense_one_over_the_sampled_classes() -> None:
    layer = make(60, 8, sample_rate=0.25, **COSFACE)
    embeddings, labels = batch(5, 60, 8)
    loss, _ = layer(embeddings.requires_grad_(), labels)
    loss.backward()
    rows = layer.centres.rows
    weight = weight_of(layer)[rows].double().requires_grad_()
    expected = dense_loss(embeddings.detach().double(), weight, torch.searchsorted(rows, labels))
    expected.backward()
    assert len(rows) == 15
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-6)
    assert torch.allclose(layer.centres.grad.double(), weight.grad, rtol=1e-4, atol=1e-4)
    before = weight_of(layer).clone()
    layer.step(0.1)
    moved = (weight_of(layer) != before).any(1)
    assert moved.nonzero()[:, 0].tolist() == rows.tolist()


@given(
    classes=st.integers(1, 60), size=st.integers(1, 8), rate=st.floats(0.0, 1.0), images=st.integers(1, 40),
    calls=st.integers(0, 5), seed=st.integers(0, 99),
)  # fmt: skip
def test_the_sample_has_all_positives_the_right_size_and_does_not_depend_on_the_ranks(
    classes: int, size: int, rate: float, images: int, calls: int, seed: int
) -> None:
    labels = torch.randint(0, classes, (images,), generator=torch.Generator().manual_seed(seed))

    def sampled(here: World) -> tuple[int, Tensor]:
        layer = make(classes, 2, here=here, sample_rate=rate)
        layer.calls += calls
        rows = layer.sample(labels)
        assert torch.equal(rows, rows.sort().values)
        return layer.centres.start, rows[rows != NOBODY]

    whole = sampled(ALONE)[1]
    shares = [sampled(World(rank, size, CPU)) for rank in range(size)]
    assert torch.equal(torch.cat([start + rows for start, rows in shares]), whole)
    assert torch.equal(whole, whole.unique())
    met = set(labels.tolist())
    assert met <= set(whole.tolist())
    assert len(whole) == (classes if rate >= 1 else max(int(rate * classes), len(met)))


@pytest.mark.parametrize("rate", [0.01, 0.1, 0.5])
def test_ranks_have_a_few_more_places_than_sampled_centres(rate: float) -> None:
    classes, images, size = 20_000, 16, 4
    labels = torch.randint(0, classes, (images,), generator=torch.Generator().manual_seed(0))
    whole = make(classes, 2, sample_rate=rate).sample(labels)
    shares = []
    for rank in range(size):
        layer = make(classes, 2, here=World(rank, size, CPU), sample_rate=rate)
        rows = layer.sample(labels)
        assert len(rows) == places(int(rate * classes), classes // size, classes, images) < classes // size
        shares.append(layer.centres.start + rows[rows != NOBODY])
    assert torch.equal(torch.cat(shares), whole)


def test_the_places_of_a_large_head_are_not_many_more_than_its_sampled_centres() -> None:
    """With two million classes and 4,096 images on 16 ranks: at most 6 % more, not counting a place for each image."""
    classes, ranks, images = 2_059_906, 16, 4096
    taken = int(0.2 * classes)
    assert taken / ranks < places(taken, classes // ranks, classes, images) - images < 1.06 * taken / ranks


@given(st.lists(st.booleans(), max_size=30), st.integers(0, 5))
def test_places_of_true_ones_fill_up_with_nobody(chosen: list[bool], more: int) -> None:
    room = sum(chosen) + more
    wanted = [place for place, is_one in enumerate(chosen) if is_one]
    assert compacted(torch.tensor(chosen, dtype=torch.bool), room).tolist() == wanted + [NOBODY] * more


def test_a_rank_of_which_no_centre_is_sampled_changes_nothing() -> None:
    for update in ("lazy", "dense"):
        layer = make(20, 4, PLAIN_SGD, here=World(0, 2, CPU), sample_rate=0.1, update=update)
        before = weight_of(layer).clone()
        layer.centres.add(torch.full((3,), NOBODY), torch.zeros(3, 4))
        layer.centres.add(torch.full((3,), NOBODY), torch.zeros(3, 4))
        layer.step(0.1)
        decayed = before * (1 if update == "lazy" else 1 - 0.1 * PLAIN_SGD.weight_decay)
        assert torch.allclose(weight_of(layer), decayed, rtol=1e-6, atol=0)
        assert layer.centres.tables["last_step"].tolist() == [int(update == "dense")] * 10


def test_all_classes_are_sampled_equally_often() -> None:
    layer = make(50, 2, sample_rate=0.2)
    counts = torch.zeros(50)
    for _ in range(1000):
        counts[layer.sample(torch.tensor([7]))] += 1
    assert counts[7] == 1000
    others = torch.cat([counts[:7], counts[8:]])
    expected = 1000 * 9 / 49  # ten per step, one of them class 7
    assert (others - expected).abs().max() < 5 * expected**0.5


@given(classes=st.integers(1, 40), size=st.integers(1, 12))
def test_shares_are_contiguous_cover_all_classes_and_differ_by_one_at_most(classes: int, size: int) -> None:
    shares = [share_of(classes, World(rank, size, CPU)) for rank in range(size)]
    assert shares[0][0] == 0
    assert shares[-1][1] == classes
    assert all(a[1] == b[0] for a, b in pairwise(shares))
    lengths = [stop - start for start, stop in shares]
    assert sorted(lengths, reverse=True) == lengths
    assert lengths[0] - lengths[-1] <= 1


def test_first_values_are_of_their_class_alone() -> None:
    count = INIT_ROWS * 2 + 100
    whole = initial(0, count, 4, seed=5)
    cuts = [0, 7, INIT_ROWS, INIT_ROWS + 1, count]
    parts = [initial(a, b, 4, seed=5) for a, b in pairwise(cuts)]
    assert torch.equal(torch.cat(parts), whole)
    assert torch.equal(initial(0, 50, 4, seed=5), whole[:50])
    assert float(whole.std()) == pytest.approx(0.01, rel=0.05)
    assert not torch.equal(initial(0, 50, 4, seed=6), whole[:50])
    assert initial(9, 9, 4, seed=5).shape == (0, 4)


def test_columns_and_their_values() -> None:
    rows, wanted = torch.tensor([2, 5, 9]), torch.tensor([9, 0, 2, 10, 5, -4])
    assert columns(rows, wanted).tolist() == [2, -1, 0, -1, 1, -1]
    assert columns(rows[:0], wanted).tolist() == [-1] * 6
    assert at(torch.arange(6.0).view(2, 3) + 1, torch.tensor([2, -1])).tolist() == [3, 0]


def test_a_step_that_is_not_taken_leaves_nothing_behind() -> None:
    layer = make(20, 8, name="adaface")
    embeddings, labels = batch(6, 20, 8)
    layer((embeddings * torch.nan).requires_grad_(), labels)[0].backward()
    before = weight_of(layer).clone()
    layer.step(0.1, taken=SKIPPED)
    assert int(layer.steps) == 0
    assert torch.equal(weight_of(layer), before)
    assert all(torch.isfinite(value) for value in layer.state_dict().values())
    layer(embeddings.requires_grad_(), labels)[0].backward()
    layer.step(0.1)
    assert torch.isfinite(weight_of(layer)).all()
    assert not torch.equal(weight_of(layer), before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_around_it_changes_nothing(dtype: torch.dtype) -> None:
    embeddings, labels = batch(6, 20, 8)
    embeddings = embeddings.to(dtype)
    results = []
    for enabled in (True, False):
        layer, leaf = make(20, 8), embeddings.clone().requires_grad_()
        with torch.autocast("cpu", dtype, enabled=enabled):
            loss, _ = layer(leaf, labels)
            loss.backward()
        results.append((loss.detach(), leaf.grad, layer.centres.grad))
        assert loss.dtype == layer.centres.grad.dtype == torch.float32
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_labels_that_no_class_has_or_of_another_type_are_our_own_mistake() -> None:
    embeddings, labels = batch(3, 10, 8)
    for wrong in (torch.tensor([0, 10, 1]), torch.tensor([0, -1, 1]), labels.int()):
        with pytest.raises((AssertionError, RuntimeError)):
            make()(embeddings, wrong)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_training_goes_on_from_tables_that_are_mapped_from_a_file(optimizer: str, tmp_path: Path) -> None:
    def steps(layer: PartialFC, seeds: Sequence[int]) -> PartialFC:
        for seed in seeds:
            embeddings, labels = batch(6, 20, 8, seed)
            layer(embeddings.requires_grad_(), labels)[0].backward()
            layer.step(0.05)
        return layer

    def fresh() -> PartialFC:
        return make(20, 8, OPTIMIZERS[optimizer], sample_rate=0.5)

    whole = steps(fresh(), range(6))
    first = steps(fresh(), range(3))
    torch.save({"modules": first.state_dict(), "tables": first.tables()}, tmp_path / "saved.pt")
    assert all(tensor.ndim == 0 for tensor in first.state_dict().values())
    content = torch.load(tmp_path / "saved.pt", mmap=True, weights_only=True)
    second = fresh()
    second.load_state_dict(content["modules"])
    second.take_tables(content["tables"])
    steps(second, range(3, 6))
    for name, table in whole.tables().items():
        assert torch.equal(second.tables()[name], table), name


def test_tables_that_do_not_fit_are_refused_and_change_nothing() -> None:
    layer = make(10, 8)
    before = {name: table.clone() for name, table in layer.tables().items()}
    with pytest.raises(WrongUse, match=r"\(11, 8\) and not \(10, 8\)"):
        layer.take_tables({name: F.pad(table, [0] * (2 * table.ndim - 1) + [1]) for name, table in before.items()})
    with pytest.raises(WrongUse, match=r"train\.optimizer\.name=adamw"):
        layer.take_tables(make(10, 8, ADAMW).tables())
    with pytest.raises(WrongUse, match=r"train\.optimizer\.name=sgd"):
        make(10, 8, ADAMW).take_tables(before)
    assert all(torch.equal(table, before[name]) for name, table in layer.tables().items())


@pytest.mark.parametrize("classes", [3, 10, 25])
def test_a_warm_start_takes_the_centres_of_the_classes_it_knows(classes: int) -> None:
    old = torch.randn(classes, 8)
    place = torch.where(torch.arange(10) < classes, torch.arange(10), -1)
    parts = []
    for rank in range(3):
        layer = make(10, 8, here=World(rank, 3, CPU))
        layer.take_centres(old, place)
        parts.append(weight_of(layer))
    after, known = torch.cat(parts), min(classes, 10)
    assert torch.equal(after[:known], old[:known])
    assert torch.equal(after[known:], initial(0, 10, 8, seed=3)[known:])
    with pytest.raises(WrongUse, match=r"embedding_dim=8 "):
        make(10, 4).take_centres(old, place)


def test_it_learns_to_tell_classes_apart() -> None:
    torch.manual_seed(0)
    backbone = torch.nn.Linear(16, 16)
    layer = make(30, 16, sample_rate=0.5, scale=16.0)
    kinds, labels = torch.randn(30, 16), torch.arange(30).repeat(2)
    losses = []
    for _ in range(60):
        loss, _ = layer(backbone(kinds[labels] + 0.1 * torch.randn(60, 16)), labels)
        loss.backward()
        for parameter in backbone.parameters():
            parameter.data -= 0.1 * parameter.grad
            parameter.grad.zero_()
        layer.step(0.1)
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] / 10, losses


# Several processes against one.

CASES: dict[str, tuple[int, dict[str, Any], OptimizerConfig]] = {
    "arcface": (11, {"name": "arcface"}, SGD),
    "true_gradient": (11, {"name": "arcface", "straight_through": False}, PLAIN_SGD),
    "sampled": (31, {"name": "arcface", "sample_rate": 0.4}, SGD),
    "sampled_adamw": (31, {"name": "cosface", "sample_rate": 0.3}, ADAMW),
    "sampled_dense": (31, {"name": "arcface", "sample_rate": 0.4, "update": "dense"}, SGD),
    "adaface": (11, {"name": "adaface"}, SGD),
    "magface": (11, {"name": "magface", "sample_rate": 0.9}, SGD),
    "curricularface": (11, {"name": "curricularface", "filter_above": 0.4}, ADAMW),
    "fewer_classes_than_ranks": (2, {"name": "arcface"}, SGD),
    "fewer_positives_than_ranks": (40, {"name": "arcface", "sample_rate": 0.001}, SGD),
}
IMAGES, ACCUMULATE, STEPS = 12, 2, 3


def trained(name: str, here: World) -> dict[str, Tensor]:
    """Losses and final state of some steps with a linear backbone; only rank 0 has the tables."""
    classes, head, optimizer = CASES[name]
    torch.manual_seed(1)
    backbone = torch.nn.Linear(6, 8)
    # DistributedDataParallel takes seconds to load, so three processes average the gradients themselves.
    parallel = data_parallel(backbone, here) if here.size == 2 else backbone
    layer = make(classes, 8, optimizer, here, **head)
    losses = []
    for step in range(STEPS):
        for micro in range(ACCUMULATE):
            generator = torch.Generator().manual_seed(10 * step + micro)
            images = 20 * torch.randn(IMAGES, 6, generator=generator)
            labels = torch.randint(0, classes, (IMAGES,), generator=generator)
            own = slice(here.rank * IMAGES // here.size, (here.rank + 1) * IMAGES // here.size)
            with gradients_meet(parallel, now=micro == ACCUMULATE - 1):
                loss, metrics = layer(parallel(images[own]), labels[own])
            (loss / ACCUMULATE * 8).backward()
            losses += [loss.detach(), *metrics.values()]
        for parameter in backbone.parameters():
            grad = dist.mean(parameter.grad, here) if parallel is backbone else parameter.grad
            parameter.data -= 0.05 / 8 * grad
            parameter.grad.zero_()
        layer.step(0.05, grad_scale=8)
    backbone_state = {f"backbone.{key}": value.detach() for key, value in backbone.named_parameters()}
    return {"losses": torch.stack(losses), **backbone_state, **layer.state_dict(), **layer.tables()}


def again(result: dict[str, Tensor], here: World) -> dict[str, Tensor]:
    """Load tables of one process into several, and return their tables."""
    classes, head, optimizer = CASES["sampled_adamw"]
    layer = make(classes, 8, optimizer, here, **head)
    layer.take_tables({name: result[name] for name in layer.centres.tables})
    return layer.tables()


RANK = """
import sys
import torch
from app.runtime import dist
from tests.app.models.test_partial_fc import CASES, again, trained
torch.set_num_threads(1)
folder = sys.argv[1]
with dist.world() as here:
    for name in CASES:
        torch.save(trained(name, here), f"{folder}/{name}-{here.rank}.pt")
    tables = again(torch.load(f"{folder}/alone.pt", mmap=True), here)
    torch.save(tables, f"{folder}/again-{here.rank}.pt")
print("fine", flush=True)
dist.leave(0)
"""


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 3])
def test_processes_compute_what_one_computes(size: int, tmp_path: Path) -> None:
    alone = {name: trained(name, ALONE) for name in CASES}
    torch.save(alone["sampled_adamw"], tmp_path / "alone.pt")
    run_ranks(RANK, size, str(tmp_path))
    for name, expected in alone.items():
        for rank in range(size):
            found = torch.load(tmp_path / f"{name}-{rank}.pt")
            missing = expected.keys() - found.keys()
            assert missing == (set() if rank == 0 else make(2, 2, CASES[name][2]).centres.tables.keys())
            for key, value in found.items():
                assert torch.allclose(value, expected[key], rtol=1e-4, atol=1e-5), (name, rank, key)
    tables = torch.load(tmp_path / "again-0.pt")
    assert all(torch.equal(table, alone["sampled_adamw"][name]) for name, table in tables.items())
    assert "exp_avg_sq" in tables
    assert all(torch.load(tmp_path / f"again-{rank}.pt") == {} for rank in range(1, size))


def test_a_step_that_is_not_taken_leaves_no_trace() -> None:
    layer = make(10, 8, name="adaface")
    before = {name: table.clone() for name, table in {**layer.tables(), **dict(layer.head.named_buffers())}.items()}
    loss, _ = layer(torch.randn(6, 8, requires_grad=True), torch.arange(6))
    loss.backward()
    assert not torch.equal(layer.head.mean, before["mean"])
    layer.step(0.1, taken=SKIPPED)
    layer.step(0.1)  # no gradients are left
    after = {**layer.tables(), **dict(layer.head.named_buffers())}
    assert [name for name in before if name != "last_step" and not torch.equal(before[name], after[name])] == []
