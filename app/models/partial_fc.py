"""Partial FC: softmax over class centres that are sampled and spread over ranks (An et al. 2022, arXiv:2203.15565).

Every rank holds a contiguous part of the centres and receives the embeddings of all ranks. A step compares them with
the centres of the batch's classes and, at a sample rate below 1, with a random sample of the others. A softmax across
ranks gives one loss. Only those centres get gradients, which are stored as rows of a table.

Deliberate differences from the published code:
- The sample depends only on the seed, the number of the call and the class. It is the top int(rate * C) of all classes,
  not of each rank's. So any number of ranks on the same kind of device computes the same.
- `update: lazy` updates only sampled centres. Their moments decay for missed steps as they would with zero gradients;
  AdamW's bias correction counts only the centre's own updates. `dense`, as published, gives all other centres a zero
  gradient: weight decay shrinks them and momentum moves them. At rate 1 both equal torch.optim's optimizers.
- Autograd does not record the product with the centres. This avoids a copy of normalised centres and a gradient as
  large as the table.
- The number of sampled centres per rank is random. Each rank reserves a fixed number of places and pads with NOBODY, so
  the host never waits for the device to count.

Letters: C classes, D embedding size, N images of all ranks, n centres of this rank in a step.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from app.config.schema import HeadConfig, OptimizerConfig
from app.errors import WrongUse
from app.models.centres import NOBODY, Centres
from app.models.heads import build_head
from app.runtime import dist
from app.runtime.dist import World


class PartialFC(nn.Module):
    """Loss of embeddings against C class centres, including the update of the centres. Every call is a collective."""

    def __init__(
        self, classes: int, dim: int, config: HeadConfig, optimizer: OptimizerConfig, here: World, *, seed: int
    ) -> None:
        super().__init__()
        self.calls: Tensor
        self.classes, self.rate, self.here, self.seed = classes, config.sample_rate, here, seed
        self.head = build_head(config)
        self.centres = Centres(share_of(classes, here), dim, optimizer, here, seed=seed, lazy=config.update == "lazy")
        self.centres.filled_up = self.is_ragged
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))  # forward calls; stays in CPU memory
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))
        self.before: dict[str, Tensor] | None = None  # the head's running means as of the last step

    @property
    def is_ragged(self) -> bool:
        """Whether ranks have different numbers of sampled centres, which only the device knows."""
        return self.rate < 1 and self.here.size > 1

    def forward(self, embeddings: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the mean loss over the images of all ranks, and metrics, all scalars.

        embeddings [B, D] of any length, labels int64 [B] in [0, C), B the same on all ranks. Inside data_parallel a
        backbone gets the gradient of this mean. Gradients of the centres accumulate until `step`.
        """
        if self.before is None:
            self.before = {name: mean.clone() for name, mean in self.head.named_buffers()}
        assert labels.dtype == torch.long, "int64, or the search for them goes wrong"
        labels = dist.gather_batch(labels, self.here)
        torch._assert_async(((labels >= 0) & (labels < self.classes)).all(), f"labels are in [0, {self.classes})")
        with torch.autocast(embeddings.device.type, enabled=False):
            return self._forward(dist.gather_batch(embeddings.float(), self.here), labels)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> PartialFC:
        calls, moved = self.calls, super()._apply(fn, recurse)
        self.calls = calls  # stays in CPU memory: the host counts calls without asking the device
        return moved

    def _forward(self, embeddings: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        rows = self.sample(labels)
        own = columns(rows, labels - self.centres.start)
        norms = embeddings.norm(dim=1)
        unit = embeddings / norms.clamp_min(1e-12)[:, None]
        cosine = _Cosines.apply(unit, self.centres.some(rows), lambda grad: self.centres.add(rows, grad))  # [N, n]
        target = dist.total(at(cosine.detach(), own), self.here)  # [N]
        logits = self.head(cosine, own, target, norms)
        if self.is_ragged:
            logits = logits.masked_fill(rows == NOBODY, -torch.inf)
        loss = _CrossEntropy.apply(logits, own, self.here)
        # Every rank computes the penalty of all images, but its gradient must reach them once.
        penalty = self.head.penalty(norms if self.here.is_main else norms.detach())
        if penalty is not None:
            loss = loss + penalty.mean()
        return loss, {"positive_cosine": target.mean(), "embedding_norm": norms.detach().mean()}

    def sample(self, labels: Tensor) -> Tensor:
        """Return this rank's rows to compare with, ascending [n]: the classes of all `labels` [N] and a random sample.

        All ranks together have int(rate * C) rows, or as many as `labels` has classes if that is more. With several
        ranks n is fixed: NOBODY pads the list.
        """
        start, stop = self.centres.start, self.centres.stop
        self.calls += 1
        if self.rate >= 1:
            return torch.arange(stop - start, device=labels.device)
        state = np.random.SeedSequence([self.seed, int(self.calls.numpy())]).generate_state(1, np.uint64)
        generator = torch.Generator(labels.device).manual_seed(int(state[0] >> 1))
        # Every rank draws numbers for all classes: cheap, and no rank has to ask how many rows the others took.
        luck = torch.rand(self.classes, generator=generator, device=labels.device)
        luck.index_fill_(0, labels, 2.0)
        size = int(self.rate * self.classes)
        most = max(size, min(len(labels), self.classes))  # the batch may have more classes than the sample
        if not self.is_ragged:
            size = size if size == most else max(size, len(labels.unique()))
            return luck.topk(size, sorted=False).indices.sort().values
        chosen = torch.zeros_like(luck, dtype=torch.bool).index_fill_(0, labels, True)
        chosen.index_fill_(0, luck.topk(size, sorted=False).indices, True)
        return compacted(chosen[start:stop], places(most, stop - start, self.classes, len(labels)))

    def step(self, lr: float, *, grad_scale: Tensor | float = 1.0, taken: Tensor | None = None) -> None:
        """Update the centres with the gradients since the last step, whose losses were multiplied by `grad_scale`.

        If `taken` is 0 (on the device), nothing changes, and the calls' changes to the head's running means are undone.
        """
        taken = torch.ones((), device=self.steps.device) if taken is None else taken
        self.steps += taken.long()
        if self.before is not None:
            for name, mean in self.head.named_buffers():
                mean.copy_(torch.where(taken > 0, mean, self.before[name]))
        self.before = None
        self.centres.step(lr, self.steps, grad_scale, taken)

    def tables(self) -> dict[str, Tensor]:
        """Return whole tables on rank 0, one row per class, in CPU memory, valid until the next step; else {}."""
        whole = {name: dist.rows_to_main(table, self.here) for name, table in self.centres.tables.items()}
        return {name: table for name, table in whole.items() if table is not None}

    def table_bytes(self) -> int:
        """Return the size of what `tables` returns on rank 0, without gathering it."""
        return sum(self.classes * t.element_size() * math.prod(t.shape[1:]) for t in self.centres.tables.values())

    def take_tables(self, tables: dict[str, Tensor]) -> None:
        """Load what `tables` returned: each rank gets its rows from rank 0. For a mismatch all ranks raise WrongUse."""
        with dist.together(self.here):
            if self.here.is_main:
                self._refuse_misfit(tables)
        for name, table in self.centres.tables.items():
            dist.rows_from_main(tables.get(name), table, self.here)

    def _refuse_misfit(self, tables: dict[str, Tensor]) -> None:
        if tables.keys() != self.centres.tables.keys():
            name = "adamw" if "exp_avg" in tables else "sgd"
            raise WrongUse(f"the class centres were trained with another optimizer; give train.optimizer.name={name}")
        for name, table in self.centres.tables.items():
            wanted, given = (self.classes, *table.shape[1:]), tuple(tables[name].shape)
            if given != wanted:
                raise WrongUse(
                    f"the checkpoint's class centres ({name}) are {given} and not {wanted}; give the labels and the "
                    "backbone.embedding_dim it was trained with, or its path as train.warm_start, not train.resume"
                )

    def take_centres(self, weight: Tensor, place: Tensor) -> None:
        """Load initial centres [C', D]: class c takes row place[c], or stays unchanged where that is -1 (place: [C]).

        Raises WrongUse for another D.
        """
        mine = self.centres.tables["weight"]
        if weight.ndim != 2 or weight.shape[1] != mine.shape[1]:
            raise WrongUse(
                f"the class centres have shape {tuple(weight.shape)} and embeddings {mine.shape[1]} numbers; give "
                f"backbone.embedding_dim={weight.shape[-1]} or recipe.head.warm_start=false"
            )
        place = place[self.centres.start : self.centres.stop]
        known = place >= 0
        mine[known.to(mine.device)] = weight[place[known]].to(mine)


def share_of(classes: int, here: World) -> tuple[int, int]:
    """Return the first class of a rank and the one after its last: shares equal to within one, larger ones first."""
    each, over = divmod(classes, here.size)
    start = here.rank * each + min(here.rank, over)
    return start, start + each + (here.rank < over)


def places(taken: int, rows: int, classes: int, met: int) -> int:
    """Bound how many of a rank's `rows` are among `taken` of all `classes`; up to `met` of them are always taken.

    The bound is eight standard deviations above the mean; it is exceeded once in 10^13 steps.
    """
    mean = taken * rows / max(classes, 1)
    return min(rows, taken, met + math.ceil(mean + 8 * math.sqrt(mean) + 8))


def compacted(chosen: Tensor, room: int) -> Tensor:
    """Return the positions of True in `chosen` [n], ascending, padded to [room] with NOBODY. The host does not wait."""
    torch._assert_async(chosen.sum() <= room, "there are places for all sampled centres of a rank")
    place = torch.where(chosen, chosen.cumsum(0) - 1, room).clamp_(max=room)  # the others share the last, extra place
    rows = torch.full((room + 1,), NOBODY, device=chosen.device)
    return rows.scatter_(0, place, torch.arange(len(chosen), device=chosen.device))[:room]


def columns(rows: Tensor, wanted: Tensor) -> Tensor:
    """Return the index of each of `wanted` [N] in ascending `rows` [n], or -1 where it is missing."""
    if not len(rows):
        return torch.full_like(wanted, -1)
    place = torch.searchsorted(rows, wanted).clamp_(max=len(rows) - 1)
    return torch.where(rows[place] == wanted, place, -1)


def at(values: Tensor, column: Tensor) -> Tensor:
    """Return values[i, column[i]] of [N, n], and 0 where the column is -1."""
    if not values.shape[1]:
        return values.new_zeros(len(values))
    own = values.gather(1, column.clamp(min=0)[:, None])[:, 0]
    return torch.where(column >= 0, own, 0.0)


class _Cosines(torch.autograd.Function):
    """Unit embeddings [N, D] times the directions of centres [n, D]; passes the gradient of the centres to `keep`."""

    @staticmethod
    def forward(ctx: Any, unit: Tensor, centres: Tensor, keep: Callable[[Tensor], None]) -> Tensor:
        length = centres.norm(dim=1).clamp_min_(1e-12)
        cosine = (unit @ centres.T).div_(length).clamp_(-1, 1)  # only rounding exceeds 1: no gradient is cut off
        ctx.save_for_backward(unit, centres, length, cosine)
        ctx.keep = keep
        return cosine

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        unit, centres, length, cosine = ctx.saved_tensors
        with torch.autocast(grad.device.type, enabled=False):
            scaled = grad / length
            # d cos / d centre = (unit - cos * centre / length) / length
            along = (scaled * cosine).sum(0).div_(length)[:, None]
            ctx.keep((scaled.T @ unit).addcmul_(along, centres, value=-1))
            return scaled @ centres, None, None


class _CrossEntropy(torch.autograd.Function):
    """-mean log max(p, 1e-30) of the own class, for logits [N, n] whose rows are spread over ranks."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, own: Tensor, here: World) -> Tensor:
        # A rank may hold no centre.
        best = logits.amax(1) if logits.shape[1] else logits.new_full((len(logits),), -torch.inf)
        share = (logits - dist.greatest(best, here)[:, None]).exp_()
        share /= dist.total(share.sum(1), here)[:, None]
        ctx.save_for_backward(share, own)
        return -dist.total(at(share, own), here).clamp_min(1e-30).log().mean()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        share, own = ctx.saved_tensors
        weight = grad / len(share)
        result = share * weight
        if result.shape[1]:
            result.scatter_add_(1, own.clamp(min=0)[:, None], torch.where(own >= 0, -weight, 0.0)[:, None])
        return result, None, None
