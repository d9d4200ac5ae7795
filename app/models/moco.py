"""Momentum contrast with a margin on the positive (He et al. 2020, arXiv:1911.05722; margin as in USynthFace).

Two deliberate departures from the paper:
- Keys are computed with BN in eval mode, on the running averages of the momentum encoder (EMAN, Cai et al. 2021,
  arXiv:2101.08482). A key then depends only on its own image, so batch statistics cannot leak which key belongs to
  which query. ShuffleBN has the same purpose, but moves images between ranks.
- A queue entry stores the row of its image. Entries of the same image, or of an image with the same pseudo-ID, are no
  negatives and are masked. New pseudo-IDs therefore apply to the queue at once and no entry is discarded.

Letters: B batch, D projection size, K queue size, N images of the data set.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from app.config.schema import NO_ID, MocoConfig
from app.models.average import follow

EMPTY = -1  # row of a queue entry that was never filled


class Encoder(nn.Module):
    """Backbone and projection head: images [B, 3, S, S] -> unit vectors [B, D]."""

    def __init__(self, backbone: nn.Module, embedding_dim: int, hidden_dim: int, projection_dim: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.projection = nn.Sequential(
            nn.Linear(embedding_dim, hidden_dim, bias=False),
            nn.BatchNorm1d(hidden_dim),
            nn.ReLU(inplace=True),
            nn.Linear(hidden_dim, projection_dim),
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.project(self.backbone(images))

    def project(self, embeddings: Tensor) -> Tensor:
        """Embeddings [B, E] of the backbone -> unit vectors [B, D]."""
        return F.normalize(self.projection(embeddings).float(), dim=1)


class MomentumEncoder(nn.Module):
    """A copy of an encoder that follows it slowly and is never trained by gradients."""

    def __init__(self, encoder: Encoder, momentum: float) -> None:
        super().__init__()
        self.encoder = copy.deepcopy(encoder).requires_grad_(False)
        self.momentum = momentum
        self.eval()

    def train(self, mode: bool = True) -> MomentumEncoder:  # noqa: ARG002 - nn.Module's signature
        return super().train(False)  # see the module's note on BN

    def follow(self, encoder: Encoder, taken: Tensor) -> None:
        """Move towards `encoder`, if its step was `taken` (1 or 0, on the device)."""
        follow(self.encoder, encoder, torch.full_like(taken, 1 - self.momentum), taken)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys [B, D], and the backbone's unit embeddings [B, E] from which they were computed."""
        embeddings = self.encoder.backbone(images)
        return self.encoder.project(embeddings), F.normalize(embeddings.float(), dim=1)


