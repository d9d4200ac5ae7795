"""The table of class centres of one rank, with the state of its own optimizer: SGD or AdamW of some rows.

A step may concern some rows only. The others catch up when they are next updated (`lazy`), or get a gradient of zero.

Letters: D embedding size, n rows of a step.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from app.config.schema import OptimizerConfig
from app.runtime.dist import World

INIT_STD = 0.01
INIT_ROWS = 4096  # classes whose initial values are drawn together
NOBODY = torch.iinfo(torch.long).max  # padding in a list of rows; sorts after all rows
BETAS, EPS = (0.9, 0.999), 1e-8  # AdamW's, torch's defaults
CHUNK_BYTES = {"cpu": 2**20, "cuda": 2**28}  # updated at once: fits a CPU's cache, keeps a GPU busy


class Centres:
    """Rows start to stop of the table of centres, their optimizer state and, between steps, gradients of some rows."""

    def __init__(
        self, rows: tuple[int, int], dim: int, settings: OptimizerConfig, here: World, *, seed: int, lazy: bool
    ) -> None:
        self.start, self.stop = rows
        self.settings, self.lazy = settings, lazy
        weight = initial(self.start, self.stop, dim, seed).to(here.device)
        count = torch.zeros(len(weight), dtype=torch.long, device=here.device)
        self.tables = {"weight": weight, "last_step": count}
        if settings.name == "adamw":
            moments = {"exp_avg": torch.zeros_like(weight), "exp_avg_sq": torch.zeros_like(weight)}
            self.tables |= moments | {"updates": count.clone()}
        else:
            self.tables["momentum"] = torch.zeros_like(weight)
        # The rows that have a gradient since the last step: their numbers, ascending, and the gradients.
        self.part: tuple[Tensor, Tensor] | None = None
        self.filled_up = False  # whether rows passed in may contain NOBODY
        self.merged = False  # whether those of `part` may

    def some(self, rows: Tensor) -> Tensor:
        """Return the centres of ascending rows [n, D], an arbitrary one for NOBODY. Makes no copy of all rows."""
        weight = self.tables["weight"]
        if self.is_everything(rows):
            return weight
        return weight.index_select(0, rows.clamp(max=len(weight) - 1) if self.filled_up else rows)

    def is_everything(self, rows: Tensor) -> bool:
        """Whether the host knows that ascending rows are all rows."""
        return len(rows) == len(self.tables["weight"]) and not self.filled_up and not self.merged

    @property
    def rows(self) -> Tensor | None:
        """Rows with a gradient, ascending; the last may be repeated. An arbitrary row if there are none."""
        return None if self.part is None else self._repeated(*self.part)[0]

    @property
    def grad(self) -> Tensor | None:
        """The gradient of each of `rows` [n, D]."""
        return None if self.part is None else self._repeated(*self.part)[1]

    def _repeated(self, rows: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
        """Return rows and gradients with NOBODY replaced by the last real row and its gradient."""
        if not (self.filled_up or self.merged) or not len(rows):
            return rows, grad
        last = (rows != NOBODY).sum().sub_(1).clamp_(min=0)
        own = torch.arange(len(rows), device=rows.device).clamp(max=last)
        return rows.index_select(0, own).clamp_(max=len(self.tables["weight"]) - 1), grad.index_select(0, own)

    def add(self, rows: Tensor, grad: Tensor) -> None:
        """Add a gradient [n, D] of ascending rows [n]; keeps a reference to the tensor. The gradient of NOBODY is 0."""
        if self.part is None:
            self.part = rows, grad
        elif self.is_everything(rows) and self.is_everything(self.part[0]):
            self.part[1].add_(grad)
        elif len(rows) + len(self.part[0]):
            self._merge(rows, grad)

    def _merge(self, rows: Tensor, grad: Tensor) -> None:
        """Sum the gradients of rows in both, without asking the device for their number: NOBODY pads the result."""
        assert self.part is not None
        both, order = torch.cat([self.part[0], rows]).sort(stable=True)
        is_new = torch.ones_like(both)
        is_new[1:] = both[1:] != both[:-1]
        place = is_new.cumsum(0) - 1  # [m] index of each among the distinct rows
        size = min(len(both), len(self.tables["weight"]) + 1)  # one more for NOBODY
        different = torch.full_like(both[:size], NOBODY).scatter_(0, place, both)
        summed = grad.new_zeros(size, grad.shape[1])
        summed.index_add_(0, place, torch.cat([self.part[1], grad]).index_select(0, order))
        self.part, self.merged = (different, summed), True

    @torch.no_grad()
    def step(self, lr: float, step: Tensor, grad_scale: Tensor | float, taken: Tensor) -> None:
        """Make update number `step` (from 1 on) and drop the gradients. If `taken` is 0, no table changes."""
        weight = self.tables["weight"]
        everything = torch.arange(len(weight), device=weight.device)
        rows, grad = (everything[:0], weight[:0]) if self.part is None else self._repeated(*self.part)
        whole = self.part is not None and self.is_everything(rows)
        if not self.lazy and not whole:
            grad = torch.zeros_like(weight).index_copy_(0, rows, grad)
            rows, whole = everything, True
        elif self.part is not None and len(rows) and not whole:
            taken = taken * (self.part[0][0] != NOBODY)  # if the only row is NOBODY nothing changes
        size = max(1, CHUNK_BYTES[weight.device.type] // (weight.shape[1] * weight.element_size()))
        for i in range(0, len(rows), size):
            here = slice(i, i + size)
            finite = torch.where(taken > 0, grad[here], 0.0).div_(grad_scale)
            if whole:  # in place
                self.update({name: table[here] for name, table in self.tables.items()}, finite, lr, step, taken)
                continue
            part = {name: table.index_select(0, rows[here]) for name, table in self.tables.items()}
            self.update(part, finite, lr, step, taken)
            for name, values in part.items():
                self.tables[name].index_copy_(0, rows[here], values)
        self.part, self.merged = None, False

    def update(self, part: dict[str, Tensor], grad: Tensor, lr: float, step: Tensor, taken: Tensor) -> None:
        """Update some rows of all tables from their gradient, which is overwritten. If `taken` is 0, nothing changes.

        `grad` then is 0, and every term is multiplied by `taken`, so that the host need not read it.
        """
        o, weight = self.settings, part["weight"]
        gap = ((step - part["last_step"]) * taken).double()[:, None]  # 1 for a row that missed no step
        part["last_step"].copy_(torch.where(taken > 0, step, part["last_step"]))
        if o.name == "adamw":
            part["updates"] += taken.long()
            count = part["updates"].clamp(min=1).double()[:, None]
            corrections = [(1 - beta**count).to(weight) for beta in BETAS]
            mean, square = part["exp_avg"], part["exp_avg_sq"]
            weight.mul_(1 - taken * (lr * o.weight_decay))
            mean.mul_((BETAS[0] ** gap).to(weight)).add_(grad, alpha=1 - BETAS[0])
            square.mul_((BETAS[1] ** gap).to(weight)).addcmul_(grad, grad, value=1 - BETAS[1])
            spread = (square / corrections[1]).sqrt_().add_(EPS)
            weight.addcdiv_(mean / corrections[0], spread.div_(taken), value=-lr)
            return
        grad.addcmul_(weight, taken * o.weight_decay)
        momentum = part["momentum"].mul_((o.momentum**gap).to(weight)).add_(grad)
        if o.nesterov:
            weight.addcmul_(grad, taken * -lr).addcmul_(momentum, taken * (-lr * o.momentum))
        else:
            weight.addcmul_(momentum, taken * -lr)


def initial(start: int, stop: int, dim: int, seed: int) -> Tensor:
    """Draw initial values N(0, 0.01) of classes start to stop [stop - start, dim], equal for any split over ranks."""
    weight = torch.empty(stop - start, dim)
    for first in range(start // INIT_ROWS * INIT_ROWS, stop, INIT_ROWS):
        state = np.random.SeedSequence([seed, first]).generate_state(1, np.uint64)
        drawn = torch.randn(INIT_ROWS, dim, generator=torch.Generator().manual_seed(int(state[0] >> 1)))
        low, high = max(first, start), min(first + INIT_ROWS, stop)
        weight[low - start : high - start] = drawn[low - first : high - first]
    return weight.mul_(INIT_STD)
