"""Choose which shard a machine gets, and refuse data that cannot be divided."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from deploy.errors import WrongUse, command
from deploy.specs.shards import Shard, file_blocks
from deploy.workspace.dataset import Dataset


@dataclass
class Dealing:
    """How the images are dealt to the machines of one command."""

    of: int
    taken: set[int] = field(default_factory=set)

    def choose(self, node: int, is_there: Callable[[Shard], bool]) -> Shard:
        """Return the shard of a machine: one that it has already and no other machine took, else its own number.

        So machines that are listed in another order keep their images.
        """
        numbers = (node, *(number for number in range(self.of) if number != node))
        free = [Shard(number, self.of) for number in numbers if number not in self.taken]
        shard = next((each for each in free if is_there(each)), free[0])
        self.taken.add(shard.number)
        return shard


def staged_blocks(dataset: Dataset, fraction: float, shard: Shard) -> list[int]:
    """Return the blocks of the staged file of a shard of a fraction."""
    whole = dataset.kept_blocks(fraction)
    if shard.of == 1:
        return whole
    rows = dataset.count_rows(whole)
    return [whole[place] for place in file_blocks(rows, dataset.held_out_rows, dataset.block_rows, shard)]


def refuse_undividable(dataset: Dataset, fraction: float, of: int) -> None:
    """Raise WrongUse for images that cannot be dealt to `of` machines."""
    if of == 1:
        return
    if not dataset.manifest.get("dataset_id"):
        raise WrongUse(
            f"data.shards=by_node needs a manifest.json beside {dataset.path}, as `{command('prepare')}` makes it: "
            "make the data again, or give --set data.shards=whole"
        )
    blocks = dataset.chosen_blocks(fraction)
    if len(blocks) < of:
        raise WrongUse(
            f"data.shards=by_node deals whole blocks, and {dataset.path} has {len(blocks)} of them to train on for "
            f"{of} machines: give --nodes {len(blocks)}, or --set data.shards=whole"
        )
