"""Embedding: the vectors are the same for any batches, chunks, processes, interruptions and resumes."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from app.data.loader import plain_views
from app.mining.embed import Interrupted, embed
from app.mining.kept import Chunks, Kept, is_long
from app.models.embedder import Embedder
from app.runtime.dist import World
from tests.app.support.ranks import run_ranks

SIZE = 16
ROWS = np.arange(3, 33)


class Net(nn.Module):
    """A small network that behaves differently in training."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(196, 8))
        nn.init.normal_(self.layers[1].running_mean)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class Counting(Embedder):
    """Counts the images that it embeds."""

    def __init__(self, *, flip: bool = False) -> None:
        super().__init__(Net(), SIZE, flip=flip)
        self.embedded = 0

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        self.embedded += len(x)
        return super().__call__(x)


@pytest.fixture(autouse=True)
def passes_of_any_length_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.mining.kept.LONG_S", 0.0)


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (40, SIZE, SIZE, 3), dtype=np.uint8)


def run(embedder: Embedder, images: np.ndarray, here: World, **options: object) -> Tensor:
    settings = {"batch_size": 4, "embedding_dim": 8, "chunk_rows": 10}
    return embed(embedder, images, ROWS, here, **{**settings, **options})


def test_embeddings_are_unit_vectors_of_the_network_as_it_is_outside_training(images: np.ndarray, alone: World) -> None:
    net = Net()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    z = run(Embedder(net, SIZE), images, alone)
    mirrored_too = run(Embedder(net, SIZE, flip=True), images, alone)
    assert net.training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    x = torch.from_numpy(images[ROWS]).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        net.eval()
        plain = nn.functional.normalize(net(x), dim=1)
        both = nn.functional.normalize(net(x) + net(x.flip(3)), dim=1)
    assert z.dtype == torch.float32
    assert torch.allclose(z, plain, atol=1e-5)
    assert torch.allclose(mirrored_too, both, atol=1e-5)


def test_neither_batches_nor_chunks_show(images: np.ndarray, alone: World) -> None:
    whole = run(Counting(), images, alone, batch_size=30, chunk_rows=8192)
    for batch_size, chunk_rows in ((1, 7), (4, 10), (64, 30)):
        assert torch.allclose(
            run(Counting(), images, alone, batch_size=batch_size, chunk_rows=chunk_rows), whole, atol=1e-6
        )


def test_progress_counts_to_all_images(images: np.ndarray, alone: World) -> None:
    told: list[tuple[int, int]] = []
    run(Counting(), images, alone, progress=lambda done, total: told.append((done, total)))
    assert told == [(10, 30), (20, 30), (30, 30)]


def test_an_interrupted_pass_goes_on_where_it_was(images: np.ndarray, alone: World, tmp_path: Path) -> None:
    kept, net = Kept(tmp_path / "kept", "weights 1"), Counting()
    with pytest.raises(Interrupted):  # after two chunks
        run(net, images, alone, kept=kept, interrupted=lambda: net.embedded >= 20)
    assert net.embedded == 20
    z = run(net, images, alone, kept=kept)
    assert net.embedded == 30
    assert torch.equal(z, run(Counting(), images, alone))  # equal to the bit, so the pseudo-IDs are equal too
    kept.clear()
    kept.clear()
    assert list(kept.folder.iterdir()) == []


def test_chunks_of_a_network_in_16_bits_take_half_the_disk_and_go_on_to_the_bit(
    images: np.ndarray, alone: World, tmp_path: Path
) -> None:
    def in_16_bits() -> Counting:
        net = Counting()
        net.precision = torch.bfloat16
        return net

    kept, net = Kept(tmp_path / "kept", "weights 1"), in_16_bits()
    with pytest.raises(Interrupted):
        run(net, images, alone, kept=kept, interrupted=lambda: net.embedded >= 20)
    files = sorted(kept.folder.glob("*.npy"))
    assert [np.load(io.BytesIO(file.read_bytes()[:-4])).dtype for file in files] == [np.float16, np.float16]
    going_on, whole = in_16_bits(), run(in_16_bits(), images, alone)
    assert torch.equal(run(going_on, images, alone, kept=kept), whole)
    assert going_on.embedded == 10
    exact = run(Counting(), images, alone)
    assert (whole * exact).sum(1).min() > 0.999  # bf16 rounds more than the chunks do
    assert torch.allclose(whole.norm(dim=1), torch.ones(len(whole)), atol=1e-6)
    np.testing.assert_allclose(whole, in_bf16(images), atol=2**-11)


