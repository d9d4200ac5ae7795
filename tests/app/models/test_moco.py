"""MoCo: the queue, the momentum encoder, and the loss, which equals a slow and plain version."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F

from app.config.schema import NO_ID, BackboneConfig, MocoConfig
from app.models import build_backbone
from app.models.collapse import spread
from app.models.moco import EMPTY, Encoder, FeatureBank, MomentumEncoder, Queue, contrastive_loss

TAKEN, SKIPPED = torch.ones(()), torch.zeros(())


def encoder() -> Encoder:
    torch.manual_seed(0)
    config = BackboneConfig("iresnet", [1, 1], width=4, embedding_dim=8, image_size=16)
    return Encoder(build_backbone(config), 8, 16, 6)


def units(rows: int, dim: int, seed: int) -> torch.Tensor:
    return F.normalize(torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed)), dim=1)


@pytest.mark.parametrize("sizes", [[3, 3, 3], [7, 5], [1] * 12, [4, 8, 2], [11], [30]])
def test_the_queue_holds_exactly_the_last_keys_whatever_the_batches(sizes: list[int]) -> None:
    queue = Queue(8, 2)
    rows = torch.arange(sum(sizes))
    for part in rows.split(sizes):
        queue.push(part[:, None].expand(-1, 2).float(), part, TAKEN)
    kept = rows[-8:].tolist()
    assert sorted(r for r in queue.rows.tolist() if r != EMPTY) == kept
    filled = queue.rows != EMPTY
    assert torch.equal(queue.keys[filled, 0].long(), queue.rows[filled])


def test_the_momentum_encoder_moves_by_one_minus_momentum() -> None:
    followed = encoder()
    follower = MomentumEncoder(followed, 0.75)
    before = {name: t.clone() for name, t in follower.encoder.state_dict().items()}
    for parameter in followed.parameters():
        parameter.data.add_(1.0)
    followed.backbone.bn1.running_mean.add_(2.0)
    follower.follow(followed, TAKEN)
    after = follower.encoder.state_dict()
    assert torch.allclose(after["backbone.conv1.weight"], before["backbone.conv1.weight"] + 0.25)
    assert torch.allclose(after["backbone.bn1.running_mean"], before["backbone.bn1.running_mean"] + 0.5)
    assert not any(p.requires_grad for p in follower.parameters())


def test_a_key_depends_on_its_own_image_alone_even_in_training() -> None:
    follower = MomentumEncoder(encoder(), 0.9).train()
    images = torch.randn(6, 3, 16, 16)
    together, alone = follower(images), [follower(image[None]) for image in images]
    for part in (0, 1):  # keys, embeddings
        assert torch.allclose(together[part], torch.cat([one[part] for one in alone]), atol=1e-5)


def plain_loss(q, k, queue, rows, key_rows, ids, temperature, margin, mask):
    """The loss, one query at a time, in Python's own arithmetic."""
    losses = []
    for i in range(len(q)):
        positive = (float(q[i] @ k[i]) - margin) / temperature
        negatives = []
        for j in range(len(queue.rows)):
            row = int(queue.rows[j])
            if row in (EMPTY, int(rows[i]), int(key_rows[i])):
                continue
            if ids[row] != NO_ID and ids[row] == ids[rows[i]]:
                continue
            negatives.append(float(q[i] @ queue.keys[j]) / temperature)
        negatives = sorted(negatives, reverse=True)[mask:]
        top = max([positive, *negatives])
        total = sum(math.exp(x - top) for x in [positive, *negatives])
        losses.append(top + math.log(total) - positive)
    return sum(losses) / len(losses)


@pytest.mark.parametrize("mask", [0, 3])
@pytest.mark.parametrize("margin", [0.0, 0.15])
def test_the_loss_equals_the_plain_version(mask: int, margin: float) -> None:
    ids = torch.tensor([0, 0, 1, 1, NO_ID, NO_ID, 2, 0])
    queue = Queue(16, 6)
    queue.push(units(12, 6, 1), torch.arange(12) % 8, TAKEN)  # four places stay empty
    q, k = units(5, 6, 2), units(5, 6, 3)
    rows, key_rows = torch.tensor([0, 2, 4, 6, 7]), torch.tensor([1, 3, 4, 6, 0])
    loss, metrics = contrastive_loss(
        q, k, queue, rows, key_rows, ids, MocoConfig(temperature=0.1, margin=margin, mask_most_similar=mask)
    )
    expected = plain_loss(q, k, queue, rows, key_rows, ids, 0.1, margin, mask)
    assert float(loss) == pytest.approx(expected, rel=1e-5)
    assert float(metrics["positive_cosine"]) == pytest.approx(float((q * k).sum(1).mean()), rel=1e-5)


def test_an_empty_queue_gives_a_loss_of_zero_and_no_nan() -> None:
    q = units(3, 6, 0).requires_grad_()
    rows = torch.arange(3)
    loss, metrics = contrastive_loss(
        q, units(3, 6, 1), Queue(8, 6), rows, rows, torch.full((3,), NO_ID),
        MocoConfig(temperature=0.1, margin=0.1, mask_most_similar=2),
    )  # fmt: skip
    loss.backward()
    assert float(loss.detach()) == pytest.approx(0.0, abs=1e-6)
    assert torch.isfinite(q.grad).all()
    assert all(math.isfinite(float(value)) for value in metrics.values())


