"""Choose how to search the neighbours, exactly or within cells, and search."""

from __future__ import annotations

import math
import sys
import time

from torch import Tensor

from app.config import MiningConfig
from app.mining.arrays import Floats
from app.mining.ivf import cells_to_read, make_cells, neighbours_in_cells, with_reserve
from app.mining.knn import SearchInexact, installed_faiss, neighbours
from app.mining.lists import Neighbours, usable
from app.runtime.dist import World, any_rank, gather_rows
from app.runtime.stop import Poll, undisturbed

EXACT_UP_TO = 5_000_000  # images; above, `auto` searches within cells


def choose_search(name: str, images: int, *, faiss: bool) -> str:
    """Return `exact` or `ivf` for `mining.search` and a number of images; `faiss`: it is installed."""
    if name != "auto":
        return name
    return "ivf" if images > EXACT_UP_TO and faiss else "exact"


def searched(
    shard: Tensor, config: MiningConfig, floors: Floats | None, here: World, poll: Poll = undisturbed
) -> tuple[Neighbours, str]:
    """Return the neighbours of this rank's `shard` [n, D], and how they were searched.

    `floors` [k]: what the clustering reads of a list; recall within cells is that of these entries. `auto` searches
    exactly where cells do not reach `mining.min_recall`; `ivf` raises SearchInexact there.
    """
    counts = gather_rows(usable(shard).sum()[None], here)
    how = choose_search(config.search, int(counts.sum()), faiss=not any_rank(installed_faiss() is None, here))
    started = time.monotonic()
    if how == "ivf" and int(counts.sum()):
        cells = make_cells(shard, here, poll)
        read, share = cells_to_read(cells, shard, config.neighbours, floors, here, config.min_recall)
        if read is not None:
            found = neighbours_in_cells(
                shard, config.neighbours, cells, read, here, placement=config.placement, poll=poll
            )
            how = f"ivf, {read} of {len(cells.centres)} cells"
            tell(f"search: {how}, recall {share:.2%} on a sample", started, here)
            return found, how
        message = (
            f"mining.search=ivf finds {share:.3%} of the neighbours of a sample, and mining.min_recall="
            f"{config.min_recall:g} needs {with_reserve(config.min_recall):.3%} there: give mining.search=exact, or "
            f"mining.min_recall={reachable(share):g}"
        )
        if config.search == "ivf":
            raise SearchInexact(message)
        tell(f"search: exact, because {message.partition(':')[0]}", started, here)
    found = neighbours(shard, config.neighbours, here, backend=config.backend, placement=config.placement, poll=poll)
    if config.search != "exact":
        tell("search: exact", started, here)
    return found, "exact"


def reachable(share: float) -> float:
    """Return the largest `mining.min_recall`, to three digits, for which a recall of `share` leaves a reserve."""
    return max(0.0, math.floor((1 - 2 * (1 - share)) * 1000) / 1000)


def tell(text: str, started: float, here: World) -> None:
    if here.is_main:
        print(f"{text}, {time.monotonic() - started:.1f} s", file=sys.stderr, flush=True)