def in_bf16(images: np.ndarray) -> Tensor:
    """The unit embeddings before they are rounded."""
    embedder = Embedder(Net(), SIZE, precision=torch.bfloat16)
    with torch.no_grad():
        views = plain_views(images, ROWS, SIZE, 4, torch.device("cpu"))
        return torch.cat([F.normalize(embedder(x)[0], dim=1) for x in views])


def test_chunks_of_other_weights_or_settings_are_removed_not_used(
    images: np.ndarray, alone: World, tmp_path: Path
) -> None:
    run(Counting(), images, alone, kept=Kept(tmp_path, "weights 1"))
    (tmp_path / "other.txt").write_text("not ours")
    in_16_bits = Counting()
    in_16_bits.precision = torch.bfloat16
    for net in (Counting(), Counting(flip=True), in_16_bits):
        before = set(tmp_path.glob("*.npy"))
        run(net, images, alone, kept=Kept(tmp_path, "weights 2"))
        assert net.embedded == 30
        assert len(set(tmp_path.glob("*.npy"))) == 3
        assert not before & set(tmp_path.iterdir())
    assert (tmp_path / "other.txt").exists()


def test_what_a_write_cut_short_left_is_not_taken_for_a_chunk(images: np.ndarray, alone: World, tmp_path: Path) -> None:
    kept = Kept(tmp_path, "weights")
    whole = run(Counting(), images, alone, kept=kept)
    first, middle, last = sorted(tmp_path.glob("*.npy"))
    last.rename(tmp_path / f".{last.name}.part")
    content = middle.read_bytes()
    for spoilt in (b"", content[:40], content[:-9], content[:200] + bytes(len(content) - 200)):
        middle.write_bytes(spoilt)  # as a power cut leaves a file that was not synced
        net = Counting()
        assert torch.equal(run(net, images, alone, kept=kept), whole)
        assert net.embedded == (20 if spoilt == b"" else 10)
    assert first.exists()
    kept.clear()
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_takes_nothing_costs_the_chunks_and_not_the_pass(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Chunks(tmp_path / "gone" / "begins", 0, 30) as chunks:
        chunks.write(0, torch.zeros(10, 8))
        chunks.write(10, torch.zeros(10, 8))
    assert capsys.readouterr().err == f"cannot save embeddings in {tmp_path / 'gone'} (No such file or directory)\n"
    assert not chunks.read(0, torch.zeros(10, 8))


@pytest.mark.parametrize(
    ("elapsed_s", "done", "total", "long"),
    [(1.0, 8192, 8192, False), (1.0, 8192, 480_000, False), (1.0, 8192, 500_000, True), (0.0, 0, 500_000, False)],
)
def test_only_a_pass_that_is_expected_to_take_over_a_minute_is_kept(
    elapsed_s: float, done: int, total: int, long: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("app.mining.kept.LONG_S", 60.0)
    assert is_long(elapsed_s, done, total) is long
    times = iter([0.0, elapsed_s])
    with Chunks(tmp_path / "begins", 0, total, clock=lambda: next(times)) as chunks:
        chunks.write(0, torch.zeros(done, 1))
    assert len(list(tmp_path.iterdir())) == long


def test_no_rows_are_no_embeddings(images: np.ndarray, alone: World) -> None:
    z = embed(Embedder(Net(), SIZE), images, ROWS[:0], alone, batch_size=4, embedding_dim=8)
    assert z.shape == (0, 8)


RANK = """
import sys
from pathlib import Path
import numpy as np, torch
from app.mining import kept
from app.mining.embed import Interrupted
from app.mining.kept import Kept
from app.runtime import dist
from tests.app.mining.test_embed import Counting, ROWS, embed
kept.LONG_S = 0.0
images = np.load(sys.argv[1])
with dist.world() as here:
    def shares(rows, **options):
        net = Counting()
        z = embed(net, images, rows, here, batch_size=4, embedding_dim=8, chunk_rows=4, **options)
        return dist.gather_rows(z, here), net.embedded
    alone = dist.World(0, 1, here.device)
    one = lambda rows: embed(Counting(), images, rows, alone, batch_size=4, embedding_dim=8)
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