class Queue(nn.Module):
    """The last K keys with the rows of their images; identical on every rank."""

    of_data = ("rows",)

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("keys", torch.zeros(size, dim))
        self.register_buffer("rows", torch.full((size,), EMPTY, dtype=torch.long))
        self.register_buffer("position", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def push(self, keys: Tensor, rows: Tensor, taken: Tensor) -> None:
        """Overwrite the oldest entries with keys [B, D] of images `rows` [B]; B may be any size, wrapping is exact.

        Nothing changes unless `taken` (1 or 0, on the device).
        """
        size, is_taken = len(self.rows), taken > 0
        keys, rows = keys[-size:], rows[-size:]
        places = (self.position + torch.arange(len(rows), device=rows.device)) % size
        for table, new in ((self.keys, keys), (self.rows, rows)):
            new = torch.where(is_taken, new.to(table.dtype), table.index_select(0, places))
            table.index_copy_(0, places, new)
        self.position.copy_((self.position + len(rows) * taken.long()) % size)


class FeatureBank(nn.Module):
    """The most recent embedding of each of N images [N, E], in 16 bits; NaN where there is none yet."""

    of_data = may_hold_nan = ("features",)

    def __init__(self, count: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("features", torch.full((count, dim), torch.nan, dtype=torch.float16))

    @torch.no_grad()
    def put(self, rows: Tensor, embeddings: Tensor, taken: Tensor) -> None:
        """Replace the embeddings of images `rows` [B], if `taken`. For a repeated image the last embedding counts.

        All of its entries write that last embedding, so the order of writes does not matter.
        """
        rows, order = rows.sort(stable=True)
        last = torch.searchsorted(rows, rows, right=True) - 1  # last entry of the same image
        new = embeddings.index_select(0, order[last]).to(self.features.dtype)
        self.features.index_copy_(0, rows, torch.where(taken > 0, new, self.features.index_select(0, rows)))


def contrastive_loss(
    queries: Tensor,
    keys: Tensor,
    queue: Queue,
    rows: Tensor,
    key_rows: Tensor,
    pseudo_ids: Tensor,
    moco: MocoConfig,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Compute the InfoNCE loss of each query against its key and the queue.

    queries, keys [B, D] unit vectors; rows, key_rows [B] image of each; pseudo_ids [N], NO_ID where there is none. The
    `mask_most_similar` most similar negatives of each query are masked: they likely show the same person, not found
    yet. With `multi_positive`, queue entries of the query's pseudo-ID are positives instead of masked.

    Returns the scalar loss and metrics (scalars, still on the device). Cosines are fp32 regardless of autocast: divided
    by the temperature, a 16-bit rounding error would change the gradient by percents.
    """
    same_image, same_id = same_person(rows, key_rows, queue.rows, pseudo_ids)
    masked = same_image | same_id
    with torch.autocast(queries.device.type, enabled=False):
        queries, keys = queries.float(), keys.float()
        positive = (queries * keys).sum(1, keepdim=True)  # [B, 1]
        queued = queries @ queue.keys.T  # [B, K]
        if moco.mask_most_similar:
            most = queued.detach().masked_fill(masked, -torch.inf).topk(moco.mask_most_similar, dim=1)
            alike = torch.zeros_like(masked).scatter_(1, most.indices, most.values > -torch.inf)
            masked = masked | alike
        if moco.multi_positive:
            loss = unified_loss(positive, queued, same_id & ~same_image, masked, moco)
        else:
            logits = torch.cat([positive - moco.margin, queued.masked_fill(masked, -torch.inf)], 1) / moco.temperature
            loss = F.cross_entropy(logits, logits.new_zeros(len(logits), dtype=torch.long))
        with torch.no_grad():
            metrics = {
                "positive_cosine": positive.mean(),
                "negative_cosine": (queued * ~masked).sum() / (~masked).sum().clamp(min=1),
                "masked_share": masked.float().mean(),
            }
    return loss, metrics


def unified_loss(positive: Tensor, queued: Tensor, friends: Tensor, masked: Tensor, moco: MocoConfig) -> Tensor:
    """log(1 + sum over positives p and negatives n of exp((n - p + margin) / T)): UniMoCo (arXiv:2103.10773), eq. 4.

    positive [B, 1] and queued [B, K] cosines; `friends` [B, K] are positives, `masked` [B, K] are not negatives. With
    one positive it is InfoNCE.
    """
    nothing = -1e30  # not -inf: a row without negatives would get a NaN gradient
    negatives = (queued / moco.temperature).masked_fill(masked, nothing).logsumexp(1)
    missed = torch.cat([positive, queued.masked_fill(~friends, -nothing)], 1) - moco.margin
    return F.softplus(negatives + (-missed / moco.temperature).logsumexp(1)).mean()


def same_person(rows: Tensor, key_rows: Tensor, queue_rows: Tensor, pseudo_ids: Tensor) -> tuple[Tensor, Tensor]:
    """Return two masks [B, K] of queue entries that are no negatives.

    The first: empty, or of the query's or key's own image. The second: of the query's pseudo-ID.
    """
    own = (queue_rows == rows[:, None]) | (queue_rows == key_rows[:, None]) | (queue_rows == EMPTY)
    ids = pseudo_ids[rows][:, None]  # [B, 1]
    queue_ids = pseudo_ids[queue_rows.clamp(min=0)][None, :]  # [1, K]
    return own, (ids == queue_ids) & (ids != NO_ID)