def test_new_pseudo_ids_change_the_mask_without_touching_the_queue() -> None:
    queue = Queue(4, 6)
    queue.push(units(4, 6, 1), torch.tensor([1, 2, 3, 4]), TAKEN)
    q, rows = units(1, 6, 2), torch.tensor([0])

    def share(ids: list[int]) -> float:
        _, metrics = contrastive_loss(
            q, q, queue, rows, rows, torch.tensor(ids), MocoConfig(temperature=0.1, margin=0.0, mask_most_similar=0)
        )
        return float(metrics["masked_share"])

    assert share([NO_ID] * 5) == 0.0
    assert share([7, 7, 7, 0, NO_ID]) == 0.5


def unified(q, k, queue, rows, key_rows, ids, temperature, margin):
    """Equation 4 of UniMoCo as published: one term for each pair of a positive and a negative."""
    losses = []
    for i in range(len(q)):
        positives, negatives = [float(q[i] @ k[i])], []
        for j in range(len(queue.rows)):
            row = int(queue.rows[j])
            if row in (EMPTY, int(rows[i]), int(key_rows[i])):
                continue
            same = ids[row] != NO_ID and ids[row] == ids[rows[i]]
            (positives if same else negatives).append(float(q[i] @ queue.keys[j]))
        total = sum(math.exp((n - p + margin) / temperature) for p in positives for n in negatives)
        losses.append(math.log(1 + total))
    return sum(losses) / len(losses)


@pytest.mark.parametrize("labelled", [True, False])
def test_several_positives_follow_the_unified_loss_and_one_is_infonce(labelled: bool) -> None:
    ids = torch.tensor([0, 0, 1, 1, NO_ID, NO_ID, 2, 0]) if labelled else torch.full((8,), NO_ID)
    queue = Queue(16, 6)
    queue.push(units(12, 6, 1), torch.arange(12) % 8, TAKEN)
    q, k = units(5, 6, 2), units(5, 6, 3)
    rows, key_rows = torch.tensor([0, 2, 4, 6, 7]), torch.tensor([1, 3, 4, 6, 0])
    one = MocoConfig(temperature=0.1, margin=0.15, mask_most_similar=0)
    several = dataclasses.replace(one, multi_positive=True)
    loss, _ = contrastive_loss(q, k, queue, rows, key_rows, ids, several)
    assert float(loss) == pytest.approx(unified(q, k, queue, rows, key_rows, ids, 0.1, 0.15), rel=1e-5)
    if not labelled:
        assert float(loss) == pytest.approx(float(contrastive_loss(q, k, queue, rows, key_rows, ids, one)[0]))


def test_several_positives_and_no_negative_give_a_loss_of_zero_and_no_nan() -> None:
    queue = Queue(4, 6)
    queue.push(units(4, 6, 1), torch.arange(4), TAKEN)
    q = units(2, 6, 2).requires_grad_()
    rows = torch.tensor([4, 5])
    loss, _ = contrastive_loss(
        q, units(2, 6, 3), queue, rows, rows, torch.zeros(6, dtype=torch.long),
        MocoConfig(temperature=0.05, margin=0.1, mask_most_similar=2, multi_positive=True),
    )  # fmt: skip
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert torch.isfinite(q.grad).all()


def test_the_bank_keeps_the_last_embedding_of_each_image() -> None:
    bank = FeatureBank(4, 2)
    bank.put(torch.tensor([2, 0, 2]), torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]]), TAKEN)
    assert torch.allclose(bank.features[[0, 2]].float(), torch.tensor([[0.0, 1.0], [0.6, 0.8]]), atol=1e-3)
    assert bank.features[[1, 3]].isnan().all()


def test_the_end_of_an_epoch_needs_no_memory_beside_torchs_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A failure there would lose the epoch: its checkpoint is written afterwards."""

    def full(*_: object) -> None:
        raise RuntimeError("cusolver error: CUSOLVER_STATUS_INTERNAL_ERROR, when calling `cusolverDnCreate(handle)`")

    for name in ("svdvals", "svd", "eigh", "eigvalsh"):
        monkeypatch.setattr(torch.linalg, name, full)
    assert spread(units(3000, 32, 0))["effective_rank"] > 30


def test_a_collapse_is_seen_and_a_sphere_is_none() -> None:
    sphere = spread(units(3000, 32, 0))
    assert not sphere["collapsed"]
    assert sphere["embedding_std"] == pytest.approx(1.0, abs=0.05)
    assert sphere["random_cosine"] == pytest.approx(0.0, abs=0.01)
    assert 30 < sphere["effective_rank"] <= 32
    point = spread(F.normalize(torch.ones(100, 32) + 1e-3 * torch.randn(100, 32), dim=1))
    assert point["collapsed"]
    assert point["random_cosine"] > 0.99
    line = spread(units(100, 1, 0).expand(-1, 32) / 32**0.5)  # two opposite points, which the mean cosine does not show
    assert line["collapsed"]
    assert line["effective_rank"] == pytest.approx(1.0, abs=0.01)
    assert spread(units(1, 32, 0))["effective_rank"] is None
