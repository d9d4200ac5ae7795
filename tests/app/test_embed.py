"""Embedding: the same vectors however the work is cut, shared, interrupted and gone on with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from app.mining.embed import Interrupted, Kept, embed
from app.runtime.dist import World
from tests.app.ranks import run_ranks

SIZE = 16
ROWS = np.arange(3, 33)


class Net(nn.Module):
    """A small network that counts what it embeds and behaves differently in training."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(196, 8))
        self.embedded = 0

    def forward(self, x: Tensor) -> Tensor:
        self.embedded += len(x)
        return self.layers(x)


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (40, SIZE, SIZE, 3), dtype=np.uint8)


def run(net: Net, images: np.ndarray, here: World, **options: object) -> Tensor:
    settings = {"image_size": SIZE, "batch_size": 4, "embedding_dim": 8, "chunk_rows": 10}
    return embed(net, images, ROWS, here, **{**settings, **options})


def test_embeddings_are_unit_vectors_of_the_network_as_it_is_outside_training(images: np.ndarray, alone: World) -> None:
    net = Net()
    z = run(net, images, alone)
    assert net.training
    x = torch.from_numpy(images[ROWS]).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        net.eval()
        plain = nn.functional.normalize(net(x), dim=1)
        both = nn.functional.normalize(net(x) + net(x.flip(3)), dim=1)
    assert z.dtype == torch.float32
    assert torch.allclose(z, plain, atol=1e-5)
    assert torch.allclose(run(net, images, alone, flip_sum=True), both, atol=1e-5)
    assert not net.training


def test_neither_batches_nor_chunks_show(images: np.ndarray, alone: World) -> None:
    whole = run(Net(), images, alone, batch_size=30, chunk_rows=8192)
    for batch_size, chunk_rows in ((1, 7), (4, 10), (64, 30)):
        assert torch.allclose(run(Net(), images, alone, batch_size=batch_size, chunk_rows=chunk_rows), whole, atol=1e-6)


def test_progress_counts_to_all_images(images: np.ndarray, alone: World) -> None:
    told: list[tuple[int, int]] = []
    run(Net(), images, alone, progress=lambda done, total: told.append((done, total)))
    assert told == [(10, 30), (20, 30), (30, 30)]


def test_an_interrupted_pass_goes_on_where_it_was(images: np.ndarray, alone: World, tmp_path: Path) -> None:
    kept, net = Kept(tmp_path / "kept", "weights 1"), Net()
    with pytest.raises(Interrupted):  # after two chunks
        run(net, images, alone, kept=kept, interrupted=lambda: net.embedded >= 20)
    assert net.training
    assert net.embedded == 20
    z = run(net, images, alone, kept=kept)
    assert net.embedded == 30
    assert torch.equal(z, run(Net(), images, alone))
    kept.clear()
    kept.clear()
    assert list(kept.folder.iterdir()) == []


def test_chunks_of_other_weights_or_settings_are_removed_not_used(
    images: np.ndarray, alone: World, tmp_path: Path
) -> None:
    run(Net(), images, alone, kept=Kept(tmp_path, "weights 1"))
    (tmp_path / "other.txt").write_text("not ours")
    for kept, options in ((Kept(tmp_path, "weights 2"), {}), (Kept(tmp_path, "weights 2"), {"flip_sum": True})):
        before, net = set(tmp_path.glob("*.npy")), Net()
        run(net, images, alone, kept=kept, **options)
        assert net.embedded == 30 * (1 + len(options))
        assert len(set(tmp_path.glob("*.npy"))) == 3
        assert not before & set(tmp_path.iterdir())
    assert (tmp_path / "other.txt").exists()


def test_what_a_write_cut_short_left_is_not_taken_for_a_chunk(images: np.ndarray, alone: World, tmp_path: Path) -> None:
    kept = Kept(tmp_path, "weights")
    run(Net(), images, alone, kept=kept)
    last = max(tmp_path.glob("*.npy"))
    last.rename(tmp_path / f".{last.name}.part")
    net = Net()
    run(net, images, alone, kept=kept)
    assert net.embedded == 10
    kept.clear()
    assert list(tmp_path.iterdir()) == []


def test_no_rows_are_no_embeddings(images: np.ndarray, alone: World) -> None:
    z = embed(Net(), images, ROWS[:0], alone, image_size=SIZE, batch_size=4, embedding_dim=8)
    assert z.shape == (0, 8)


RANK = """
import sys
from pathlib import Path
import numpy as np, torch
from app.mining.embed import Interrupted, Kept
from app.runtime import dist
from tests.app.test_embed import Net, ROWS, embed, run
images = np.load(sys.argv[1])
with dist.world() as here:
    def shares(rows, **options):
        net = Net()
        z = embed(net, images, rows, here, image_size=16, batch_size=4, embedding_dim=8, chunk_rows=4, **options)
        return dist.gather_rows(z, here), net.embedded
    alone = dist.World(0, 1, here.device)
    one = lambda rows: embed(Net(), images, rows, alone, image_size=16, batch_size=4, embedding_dim=8)
    whole, done = shares(ROWS)                       # 30 rows: 10 each, or 15
    assert torch.allclose(whole, one(ROWS), atol=1e-6)
    assert done == len(dist.share(ROWS, here))
    assert torch.allclose(shares(ROWS[:2])[0], one(ROWS[:2]), atol=1e-6)      # the last of three has no rows
    kept = Kept(Path(sys.argv[2]), "weights")
    asked = []
    def last_rank_after_a_chunk():
        asked.append(True)
        return here.rank == here.size - 1
    try:
        shares(ROWS, kept=kept, interrupted=last_rank_after_a_chunk)
        raise SystemExit("not interrupted")
    except Interrupted:
        assert len(asked) == 1
    again, done = shares(ROWS, kept=kept)
    assert torch.equal(again, whole)
    assert done == len(dist.share(ROWS, here)) - 4
    kept.clear()
print("fine")
"""


@pytest.mark.slow
def test_processes_with_unequal_shares_stop_together_and_embed_what_one_does(
    images: np.ndarray, tmp_path: Path
) -> None:
    np.save(tmp_path / "images.npy", images)
    run_ranks(RANK, 3, str(tmp_path / "images.npy"), str(tmp_path / "kept"))
